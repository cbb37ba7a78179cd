"""The user's own code: ``python:package.module:function``.

The function is called with a split, "train" or "test", and gives None where there is no such split, or

    (images, labels)                as NumPy arrays: uint8 (N, H, W), or (N, H, W, C) with C 1 or 3; integers (N,)
    (images, labels, class names)

or images as a torch tensor, uint8 (N, H, W) or (N, C, H, W). Without class names it is called for both splits, and the
classes are "0", "1", … up to the highest label of either. Modules in the working directory are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccf_plugin.errors import CCFError, InputError, one_line
from ccf_plugin.zoo.python_code import check_target, failed, load_object, running_user_code
from ccf_plugin.zoo.readers.reader import Arrays, Reader, register_reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXPECTED = "(images, labels), (images, labels, class names) or None"


def _read(target: str, *, splits: Sequence[str], root: Path, download: bool) -> Arrays:
    spec = f"python:{target}"
    function = load_object(spec)
    if not callable(function):
        raise InputError(f"{spec}: expected a function to call, found {type(function).__name__}")
    returned = {split: value for split in splits if (value := _call(spec, function, split)) is not None}
    if not returned:
        raise InputError(f"{spec}: expected a {' or '.join(splits)} split, found None; return its images and labels")
    if all(len(value) == 2 for value in returned.values()):
        for split in ("train", "test"):
            if split not in splits and (value := _call(spec, function, split)) is not None:
                returned[split] = value
    arrays = {
        split: (
            _images(f"{spec}: expected {split} images", value[0]),
            _labels(f"{spec}: expected {split} labels", value[1]),
        )
        for split, value in returned.items()
    }
    return Arrays(arrays, _class_names(spec, [value[2] for value in returned.values() if len(value) == 3]))


def _call(spec: str, function: Any, split: str) -> tuple[Any, ...] | None:
    call = f"{spec}({split!r})"
    try:
        with running_user_code(call):
            value = function(split)
    except (CCFError, MemoryError):
        raise
    except Exception as error:
        raise failed(call, error) from error
    if value is not None and (not isinstance(value, tuple) or len(value) not in (2, 3)):
        kind = f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__
        raise InputError(f"{call}: expected {_EXPECTED}, found {kind}")
    return value


def _images(expected: str, value: object) -> NDArray[Any]:
    """Channels last, as NumPy's are."""
    array = _array(expected, value)
    if array is value or array.ndim != 4:
        return array
    if array.shape[1] not in (1, 3):
        raise InputError(f"{expected} of shape (N, 1 or 3, H, W) in a tensor, found {array.shape}")
    return array.transpose(0, 2, 3, 1)


def _labels(expected: str, value: object) -> NDArray[Any]:
    import numpy as np

    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise InputError(f"{expected} in one dimension, found {one_line(error, 120)}") from error
    return _array(expected, value)


def _array(expected: str, value: object) -> NDArray[Any]:
    import numpy as np
    from torch import Tensor

    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, Tensor):
        raise InputError(f"{expected} as a NumPy array or a torch tensor, found {type(value).__name__}")
    try:
        array: NDArray[Any] = value.detach().cpu().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, bfloat16, without data
        raise InputError(f"{expected} that NumPy can read, found {one_line(error, 120)}") from error
    return array


def _class_names(spec: str, name_lists: Sequence[Any]) -> tuple[str, ...] | None:
    import numpy as np

    lists = [names.tolist() if isinstance(names, np.ndarray) else names for names in name_lists]
    for names in lists:
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            description = f"{type(names).__name__} {str(names)[:60]}"
            raise InputError(f"{spec}: expected class names as a list of text, found {description}")
        if list(names) != list(lists[0]):
            raise InputError(f"{spec}: expected the same class names for train and test, found others; give one list")
    return tuple(lists[0]) if lists else None


register_reader(Reader("python", "python:package.module:function", _read, check_target))
