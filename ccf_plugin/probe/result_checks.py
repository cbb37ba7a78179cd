"""What the two files of a result must hold, so that whoever reads one need not look again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAYS = {"matrix": np.float64, "class_attribution": np.float64, "counts": np.int64, "instance_matrix": np.float64}
_NUMBER = float | int | None
PLAIN_FIELDS: dict[str, Any] = {
    "model": str | None,
    "data": dict | None,
    "threat": dict | None,
    "model_mode": str | None,
    "precision": str | None,
    "clean_accuracy": _NUMBER,
    "robust_accuracy": _NUMBER,
    "accuracy": _NUMBER,
    "versions": dict,
}
# What files of older versions lack, and what it was for them.
_LATER_FIELDS: dict[str, Any] = {"accuracy": None, "repeats": []}
_INSIDE: dict[str, dict[str, Any]] = {
    "head": {"name": str, "kind": str, "classes": int, "features": int, "history": list | None},
    "data": {"name": str, "split": str, "count": int},
    "threat": {"eps": _NUMBER, "step_size": _NUMBER},
}


def with_later_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a result's JSON, with those that its version did not know yet."""
    return {**_LATER_FIELDS, **fields}


def checked_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The arrays in their dtypes; another exception where they are none of K ≥ 2 classes and n features."""
    checked = {name: array.astype(ARRAYS[name], casting="same_kind") for name, array in arrays.items()}
    classes, features = checked["class_attribution"].shape
    shapes = {"class_attribution": (classes, features), "counts": (classes,)}
    for name, array in checked.items():
        if classes < 2 or array.shape != shapes.get(name, (classes, classes)):
            raise ValueError(f"{name} of shape {array.shape}")
        if np.isinf(array).any():
            raise ValueError(f"infinite numbers in {name}")
    return checked


def check_fields(fields: Mapping[str, Any], classes: int) -> None:
    """Raise ValueError, KeyError or TypeError where the JSON of a result of K classes is not what ``save`` writes."""
    found = [(name, fields[name], kind) for name, kind in PLAIN_FIELDS.items()]
    for group, kinds in _INSIDE.items():
        inside = fields[group]
        if isinstance(inside, dict):
            found += [(f"{group}.{name}", inside.get(name), kind) for name, kind in kinds.items()]
    for name, value, kind in found:
        if not isinstance(value, kind):
            raise ValueError(f"{name} of {value!r}")
    json.dumps([fields[name] for name in PLAIN_FIELDS], allow_nan=False)  # ValueError at 1e999
    history = (fields["head"] or {}).get("history", [])
    if not all(isinstance(one, str) for one in history):
        raise ValueError(f"head.history of {history!r}")
    names = fields["class_names"]
    if names is not None and not (
        isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"other names than those of {classes} classes")
