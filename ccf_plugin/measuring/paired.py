"""Two models on the same images: which differences of their figures other images would show too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.probe.confidence import check_resampling, mcnemar, tango
from ccf_plugin.probe.jackknife import Interval, deviations, interval_around, simultaneous_bands
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.probe.result_files import plain

Intervals = tuple[Interval, Interval, Interval]  # of the first, of the second, of the difference
BOOTSTRAP = 1_000
_LEVEL = 0.95
# The accuracies that images are recorded for, and the record.
_RECORDS = {"clean_accuracy": "correct_clean", "robust_accuracy": "correct"}


@dataclass(frozen=True)
class AccuracyTest:
    """A difference of accuracies on the same images.

    Attributes:
        difference: first − second, a fraction; ``interval`` is its 95 % interval over other images.
        only_first, only_second: how many images one model alone classifies right.
        p: McNemar's, exact and two-sided, of equal accuracies.
    """

    difference: float
    interval: Interval
    only_first: int
    only_second: int
    p: float


def accuracy_tests(first: CrossClassResult, second: CrossClassResult) -> dict[str, AccuracyTest]:
    """Of "clean_accuracy" and "robust_accuracy", where both results have records of as many images.

    ``measuring.compare.check_alike`` tells, as far as results know, whether they are the same images in the same order.
    """
    tests = {}
    for name, records in _RECORDS.items():
        if None in (getattr(first, name), getattr(second, name)):
            continue
        a, b = getattr(first, records), getattr(second, records)
        if a is not None and b is not None and len(a) == len(b):
            test = mcnemar(a, b)
            difference = float(a.mean() - b.mean())
            tests[name] = AccuracyTest(difference, tango(a, b), test.only_first, test.only_second, test.p)
    return tests


@dataclass(frozen=True, eq=False)
class PairBands:
    """Bands of all C_first[i, j] − C_second[i, j] at once: with probability ``level`` all of them hold.

    Attributes:
        difference: C_first − C_second, (K, K) float64.
        half_width: of the band around it, (K, K) float64; NaN on the diagonal and for a class without images.
        level: of all bands together.
        resamples: of the bootstrap that they come from.
    """

    difference: NDArray[np.float64]
    half_width: NDArray[np.float64]
    level: float
    resamples: int

    @property
    def survives(self) -> NDArray[np.bool_]:
        """Which pairs differ: those whose band does not hold 0, (K, K) bool."""
        return np.abs(self.difference) > self.half_width

    def band(self, i: int, j: int) -> Interval:
        """The band of two classes."""
        middle, half = float(self.difference[i, j]), float(self.half_width[i, j])
        return middle - half, middle + half

    @property
    def pairs(self) -> int:
        """How many pairs have a band."""
        return int(np.triu(np.isfinite(self.half_width), 1).sum())

    @property
    def surviving_pairs(self) -> int:
        """How many pairs differ."""
        return int(np.triu(self.survives, 1).sum())


@dataclass(frozen=True)
class PairedIntervals:
    """What other images would do to CAS, CAS beyond chance and I-CAS (first, second, difference) and to C.

    ``excess`` and ``instance_cas`` are None where a result has no such figure or no interval of it.
    """

    cas: Intervals
    excess: Intervals | None
    instance_cas: Intervals | None
    bands: PairBands

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "excess": None if self.excess is None else _by_side(self.excess),
            "instance_cas": None if self.instance_cas is None else _by_side(self.instance_cas),
            "pairs": {
                "half_width": plain(self.bands.half_width),
                "surviving": self.bands.surviving_pairs,
                "level": self.bands.level,
                "method": "max-T multiplier bootstrap over all pairs",
            },
        }

    def cas_to_json(self) -> dict[str, Any]:
        """The intervals of CAS and of its difference, as plain JSON values."""
        return {**_by_side(self.cas), "level": self.bands.level, "resamples": self.bands.resamples}


def paired_intervals(
    first: CrossClassResult, second: CrossClassResult, *, bootstrap: int = BOOTSTRAP, seed: int = 0
) -> PairedIntervals | None:
    """Intervals of CAS and of CAS beyond chance, and simultaneous bands of C_first − C_second, also of saved results.

    What moves both models' figures alike cancels in their difference: it is the jackknife's without the same parts of
    the same images (`probe.jackknife`), and narrower than the two models' own intervals suggest.

    Args:
        first, second: results of the same images in the same order.
        bootstrap: how often the bands' largest deviation is drawn.

    Returns:
        None where one of them has no intervals.

    Raises:
        InputError: fewer than two draws.
    """
    check_resampling(bootstrap, _LEVEL)
    parts = [side.without_parts for side in (first, second)]
    if parts[0] is None or parts[1] is None:
        return None

    def intervals(name: str) -> Intervals | None:
        sides = [side.interval(name, _LEVEL) for side in (first, second)]
        variance = first.variance_of(name, second)
        if sides[0] is None or sides[1] is None or variance is None:
            return None
        difference = getattr(first, name) - getattr(second, name)
        return sides[0], sides[1], interval_around(difference, variance, _LEVEL)

    difference = first.matrix - second.matrix
    moves = deviations(parts[0].matrix) - deviations(parts[1].matrix)
    half_width = simultaneous_bands(difference, moves, draws=bootstrap, level=_LEVEL, seed=seed)
    cas = intervals("cas")
    assert cas is not None  # noqa: S101  (CAS is a number)
    bands = PairBands(difference, half_width, _LEVEL, bootstrap)
    return PairedIntervals(cas, intervals("cas_excess"), intervals("instance_cas"), bands)


def _by_side(intervals: Intervals) -> dict[str, list[float]]:
    return dict(zip(("first", "second", "difference"), map(list, intervals), strict=True))


def describe_tests(tests: dict[str, AccuracyTest]) -> dict[str, Any]:
    """Plain JSON values."""
    return {name: {**asdict(test), "interval": list(test.interval)} for name, test in tests.items()}
