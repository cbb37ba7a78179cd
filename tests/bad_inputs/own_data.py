"""What a user's own function for data may return, fail or be, for ``python:bad_inputs.own_data:NAME``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bad_inputs.cases import SET, Case, X, Y, probe

_COLOUR = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)

# What the function returns for the test split, and what the one line says of it.
_RETURNED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "expected a test split, found None"),
    "images alone": (X, "found ndarray"),
    "one value": ((X,), "expected (images, labels), (images, labels, class names) or None, found 1 values"),
    "a list": ([X, Y], "found list"),
    "a generator": ((value for value in (X, Y)), "found generator"),
    "lists of pixels": ((X.tolist(), Y), "expected test images as a NumPy array or a torch tensor, found list"),
    "floats": ((X / 255, Y), "expected test images of uint8 in 0..255, found float64; scale and convert it"),
    "a float tensor": ((_COLOUR / 255, Y), "expected test images of uint8 in 0..255, found float32"),
    "a bfloat16 tensor": ((_COLOUR.bfloat16(), Y), "expected test images that NumPy can read, found TypeError"),
    "a tensor without data": ((_COLOUR.to("meta"), Y), "expected test images that NumPy can read"),
    "a sparse tensor": ((_COLOUR.to_sparse(), Y), "expected test images that NumPy can read"),
    "an array channels first": ((_COLOUR.numpy(), Y), "(N, H, W, 1 or 3) or (N, H, W), found (10, 3, 8, 8)"),
    "a tensor channels last": ((_COLOUR.permute(0, 2, 3, 1), Y), "(N, 1 or 3, H, W) in a tensor, found (10, 8, 8, 3)"),
    "one image": ((X[0], Y), "found (8, 8)"),
    "a number": ((np.uint8(3), Y), "found uint8"),
    "a number in an array": ((np.array(3, np.uint8), Y), "found ()"),
    "no images": ((X[:0], Y[:0]), "found (0, 8, 8)"),
    "images without pixels": ((X[:, :0], Y), "found (10, 0, 8)"),
    "objects": ((np.array([None] * 10), Y), "found object"),
    "too few labels": ((X, Y[:9]), "expected test labels of 10 integers, one per image of test images, found int64"),
    "labels of several an image": ((X, np.ones((10, 3), int)), "of shape (10, 3)"),
    "labels of shares": ((X, torch.eye(10) / 2), "found float32 of shape (10, 10)"),
    "labels of fractions": ((X, Y / 2), "found float64"),
    "labels of text": ((X, list("abcdefghij")), "found <U1"),
    "labels of no shape": ((X, [[0], [1, 2]]), "expected test labels in one dimension"),
    "labels of huge numbers": ((X, [2**70] * 10), "found object"),
    "labels below 0": ((X, Y - 1), "expected labels of 0 and above in test labels, found -1"),
    "labels of 10^18": ((X, Y + 10**18), "expected labels under 1,000,000"),
    "labels of nothing": ((X, None), "expected test labels as a NumPy array or a torch tensor, found NoneType"),
    "too few class names": ((X, Y, ["a", "b"]), "expected labels 0 to 1 (see classes), found 9"),
    "class names in one word": ((X, Y, "abcdefghij"), "expected class names as a list of text, found str"),
    "class names of numbers": ((X, Y, list(range(10))), "expected class names as a list of text, found list"),
    "class names in a table": ((X, Y, np.full((10, 2), "a")), "expected class names as a list of text"),
    "class names of nothing": ((X, Y, None), "expected class names as a list of text, found NoneType"),
    "other images than the model's": ((X[:, :7, :7], Y), "refuses them"),
}


def _raises(split: str) -> None:
    raise ZeroDivisionError(f"no {split}\nhere")


def _without_parameters() -> None: ...


def _other_names(split: str) -> tuple[Any, ...]:
    return X, Y, [f"{split} {label}" for label in range(10)]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "raises": _raises,
    "without_parameters": _without_parameters,
    "other_names": _other_names,
    "test_alone": lambda split: (X, Y) if split == "test" else None,
}
number = 3


def __getattr__(name: str) -> Callable[..., Any]:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    if name in _RETURNED:
        return lambda split: _RETURNED[name][0] if split == "test" else None
    raise AttributeError(name)


_HERE = "python:bad_inputs.own_data"
_TRAIN = ["train", "digits", *SET, "--set"]

OWN_DATA = {
    **{name: Case(probe(f"{_HERE}:{name}"), says) for name, (_, says) in _RETURNED.items()},
    "a function that fails": Case(
        probe(f"{_HERE}:raises"),
        "('test'): expected it to run, found ZeroDivisionError: no test here (own_data.py",
    ),
    "a function that takes no split": Case(probe(f"{_HERE}:without_parameters"), "takes 0 positional arguments"),
    "other names for train than for test": Case(
        [*_TRAIN, f"data.name={_HERE}:other_names"], "the same class names for train and test"
    ),
    "no train split": Case([*_TRAIN, f"data.name={_HERE}:test_alone"], "train and a test split"),
    "a number for a function": Case(probe(f"{_HERE}:number"), "expected a function to call, found int"),
    "no such function": Case(probe(f"{_HERE}:numbr"), "own_data has no 'numbr'"),
    "no such module": Case(probe("python:nothing.here:data"), "importing nothing.here failed"),
    "no function named": Case(probe("python:bad_inputs"), "expected python:package.module:name"),
    "a path for a module": Case(probe("python:bad/data.py:data"), "expected python:package.module:name"),
}
