"""Arrays in a file: ``npz:PATH`` with x and y (test split), or x_train, y_train, x_test, y_test; optionally classes.

Other usual names are taken as well, in any case: images/labels, data/targets, train_images/train_labels (MedMNIST), …;
arrays of a validation split stand for the test split where there is none.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ccf_plugin.errors import InputError, some_of
from ccf_plugin.zoo.readers.reader import Arrays, Reader, register_reader
from ccf_plugin.zoo.split_names import TEST, TRAIN, VALIDATION, find_splits

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Names of images, and of the labels that go with them; arr_0 and arr_1 are numpy.savez's own.
_PAIRS = {
    "x": "y",
    "images": "labels",
    "image": "label",
    "imgs": "labels",
    "img": "label",
    "data": "targets",
    "samples": "targets",
    "inputs": "targets",
    "arr_0": "arr_1",
}
_LABELS = {*_PAIRS.values(), "target"}
_CLASSES = ("classes", "class_names", "label_names")
_UNSPLIT = "test"


class _Key(NamedTuple):
    """What an array's name says: its split (None where it names none), and what it holds."""

    split: str | None
    content: str


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> Arrays:
    path = Path(name)
    arrays = _load(path)
    pairs, notes = _pairs(path, arrays, splits)
    if not any(split in pairs for split in splits):
        expected = " or ".join("x_train/y_train" if split == "train" else "x/y" for split in splits)
        raise InputError(f"npz:{path}: expected arrays {expected}, found {_names_in(arrays)}; rename them")
    classes = next((arrays[key] for key in _CLASSES if key in arrays), None)
    if classes is not None and classes.ndim != 1:
        raise InputError(f"npz:{path}: expected classes of one dimension, found {classes.shape}")
    class_names = None if classes is None else [_text(label) for label in classes.tolist()]
    # All splits of the file, so that the number of classes does not depend on those asked for.
    return Arrays({split: (arrays[x], arrays[y]) for split, (x, y) in pairs.items()}, class_names, pairs, notes)


def _pairs(
    path: Path, arrays: dict[str, NDArray[Any]], splits: Sequence[str]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The names of each split's images and labels, and notes."""
    keys = {name: key for name in arrays if (key := _meaning(name)) is not None}
    images: dict[str | None, list[str]] = {}
    for name, (split, content) in keys.items():
        if content in _PAIRS:
            images.setdefault(split, []).append(name)
    by_split = {split or _UNSPLIT: split for split in (None, *images) if split in images}
    chosen, notes = find_splits(by_split, splits)
    pairs = {}
    for split, named in chosen.items():
        x = _only(path, [name for name in images[named] if keys[name].content == "x"] or images[named], "images")
        fitting = [name for name, key in keys.items() if key.split == named and key.content in _LABELS]
        partner = _PAIRS[keys[x].content]
        y = [name for name in fitting if keys[name].content == partner] or fitting
        if not y:
            missing = re.sub(rf"(?i)(?<![a-z]){keys[x].content}(?![a-z])", partner, x)
            present = _names_in(arrays)
            raise InputError(f"npz:{path}: expected {missing}, an integer per image of {x}, found {present}")
        pairs[split] = (x, _only(path, y, f"labels of {x}"))
    return pairs, notes


def _meaning(name: str) -> _Key | None:
    """ "x_test", "test_images", "Y": the split and the content that a name is made of; None for other names."""
    lowered = name.lower()
    if lowered in _PAIRS or lowered in _LABELS:
        return _Key(None, lowered)
    words = re.split(r"[_\-. ]", lowered)
    for split, content in ((words[0], words[1:]), (words[-1], words[:-1])):
        if split in TRAIN + TEST + VALIDATION and len(content) == 1 and content[0] in {*_PAIRS, *_LABELS}:
            return _Key(split, content[0])
    return None


def _only(path: Path, names: Sequence[str], role: str) -> str:
    if len(names) > 1:
        raise InputError(f"npz:{path}: expected one array of {role}, found {some_of(names, 6)}; leave the others out")
    return names[0]


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


def _text(label: object) -> str:
    return label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else str(label)


def _names_in(arrays: dict[str, NDArray[Any]]) -> str:
    return some_of(sorted(arrays), 6) or "nothing"


register_reader(Reader("npz", "npz:PATH", _read, is_path=True))
