"""Two models side by side under one attack on the same images: what the first shares that the second does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccf_plugin.errors import InputError, UnavailableError, some_of
from ccf_plugin.measure.choices import Choices
from ccf_plugin.measure.subject import Subject, load_subject
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.probe.confidence import Interval, difference_of_cas
from ccf_plugin.runs.layout import checkpoint_of
from ccf_plugin.threat import show_pixels
from ccf_plugin.zoo.checkpoints import read_metadata
from ccf_plugin.zoo.python_code import code_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

Side = Subject | CrossClassResult  # a model to measure, or a result that was
Pair = tuple[str, str, float, float]  # two classes, what they share in the first model and in the second

# What says where and how to measure, and therefore nothing where both sides are results.
_ATTACK = ("attack", "norm", "eps", "step_size", "steps")
_MEASURING = ("data", "clean", *_ATTACK, "limit", "head", "output", "seed", "precision")
_FIGURES = ("clean_accuracy", "robust_accuracy", "accuracy", "cas", "cas_normalised", "instance_cas")


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of CAS over resampled test images, the same for both models, and of its paired difference."""

    first: Interval
    second: Interval
    difference: Interval
    level: float
    resamples: int


@dataclass(frozen=True)
class Comparison:
    """Two results under the same conditions. Differences are first − second: positive is what the second lacks."""

    first: CrossClassResult
    second: CrossClassResult
    bootstrap: Bootstrap | None = None

    @property
    def matrix(self) -> NDArray[np.float64]:
        """C_first − C_second, (K, K) float64 (the paper's Figure 4); NaN where either is."""
        return np.asarray(self.first.matrix - self.second.matrix)

    @property
    def differences(self) -> dict[str, float | None]:
        """ΔCAS, ΔI-CAS and the differences of accuracies (fractions); None where a side has no such figure."""
        found: dict[str, float | None] = {}
        for name in _FIGURES:
            first, second = getattr(self.first, name), getattr(self.second, name)
            found[name] = None if first is None or second is None else first - second
        return found

    def lost(self, count: int = 5) -> list[Pair]:
        """The pairs of classes whose share in CAS falls most from first to second: largest fall first."""
        return self._moved(1.0, count)

    def gained(self, count: int = 5) -> list[Pair]:
        """The pairs of classes whose share in CAS rises most from first to second: largest rise first."""
        return self._moved(-1.0, count)

    def _moved(self, sign: float, count: int) -> list[Pair]:
        moved = np.triu(sign * (self.first.pair_contributions() - self.second.pair_contributions()), 1)
        moved[np.isnan(self.matrix)] = 0.0  # a class that one of the two has no image of
        pairs = [np.unravel_index(flat, moved.shape) for flat in np.argsort(-moved, axis=None, kind="stable")[:count]]
        names, first, second = self.first.names, self.first.matrix, self.second.matrix
        return [(names[i], names[j], float(first[i, j]), float(second[i, j])) for i, j in pairs if moved[i, j] > 0]

    def to_json(self, pairs: int = 10) -> dict[str, Any]:
        """The comparison as plain JSON values; NaN becomes null."""
        return {
            "first": _figures(self.first),
            "second": _figures(self.second),
            "difference": self.differences,
            "matrix_difference": [[None if np.isnan(v) else float(v) for v in row] for row in self.matrix],
            "class_names": list(self.first.names),
            "lost": [_pair(pair) for pair in self.lost(pairs)],
            "gained": [_pair(pair) for pair in self.gained(pairs)],
            "bootstrap": None if self.bootstrap is None else vars(self.bootstrap),
            "data": None if self.first.data is None else dict(self.first.data),
            "threat": None if self.first.threat is None else dict(self.first.threat),
        }


def compare(first: CrossClassResult, second: CrossClassResult, *, bootstrap: int | None = None) -> Comparison:
    """Put two results side by side.

    Args:
        bootstrap: resample the test images so many times for 95 % intervals of CAS and ΔCAS; no attack is run again.

    Raises:
        InputError: other classes, data, count or attack (what differs is named); ``bootstrap`` of results from files,
            which hold no single samples.
    """
    check_alike(first, second)
    if bootstrap is None:
        return Comparison(first, second)
    intervals = [side.confidence(bootstrap=bootstrap, instances=False) for side in (first, second)]
    assert first.samples is not None and second.samples is not None  # noqa: PT018, S101  (confidence asked for them)
    difference = difference_of_cas(first.samples, second.samples, len(first.matrix), bootstrap=bootstrap)
    found = Bootstrap(intervals[0].cas, intervals[1].cas, difference, intervals[0].level, bootstrap)
    return Comparison(first, second, found)


def name_sides(first: str, second: str | None) -> tuple[str, str]:
    """Both sides; a run alone is its best checkpoint against its last.

    Raises:
        InputError: anything else alone.
        UnavailableError: the best epoch of that run is its last.
    """
    if second is not None:
        return first, second
    best, last = checkpoint_of(Path(first), "best"), checkpoint_of(Path(first), "last")
    if not (best.is_file() and last.is_file()):
        raise InputError(
            f"expected two models, or one run folder with {best.name} and {last.name}, found only {first!r}"
        )
    epochs = [(read_metadata(path) or {}).get("epoch") for path in (best, last)]
    if epochs[0] is not None and epochs[0] == epochs[1]:
        raise UnavailableError(
            f"expected a run that went on after its best epoch, found epoch {epochs[0]} to be the best and the last of "
            f"{first}; name another model or checkpoint beside it"
        )
    return str(best), str(last)


def load_sides(first: str, second: str, choices: Choices, checkpoints: list[Path]) -> tuple[Side, Side]:
    """Load both sides and check that they will be measured alike, before anything is measured.

    A model beside a saved result takes the result's data and attack where the choices leave them open.

    Args:
        checkpoints: the weights of the sides that are ``python:`` models, in their order; or none.

    Raises:
        InputError: as ``load_subject``, ``CrossClassResult.load`` and ``check_alike`` do; choices that nothing needs.
    """
    names = (first, second)
    own_code = [name for name in names if name.startswith("python:")]
    if checkpoints and len(checkpoints) != len(own_code):
        raise InputError(
            f"expected one --checkpoint for each python: model ({len(own_code)}), found {len(checkpoints)}"
        )
    results = {name: CrossClassResult.load(name) for name in names if is_result(name)}
    if len(results) == len(set(names)):
        given = [name for name in _MEASURING if getattr(choices, name) != getattr(Choices(), name)]
        if given:
            options = ", ".join("--" + name.replace("_", "-") for name in given)
            raise InputError(f"expected a model to measure with {options}, found two results that are measured already")
    elif results:
        choices = _like(next(iter(results.values())), choices)
    files = iter(checkpoints)
    sides: list[Side] = []
    for name in names:
        checkpoint = next(files, None) if name.startswith("python:") else None
        side = results.get(name) or load_subject(name, replace(choices, checkpoint=checkpoint))
        sides.append(side)
    check_alike(*sides)
    return sides[0], sides[1]


def check_alike(first: Side, second: Side) -> None:
    """Raise InputError, naming every field that differs, unless both have the same classes, data, count and attack."""
    mine, other = _conditions(first), _conditions(second)
    differing = [
        f"{name} {_shown(name, mine[name])} and {_shown(name, other[name])}"
        for name in mine
        if name in other and mine[name] != other[name]
    ]
    if not differing and _counts(first).tolist() != _counts(second).tolist():
        differing = ["other numbers of images in the classes"]
    if differing:
        raise InputError(
            f"expected the same data and attack for both, found {'; '.join(differing)}; "
            "state them for both (--data, --limit, --eps, --precision, …), or measure both anew"
        )


def is_result(name: str) -> bool:
    """Whether a side names a saved result: its .npz or .json, or what both begin with."""
    path = Path(name)
    stem = path.with_suffix("") if path.suffix in (".npz", ".json") else path
    files = [stem.parent / f"{stem.name}{suffix}" for suffix in (".npz", ".json")]
    return path.suffix in (".npz", ".json") or all(file.is_file() for file in files)


def _like(result: CrossClassResult, choices: Choices) -> Choices:
    """The choices, with the result's data and attack where they are open."""
    known: dict[str, Any] = {}
    if result.data is not None:
        known = {"data": result.data.get("name"), "limit": result.data.get("count")}
    if result.threat is not None and not choices.clean:
        known |= {name: result.threat.get(name) for name in _ATTACK}
    attacked = any(getattr(choices, name) is not None for name in _ATTACK)
    known["clean"] = choices.clean or (result.threat is None and not attacked)
    open_fields = [field.name for field in fields(choices) if getattr(choices, field.name) is None]
    for name, code in code_in({name: value for name, value in known.items() if name in open_fields}):
        raise InputError(f"expected no code named by a file, found {code}; if you trust it, add --{name} {code}")
    return replace(choices, **{name: value for name, value in known.items() if name == "clean" or name in open_fields})


def _conditions(side: Side) -> dict[str, Any]:
    """What has to be equal, by the name that a message gives it; only what is known."""
    data: Mapping[str, Any]
    threat: Mapping[str, Any] | None
    names: tuple[str, ...] | None
    own: dict[str, Any]
    if isinstance(side, Subject):
        data, threat, names = {"name": side.data_name, "split": "test"}, side.describe_threat(), side.classes
        own = {"mode": "eval"}
    else:
        data, threat, names = side.data or {}, side.threat, side.class_names
        own = {"mode": side.model_mode, "precision": side.precision}
    counts = _counts(side)
    found: dict[str, Any] = {"classes": len(counts)}
    if names is not None:
        found["class names"] = tuple(names)
    found |= {name: data[key] for name, key in (("data", "name"), ("split", "split")) if key in data}
    found |= {"images": int(counts.sum()), **own}
    threat = threat or {}
    found |= {name: threat.get(name) for name in ("attack", "norm", "eps", "step_size", "steps")}
    if "precision" in threat:
        found["precision of the attack"] = threat["precision"]
    return found


def _counts(side: Side) -> NDArray[np.int64]:
    if isinstance(side, Subject):
        return np.bincount(side.test.labels.numpy(), minlength=len(side.classes))
    return side.counts


def _shown(name: str, value: Any) -> str:
    if name in ("eps", "step_size"):
        return show_pixels(value)
    if isinstance(value, tuple):
        return some_of(value)
    return "none" if value is None else str(value)


def _figures(result: CrossClassResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ("model", *_FIGURES)}


def _pair(pair: Pair) -> dict[str, Any]:
    return {"classes": [pair[0], pair[1]], "first": pair[2], "second": pair[3]}
