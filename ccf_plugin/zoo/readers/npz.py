"""Arrays in a file: ``npz:PATH`` with x and y (test split), or x_train, y_train, x_test, y_test; optionally classes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccf_plugin.errors import InputError, some_of
from ccf_plugin.zoo.readers.reader import Arrays, Reader, register_reader

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> Arrays:
    path = Path(name)
    arrays = _load(path)
    names = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test") if "x_test" in arrays else ("x", "y")}
    if not any(names[split][0] in arrays for split in splits):
        expected = " or ".join("/".join(names[split]) for split in splits)
        raise InputError(f"npz:{path}: expected arrays {expected}, found {_names_in(arrays)}")
    # All splits of the file, so that the number of classes does not depend on those asked for.
    names = {split: pair for split, pair in names.items() if pair[0] in arrays}
    for images, labels in names.values():
        if labels not in arrays:
            found = _names_in(arrays)
            raise InputError(f"npz:{path}: expected {labels}, an integer per image of {images}, found {found}")
    classes = arrays.get("classes")
    if classes is not None and classes.ndim != 1:
        raise InputError(f"npz:{path}: expected classes of one dimension, found {classes.shape}")
    class_names = None if classes is None else [str(label) for label in classes.tolist()]
    return Arrays({split: (arrays[x], arrays[y]) for split, (x, y) in names.items()}, class_names, names)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    import numpy as np

    if not path.is_file():
        raise InputError(
            f"npz:{path}: expected an npz file, found {'a folder' if path.is_dir() else 'nothing'}; check the path"
        )
    try:
        with contextlib.closing(np.load(path, allow_pickle=False)) as file:
            arrays = {name: file[name] for name in file.files}
        if others := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"no arrays: {others}")
    except MemoryError as error:
        raise InputError(
            f"npz:{path}: expected arrays that fit into memory, found larger ones or a damaged file; write fewer images"
        ) from error
    except Exception as error:  # a damaged archive fails in many ways
        raise InputError(
            f"npz:{path}: expected plain arrays in an npz file, found a damaged or pickled one; write it by numpy.savez"
        ) from error
    return arrays


def _names_in(arrays: dict[str, NDArray[Any]]) -> str:
    return some_of(sorted(arrays), 6) or "nothing"


register_reader(Reader("npz", "npz:PATH", _read, is_path=True))
