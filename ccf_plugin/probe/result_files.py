"""The two files of a result: what they hold, how it is written, and what is looked at when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import InputError
from ccf_plugin.files import json_bytes, write_together
from ccf_plugin.probe.head import Head

if TYPE_CHECKING:
    from ccf_plugin.probe.result import CrossClassResult

FORMAT = 1
_LISTED_CLASSES = 2_000  # as text a matrix takes 25 bytes a number: 100 MB here, 12 GB for ImageNet-21k
_LISTED_NULL = 100  # likewise for the three matrices of the null model, which the .npz has as two vectors
ARRAYS: dict[str, Any] = {
    "matrix": np.float64,
    "class_attribution": np.float64,
    "counts": np.int64,
    "instance_matrix": np.float64,
    "confusion_clean": np.int64,
    "confusion_adversarial": np.int64,
    "confusion_unnamed": np.int64,
}
# The arrays of `jackknife.WithoutParts`, by their names in the file.
PARTS = {f"without_part_{name}": name for name in ("matrix", "chance", "instance_rows", "instance_columns")}
BITS = ("correct_clean", "correct")  # one bit an image, eight to a byte
_NUMBER = float | int | None
_PLAIN_FIELDS: dict[str, Any] = {
    "model": str | None,
    "data": dict | None,
    "threat": dict | None,
    "model_mode": str | None,
    "precision": str | None,
    "clean_accuracy": _NUMBER,
    "robust_accuracy": _NUMBER,
    "accuracy": _NUMBER,
    "clean_loss": _NUMBER,
    "robust_loss": _NUMBER,
    "average_instance_cas": _NUMBER,
    "logit_variance": _NUMBER,
    "mean_row_share": _NUMBER,
    "centred": bool,
    "versions": dict,
    "provenance": dict,
}
# What is written beside: made of the arrays, or read in a way of its own. All else is of a newer version.
_OTHER_FIELDS = {
    *("cas", "cas_normalised", "cas_excess", "instance_cas", "shared_part", "negative_part", "lengths", "null"),
    *("intervals", "in_logit_units", "gauge_note", "class_accuracy", "class_accuracy_clean", "counts", "matrix"),
    *("instance_matrix", "confusion_clean", "confusion_adversarial", "confusion_unnamed", "class_names"),
    *("head", "repeats", "format"),
}
# The fields that files of older versions lack, and the values that they stand for there.
_LATER_FIELDS: dict[str, Any] = {
    "accuracy": None,
    "clean_loss": None,
    "robust_loss": None,
    "repeats": [],
    "average_instance_cas": None,
    "logit_variance": None,
    "mean_row_share": None,
    "centred": False,
    "provenance": {},
}
_INSIDE: dict[str, dict[str, Any]] = {
    "head": {"name": str, "kind": str, "classes": int, "features": int, "history": list | None},
    "data": {"name": str, "split": str, "count": int, "input_size": list | None},
    "threat": {"eps": _NUMBER, "step_size": _NUMBER},
}


def plain(values: Any, most_rows: int | None = None) -> Any:
    """A number, or an array as lists, for JSON; NaN becomes None, and so does an array of more than ``most_rows``."""
    array = np.asarray(values)
    if values is None or (array.ndim > 0 and most_rows is not None and len(array) > most_rows):
        return None
    if array.dtype.kind == "f" and np.isnan(array).any():
        array = np.where(np.isnan(array), np.array(None), array)
    return array.tolist()


def describe(result: CrossClassResult) -> dict[str, Any]:
    """A result as plain JSON values; NaN becomes null, and so do matrices of more than 2,000 classes."""
    units = result.in_logit_units
    return {
        **result.unknown,
        "model": result.model,
        "head": None if result.head is None else {**asdict(result.head), "history": list(result.head.history)},
        "data": None if result.data is None else dict(result.data),
        "threat": None if result.threat is None else dict(result.threat),
        "model_mode": result.model_mode,
        "precision": result.precision,
        "clean_accuracy": result.clean_accuracy,
        "robust_accuracy": result.robust_accuracy,
        "accuracy": result.accuracy,
        "clean_loss": plain(result.clean_loss),
        "robust_loss": plain(result.robust_loss),
        "intervals": result.intervals(),
        "cas": result.cas,
        "cas_normalised": plain(result.cas_normalised),
        "cas_excess": plain(result.cas_excess),
        "instance_cas": result.instance_cas,
        "shared_part": result.shared_part,
        "negative_part": result.negative_part,
        "lengths": plain(result.lengths),
        "logit_variance": result.logit_variance,
        "in_logit_units": None if units is None else {name: plain(value) for name, value in units.items()},
        "mean_row_share": result.mean_row_share,
        "centred": result.centred,
        "gauge_note": result.gauge_note,
        "null": result.null.to_json(_LISTED_NULL),
        "class_accuracy": plain(result.class_accuracy),
        "class_accuracy_clean": plain(result.class_accuracy_clean),
        "counts": result.counts.tolist(),
        "class_names": None if result.class_names is None else list(result.class_names),
        "matrix": plain(result.matrix, _LISTED_CLASSES),
        "instance_matrix": plain(result.instance_matrix, _LISTED_CLASSES),
        "confusion_clean": plain(result.confusion_clean, _LISTED_CLASSES),
        "confusion_adversarial": plain(result.confusion_adversarial, _LISTED_CLASSES),
        "confusion_unnamed": plain(result.confusion_unnamed, _LISTED_CLASSES),
        "versions": dict(result.versions),
        "repeats": [dict(repeat) for repeat in result.repeats],
        "provenance": dict(result.provenance),
        "format": FORMAT,
    }


def result_bytes(result: CrossClassResult) -> dict[str, bytes]:
    """The contents of the .npz (the arrays; those that are None are left out) and the .json (the rest), by ending."""
    arrays = {name: getattr(result, name) for name in (*ARRAYS, *BITS)}
    if result.without_parts is not None:
        arrays |= {key: getattr(result.without_parts, name) for key, name in PARTS.items()}
    if len(result.matrix) > _LISTED_NULL:
        arrays |= {"null_mean_root": result.null.mean_root, "null_sd_root": result.null.sd_root}
    given = {name: array for name, array in arrays.items() if array is not None}
    packed: dict[str, Any] = {name: np.packbits(array) if name in BITS else array for name, array in given.items()}
    buffer = BytesIO()
    np.savez_compressed(buffer, **packed)
    return {".npz": buffer.getvalue(), ".json": json_bytes(result.to_json())}


def write_result(path: str | Path, contents: Mapping[str, bytes]) -> tuple[Path, Path]:
    """Write both files of `result_bytes`, together.

    Raises:
        OSError: the folder is missing or not writable; nothing half-written remains.
    """
    npz, description = _paths(path)
    write_together({npz: contents[".npz"], description: contents[".json"]})
    return npz, description


def read_result(path: str | Path) -> dict[str, Any]:
    """The fields of the result that `write_result` wrote; nothing is unpickled.

    Raises:
        InputError: a file is missing, is not such a result, or is of a newer format.
    """
    npz, description = _paths(path)
    for file in (npz, description):
        if not file.is_file():
            raise InputError(f"expected the result file {file}, found none; a result is an .npz and a .json together")
    try:
        described = {**_LATER_FIELDS, **json.loads(description.read_text(encoding="utf-8"))}
        version = int(described["format"])
        with np.load(npz, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in (*ARRAYS, *PARTS, *BITS) if name in archive.files}
        if version > FORMAT:
            raise InputError(
                f"expected a result of format {FORMAT} or older, found {version} in {description}; update ccf_plugin"
            )
        arrays = _checked_arrays(arrays)
        _check_fields(described, len(arrays["counts"]))
        if differing := [name for name in ARRAYS if _differ(described.get(name), arrays.get(name))]:
            raise InputError(
                f"expected two files of one result, found that {npz} and {description.name} differ in "
                f"{', '.join(differing)}; copy both from one measurement"
            )
        return {
            **{name: arrays[name] for name in ("matrix", "class_attribution", "counts")},
            **arrays,
            **{name: described[name] for name in _PLAIN_FIELDS},
            "head": None if described["head"] is None else _head(described["head"]),
            "class_names": None if described["class_names"] is None else tuple(described["class_names"]),
            "repeats": tuple(described["repeats"]),
            "unknown": {name: described[name] for name in described if name not in {*_PLAIN_FIELDS, *_OTHER_FIELDS}},
        }
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's file can provoke in two parsers
        raise InputError(
            f"expected a result saved by CrossClassResult.save, found something else in {description}: {error}"
        ) from error


def _checked_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The arrays in their dtypes; another exception where they are none of K ≥ 2 classes and n features."""
    checked = {
        name: arrays[name].astype(dtype, casting="same_kind") for name, dtype in ARRAYS.items() if name in arrays
    }
    classes, features = checked["class_attribution"].shape
    shapes = {"class_attribution": (classes, features), "counts": (classes,)}
    for name, array in checked.items():
        if classes < 2 or array.shape != shapes.get(name, (classes, classes)):
            raise ValueError(f"{name} of shape {array.shape}")
        if np.isinf(array).any():
            raise ValueError(f"infinite numbers in {name}")
        if array.dtype == np.int64 and (array < 0).any():
            raise ValueError(f"negative numbers in {name}")
    for name in arrays.keys() & PARTS.keys():
        checked[name] = arrays[name].astype(np.float32, casting="same_kind")
        shape = (classes, 20) if PARTS[name] == "chance" else (classes, 20, classes)  # `jackknife.PARTS`
        is_whole = {"without_part_matrix", "without_part_chance"} <= arrays.keys()
        if checked[name].shape != shape or np.isinf(checked[name]).any() or not is_whole:
            raise ValueError(f"{name} of shape {checked[name].shape}, alone or with infinite numbers")
    for name in BITS:
        if name in arrays:
            number = int(checked["counts"].sum())
            if arrays[name].dtype != np.uint8 or arrays[name].shape != ((number + 7) // 8,):
                raise ValueError(f"{name} of shape {arrays[name].shape} for {number} images")
            checked[name] = np.unpackbits(arrays[name], count=number).astype(bool)
    return checked


def _check_fields(described: Mapping[str, Any], classes: int) -> None:
    """Raise ValueError, KeyError or TypeError where the JSON of a result of K classes is not what was written."""
    checks = [(name, described[name], kind) for name, kind in _PLAIN_FIELDS.items()]
    for group, kinds in _INSIDE.items():
        inside = described[group]
        if isinstance(inside, dict):
            checks += [(f"{group}.{name}", inside.get(name), kind) for name, kind in kinds.items()]
    for name, value, kind in checks:
        if not isinstance(value, kind):
            raise ValueError(f"{name} of {value!r}")
    plain_values = [value for name, value in described.items() if name not in _OTHER_FIELDS]
    json.dumps(plain_values, allow_nan=False)  # ValueError at 1e999
    history = (described["head"] or {}).get("history", [])
    if not all(isinstance(line, str) for line in history):
        raise ValueError(f"head.history of {history!r}")
    names = described["class_names"]
    if names is not None and not (
        isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"other names than those of {classes} classes")


def _differ(listed: Any, array: NDArray[Any] | None) -> bool:
    """Whether numbers in the JSON are others than those of the .npz, where both have them."""
    if listed is None or array is None:
        return False
    numbers = np.array(listed, dtype=np.float64)  # None becomes NaN
    return numbers.shape != array.shape or not np.allclose(numbers, array, rtol=1e-9, equal_nan=True)


def _head(described: Mapping[str, Any]) -> Head:
    """What the JSON says of a head; what newer versions add is left out."""
    known = {field.name: described[field.name] for field in fields(Head) if field.name in described}
    return Head(**{**known, "history": tuple(known.get("history", ()))})


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".npz", ".json", ".png") else path
    return stem.parent / f"{stem.name}.npz", stem.parent / f"{stem.name}.json"
