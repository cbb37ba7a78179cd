"""torchvision's CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccf_plugin.errors import Fault, UnavailableError, one_line
from ccf_plugin.files import nothing_left_on_failure
from ccf_plugin.zoo.readers.reader import Arrays, Reader, register_reader


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> Arrays:
    """Images of 32×32 pixels and 3 channels, from ``root``; ``download`` fetches them.

    torchvision's files are pickles; it compares their checksums with the published ones before it reads them.
    """
    import numpy as np
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    expected = root / dataset.base_folder
    if download:
        _download(name, dataset, root)
    arrays = {}
    classes: tuple[str, ...] = ()
    for split in splits:
        try:
            data = dataset(root=str(root), train=split == "train", download=False)
        except RuntimeError as error:
            state = "incomplete" if expected.exists() else "nothing"
            fault = Fault(name, f"it in {expected}", state, "pass {download=True}")
            raise UnavailableError(fault) from error
        arrays[split] = (data.data, np.asarray(data.targets, dtype=np.int64))
        classes = tuple(data.classes)
    return Arrays(arrays, classes)


def _download(name: str, dataset: Any, root: Path) -> None:
    with nothing_left_on_failure(root / dataset.base_folder, root / dataset.filename):
        try:
            # torchvision prints remarks to stdout, which belongs to results; its progress bar is on stderr.
            with contextlib.redirect_stdout(io.StringIO()):
                dataset(root=str(root), download=True)
        except Exception as error:
            reason = one_line(error, 120)
            raise UnavailableError(f"could not download {name} from {dataset.url} ({reason}) to {root}") from error


for _name in ("cifar10", "cifar100"):
    register_reader(Reader(_name, _name, _read))
