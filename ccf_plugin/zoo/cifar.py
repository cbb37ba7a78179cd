"""torchvision's CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccf_plugin.errors import InputError, UnavailableError, one_line


def read_cifar(
    name: str, splits: Sequence[str], root: Path, *, download: bool
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The class names, and for each split its images uint8 (N, 32, 32, 3) and labels int64 (N,).

    torchvision's files are pickles; it compares their checksums with the published ones before it reads them. Raises
    UnavailableError where they are not under ``root`` and not downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    expected = root / dataset.base_folder
    if download:
        _download(name, dataset, root)
    found = {}
    for split in splits:
        try:
            data = dataset(root=str(root), train=split == "train", download=False)
        except RuntimeError as error:
            state = "incomplete" if expected.exists() else "nothing"
            raise UnavailableError(f"{name}: expected it in {expected}, found {state}; add --download") from error
        found[split] = (data.data, np.asarray(data.targets, dtype=np.int64))
        classes = tuple(data.classes)
    if not found:
        raise InputError(f"{name}: expected a split to load, train or test, found none")
    return classes, found


def _download(name: str, dataset: Any, root: Path) -> None:
    with _nothing_left_on_failure(root, dataset.base_folder, dataset.filename):
        try:
            # torchvision prints remarks to stdout, which belongs to results; its progress bar is on stderr.
            with contextlib.redirect_stdout(io.StringIO()):
                dataset(root=str(root), download=True)
        except Exception as error:
            reason = one_line(error, 120)
            raise UnavailableError(f"could not download {name} from {dataset.url} ({reason}) to {root}") from error


@contextlib.contextmanager
def _nothing_left_on_failure(root: Path, *names: str) -> Iterator[None]:
    folders = [folder for folder in (root, *root.parents) if not folder.exists()]
    new = [root / name for name in names if not (root / name).exists()]
    try:
        yield
    except BaseException:
        for path in new:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for folder in folders:  # innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
