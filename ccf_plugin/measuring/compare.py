"""Two models side by side under one attack on the same images: what the first shares that the second does not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ccf_plugin.errors import Fault, InputError, UnavailableError, counted, some_of
from ccf_plugin.measuring.evaluate import versions
from ccf_plugin.measuring.names import is_result
from ccf_plugin.measuring.paired import (
    BOOTSTRAP,
    AccuracyTest,
    PairedIntervals,
    accuracy_tests,
    describe_tests,
    paired_intervals,
)
from ccf_plugin.measuring.provenance import fingerprint, with_command
from ccf_plugin.measuring.settings import WEIGHT_SETTINGS, Settings
from ccf_plugin.measuring.subject import Subject, load_subject
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.probe.classes import top_pairs
from ccf_plugin.probe.confidence import NO_PARTS
from ccf_plugin.probe.jackknife import Interval
from ccf_plugin.probe.presentation import conditions_of_images
from ccf_plugin.probe.result_files import plain
from ccf_plugin.runs.layout import checkpoint_of
from ccf_plugin.threat import show_pixels
from ccf_plugin.zoo.checkpoints import read_metadata
from ccf_plugin.zoo.models import takes_checkpoint
from ccf_plugin.zoo.python_code import code_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

Side = Subject | CrossClassResult  # a model to measure, or a result that was
Pair = tuple[str, str, float, float]  # two classes, what they share in the first model and in the second

_ATTACK = ("attack", "norm", "eps", "step_size", "steps")
# Settings that say where things lie and how fast to measure: nothing about what a result holds.
_NOT_MEASURED = (*WEIGHT_SETTINGS, "pretrained", "model_dir", "data_root", "download", "batch_size", "device")
_FIGURES = ("clean_accuracy", "robust_accuracy", "accuracy", "cas", "cas_excess", "cas_normalised", "instance_cas")


@dataclass(frozen=True)
class Comparison:
    """Two results under the same conditions. Differences are first − second: positive is what the second lacks."""

    first: CrossClassResult
    second: CrossClassResult
    paired: PairedIntervals | None = None

    @cached_property
    def accuracy_tests(self) -> dict[str, AccuracyTest]:
        """Tests of the accuracies, paired by images, where both results have records of the images."""
        return accuracy_tests(self.first, self.second)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """C_first − C_second, (K, K) float64 (the paper's Figure 4); NaN where either is."""
        return np.asarray(self.first.matrix - self.second.matrix)

    @property
    def differences(self) -> dict[str, float | None]:
        """ΔCAS, ΔI-CAS and the differences of accuracies (fractions); None where a side has no such figure."""
        differences: dict[str, float | None] = {}
        for name in _FIGURES:
            first, second = _figure(self.first, name), _figure(self.second, name)
            differences[name] = None if first is None or second is None else first - second
        return differences

    @property
    def uncounted(self) -> NDArray[np.bool_]:
        """The pairs whose C is negative in both, (K, K) bool: they move ``matrix``, and CAS counts them in neither."""
        return np.asarray((self.first.matrix < 0) & (self.second.matrix < 0))

    @property
    def uncounted_pairs(self) -> str:
        """How many pairs of classes those are: "3 of 45 pairs"; "" for none."""
        number, known = (int(np.triu(pairs, 1).sum()) for pairs in (self.uncounted, ~np.isnan(self.matrix)))
        return f"{number} of {counted(known, 'pair')}" if number else ""

    def lost(self, count: int = 5) -> list[Pair]:
        """The pairs of classes whose share in CAS falls most from first to second: largest fall first."""
        return self._moved(1.0, count)

    def gained(self, count: int = 5) -> list[Pair]:
        """The pairs of classes whose share in CAS rises most from first to second: largest rise first."""
        return self._moved(-1.0, count)

    def _moved(self, sign: float, count: int) -> list[Pair]:
        moved = sign * (self.first.pair_contributions() - self.second.pair_contributions())
        moved[np.isnan(self.matrix)] = np.nan  # a class that one of the two has no image of
        names, first, second = self.first.names, self.first.matrix, self.second.matrix
        pairs = top_pairs(moved, count, above=0.0)
        return [(names[i], names[j], float(first[i, j]), float(second[i, j])) for i, j in pairs]

    def bands(self, pairs: Sequence[Pair]) -> list[Interval] | None:
        """The simultaneous band of C_first − C_second of each of these pairs; None without intervals."""
        if self.paired is None:
            return None
        names = self.first.names
        return [self.paired.bands.band(names.index(name), names.index(other)) for name, other, _, _ in pairs]

    def to_json(self, pairs: int = 10) -> dict[str, Any]:
        """The comparison as plain JSON values; NaN becomes null."""
        return {
            "first": _figures(self.first),
            "second": _figures(self.second),
            "difference": self.differences,
            "accuracy_tests": describe_tests(self.accuracy_tests),
            "matrix_difference": plain(self.matrix),
            "negative_in_both": int(np.triu(self.uncounted, 1).sum()),
            "class_names": list(self.first.names),
            "lost": self._described(self.lost(pairs)),
            "gained": self._described(self.gained(pairs)),
            "bootstrap": None if self.paired is None else self.paired.cas_to_json(),
            "paired": None if self.paired is None else self.paired.to_json(),
            "data": None if self.first.data is None else dict(self.first.data),
            "threat": None if self.first.threat is None else dict(self.first.threat),
            "provenance": comparison_provenance(self.first, self.second, self._asked_bootstrap),
            "versions": versions(),
        }

    @property
    def _asked_bootstrap(self) -> int | None:
        """How many draws of the bands were asked for; None where nobody did."""
        resamples = BOOTSTRAP if self.paired is None else self.paired.bands.resamples
        return None if resamples == BOOTSTRAP else resamples

    def _described(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        described = [_pair(pair) for pair in pairs]
        for pair, (low, high) in zip(described, self.bands(pairs) or (), strict=False):
            pair |= {"band": [low, high], "survives": not low <= 0 <= high}
        return described


def compare(first: CrossClassResult, second: CrossClassResult, *, bootstrap: int | None = None) -> Comparison:
    """Put two results side by side, with intervals where both have them (``measuring.paired``); no attack is run again.

    Args:
        bootstrap: how often the bands of all pairs are drawn; None: 1,000 times, where there are intervals.

    Raises:
        InputError: other classes, data, count or attack (what differs is named); ``bootstrap`` of results without
            intervals.
    """
    check_alike(first, second)
    paired = paired_intervals(first, second, bootstrap=BOOTSTRAP if bootstrap is None else bootstrap)
    if bootstrap is not None and paired is None:
        raise InputError(NO_PARTS)
    return Comparison(first, second, paired)


def comparison_provenance(first: Side, second: Side, bootstrap: int | None = None) -> dict[str, Any]:
    """What a comparison's figures depend on, see ``measuring.provenance``: the two sides', and the resamples."""
    return with_command({"first": _provenance(first), "second": _provenance(second), "bootstrap": bootstrap})


def _provenance(side: Side) -> dict[str, Any]:
    if isinstance(side, Subject):
        known = side.provenance(instances=True)
    else:  # a result of a run, of an older version or of somebody's own loop does not say of which weights it is
        figures = fingerprint([torch.from_numpy(side.matrix), torch.from_numpy(side.class_attribution)])
        known = dict(side.provenance)
        known |= {} if "weights" in known else {"figures": figures}
    return {name: value for name, value in known.items() if name != "command"}


def name_sides(first: str, second: str | None) -> tuple[str, str]:
    """The names of both sides. A run alone, or its two checkpoints by name, is its best checkpoint against its last.

    Raises:
        InputError: anything else alone.
        UnavailableError: the best epoch of that run is its last.
    """
    run = Path(first)
    best, last = checkpoint_of(run, "best"), checkpoint_of(run, "last")
    if second is not None:
        run = Path(first).parent
        best, last = Path(first), Path(second)
        if {best, last} != {checkpoint_of(run, "best"), checkpoint_of(run, "last")}:
            return first, second
    elif not (best.is_file() and last.is_file()):
        raise InputError(
            f"expected two models, or one run folder with {best.name} and {last.name}, found only {first!r}"
        )
    epochs = [(read_metadata(path) or {}).get("epoch") for path in (best, last)]
    if epochs[0] is not None and epochs[0] == epochs[1]:
        raise UnavailableError(
            f"expected a run that went on after its best epoch, found epoch {epochs[0]} to be the best and the last of "
            f"{run}; name another model or checkpoint beside it"
        )
    return str(best), str(last)


def load_sides(
    first: str, second: str, settings: Settings = Settings(), checkpoint: Sequence[Path] = ()
) -> tuple[Side, Side]:
    """Load both sides and check that they will be measured alike, before anything is measured.

    A model beside a saved result takes the result's data and attack where the settings leave them open.

    Args:
        settings: of both.
        checkpoint: the weights of the sides that take the user's own, in their order; or none. timm's models do
            without where there are fewer.

    Raises:
        InputError: as ``load_subject``, ``CrossClassResult.load`` and ``check_alike`` do; settings that nothing needs.
    """
    names = (first, second)
    takers = [name for name in names if takes_checkpoint(name)]
    if len(checkpoint) < len(takers):
        takers = [name for name in takers if not name.startswith("timm:")]
    if checkpoint and len(checkpoint) != len(takers):
        expected = f"one {{checkpoint}} for each model with weights of your own ({len(takers)})"
        raise InputError(Fault("", expected, str(len(checkpoint))))
    results = {name: CrossClassResult.load(name) for name in names if is_result(name)}
    if len(results) == len(set(names)):
        defaults = Settings().flat()
        changed = [name for name, value in settings.flat().items() if value != defaults[name]]
        useless = [f"{{{name}}}" for name in changed if name not in _NOT_MEASURED]
        if useless:
            expected = f"a model to measure with {', '.join(useless)}"
            raise InputError(Fault("", expected, "two results that are measured already"))
    elif results:
        settings = _like(next(iter(results.values())), settings)
    files = iter(checkpoint)
    sides: list[Side] = []
    for name in names:
        weights = {"checkpoint": next(files, None)} if name in takers else dict.fromkeys(WEIGHT_SETTINGS)
        sides.append(results.get(name) or load_subject(name, settings.with_values(**weights)))
    check_alike(*sides)
    return sides[0], sides[1]


def check_alike(first: Side, second: Side) -> None:
    """Raise InputError, naming every field that differs, unless both have the same classes, data, count and attack.

    Warn where the images' hashes tell that their pixels differ all the same: another crop, another decoder; and where
    the attacks have other seeds.
    """
    sides = _conditions(first), _conditions(second)
    differing = [
        f"{name} {_shown(name, value)} and {_shown(name, sides[1][name])}"
        for name, value in sides[0].items()
        if name in sides[1] and _differ(name, value, sides[1][name])
    ]
    if not differing and _counts(first).tolist() != _counts(second).tolist():
        differing = ["other numbers of images in the classes"]
    if differing:
        remedy = (
            "state them for both ({data}, {limit}, {options}, {eps}, {precision}, …), or measure each with its own "
            "options and compare the results"
        )
        if isinstance(first, CrossClassResult) and isinstance(second, CrossClassResult):  # nothing is measured now
            remedy = "measure one of the models again under the other result's conditions"
        raise InputError(Fault("", "the same data and attack for both", "; ".join(differing), remedy))
    hashes = _images_hash(first), _images_hash(second)
    if None not in hashes and hashes[0] != hashes[1]:
        message = (
            f"the two sides' images are of the same data and number, and their pixels differ (hashes {hashes[0]} and "
            f"{hashes[1]}) by another crop, decoder or order; the paired tests take them for the same"
        )
        warnings.warn(message, stacklevel=1)
    seeds = _seed(first), _seed(second)
    if None not in seeds and seeds[0] != seeds[1]:
        message = (
            f"the two sides' attacks begin from other random numbers (seed {seeds[0]} and {seeds[1]}), by which RA and "
            "C differ too"
        )
        warnings.warn(message, stacklevel=1)


def _seed(side: Side) -> int | None:
    """That of the attack; None for clean images, and where nobody said it."""
    if isinstance(side, Subject):
        return None if side.attack is None else side.attack.seed
    return None if side.threat is None else side.threat.get("seed")


def _images_hash(side: Side) -> str | None:
    """The ``provenance.images_fingerprint``; None where nobody took it."""
    provenance = side.provenance() if isinstance(side, Subject) else side.provenance
    return provenance.get("images")


def _like(result: CrossClassResult, settings: Settings) -> Settings:
    """The settings, with the result's data and attack where they are open."""
    known: dict[str, Any] = {"centre": result.centred}
    if result.data is not None:
        known |= {"data": result.data.get("name"), "limit": result.data.get("count")}
        known["downscale"] = result.data.get("downscale", 1)
    if result.threat is None:
        known["clean"] = settings.attack.clean or not settings.attack.stated
    elif not settings.attack.clean:
        known |= {name: result.threat.get(name) for name in _ATTACK}
    is_open = {name: value is None or value is False for name, value in settings.flat().items()}
    missing = {name: value for name, value in known.items() if is_open[name]}
    for name, code in code_in(missing):
        raise InputError(Fault("", "no code named by a file", code, f"if you trust it, add {{{name}}} {code}"))
    return settings.with_values(**missing)


def _conditions(side: Side) -> dict[str, Any]:
    """The known conditions that must be equal, by the names that messages use."""
    passes: dict[str, Any]
    if isinstance(side, Subject):
        data: Mapping[str, Any] = side.data.describe()
        threat: Mapping[str, Any] = side.describe_attack() or {}
        names: tuple[str, ...] | None = side.data.classes
        passes = {"mode": "eval", "centred": side.probe.centre}
    else:
        data, threat, names = side.data or {}, side.threat or {}, side.class_names
        passes = {"mode": side.model_mode, "precision": side.precision, "centred": side.centred}
        if not threat and side.robust_threat:  # C of clean images beside an RA
            passes |= _of_attack(side.robust_threat, " of RA")
    counts = _counts(side)
    conditions: dict[str, Any] = {"classes": len(counts)}
    if names is not None:
        conditions["class names"] = tuple(names)
    conditions |= {**conditions_of_images(data), "images": int(counts.sum()), **passes}
    return conditions | _of_attack(threat)


def _of_attack(threat: Mapping[str, Any], suffix: str = "") -> dict[str, Any]:
    known = {name: threat.get(name) for name in _ATTACK} | {"attack options": threat.get("options") or None}
    known |= {"precision of the attack": threat["precision"]} if "precision" in threat else {}
    return {f"{name}{suffix}": value for name, value in known.items()}


def _differ(name: str, first: Any, second: Any) -> bool:
    """Whether two values differ; older results record one step for an attack that has none."""
    return bool(first != second) and not (name.startswith("steps") and (first, second) in ((None, 1), (1, None)))


def _counts(side: Side) -> NDArray[np.int64]:
    if isinstance(side, Subject):
        return np.bincount(side.data.split.labels.numpy(), minlength=len(side.data.classes))
    return side.counts


def _shown(name: str, value: Any) -> str:
    if name.partition(" ")[0] in ("eps", "step_size"):
        return show_pixels(value)
    if isinstance(value, tuple):
        return some_of(value)
    return "none" if value is None else str(value)


def _figures(result: CrossClassResult) -> dict[str, Any]:
    return {
        "model": result.model,
        **{name: _figure(result, name) for name in _FIGURES},
        "intervals": result.intervals(),
    }


def _figure(result: CrossClassResult, name: str) -> float | None:
    value: float | None = plain(getattr(result, name))
    return value


def _pair(pair: Pair) -> dict[str, Any]:
    return {"classes": [pair[0], pair[1]], "first": pair[2], "second": pair[3]}
