"""Two models on the same images: which differences of their figures other images would show too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import class_attribution_similarity, correlation_matrix
from ccf_plugin.probe.confidence import Interval, Samples, interval_around, mcnemar, paired_bootstrap
from ccf_plugin.probe.null import expected_cas
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.probe.result_files import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

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

    That they are the same images, in the same order, ``measuring.compare.check_alike`` tells as far as results know it.
    """
    tests = {}
    for name, records in _RECORDS.items():
        if None in (getattr(first, name), getattr(second, name)):
            continue
        a, b = getattr(first, records), getattr(second, records)
        if a is not None and b is not None and len(a) == len(b):
            test = mcnemar(a, b)
            difference = float(a.mean() - b.mean())
            tests[name] = AccuracyTest(difference, paired_bootstrap(a, b), test.only_first, test.only_second, test.p)
    return tests


@dataclass(frozen=True, eq=False)
class PairBands:
    """Bands of all C_first[i, j] − C_second[i, j] at once: with probability ``level`` all of them hold.

    Attributes:
        difference: C_first − C_second, (K, K) float64.
        half_width: of the band around it, (K, K) float64; NaN on the diagonal and for a class without images.
        level: of all bands together.
        resamples: of the images.
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
    """What resampled images say of CAS beyond chance (of the first, of the second, of the difference) and of C."""

    excess: tuple[Interval, Interval, Interval]
    bands: PairBands

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "excess": dict(zip(("first", "second", "difference"), map(list, self.excess), strict=True)),
            "pairs": {
                "half_width": plain(self.bands.half_width),
                "surviving": self.bands.surviving_pairs,
                "level": self.bands.level,
                "method": "max-T bootstrap over all pairs",
            },
        }


def paired_intervals(
    first: CrossClassResult, second: CrossClassResult, *, bootstrap: int, level: float = 0.95, seed: int = 0
) -> PairedIntervals:
    """Intervals of CAS beyond chance, and simultaneous bands of C_first − C_second, from the same resampled images.

    The bands are those of a bootstrap of the largest statistic (max-T, Westfall & Young 1993): with s[i, j] the
    standard deviation of a pair's resampled difference, the half width is c s[i, j], where c is what the largest
    |difference less its mean| / s of all pairs stays below in ``level`` of the resamples. No correction for the
    number of pairs is needed beside it. In each resample CAS by chance is ``probe.null.expected_cas``.

    Args:
        first, second: results that still have their samples, of the same images.
        bootstrap: how often to resample.

    Raises:
        InputError: a result without samples; other labels or another order.
    """
    samples = [result.samples for result in (first, second)]
    if samples[0] is None or samples[1] is None:
        raise InputError("expected results that still have their single samples, found none; files hold no samples")
    if not torch.equal(samples[0].labels, samples[1].labels):
        raise InputError("expected both models' samples of the same images in the same order, found other labels")
    classes = len(first.matrix)
    rows, columns = np.triu_indices(classes, 1)

    def resampled() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A resample's differences of C by pair, (P,), and both attributions."""
        means = [side.resampled_means(classes, bootstrap=bootstrap, seed=seed) for side in _both(samples)]
        for batch in zip(*means, strict=True):
            for a, b in zip(*batch, strict=True):
                difference = correlation_matrix(a) - correlation_matrix(b)
                yield difference.cpu()[rows, columns], a, b

    # Twice over the same resamples, since those of 1,000 classes do not fit into memory.
    count, mean, squares = 0, torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    excess: list[list[float]] = []
    for difference, a, b in resampled():
        count += 1
        step = difference - mean
        mean += step / count
        squares += step * (difference - mean)
        excess.append([_excess(a), _excess(b)])
    spread = (squares / (count - 1)).sqrt()
    largest = [_largest(difference - mean, spread) for difference, _, _ in resampled()]
    half_width = np.full((classes, classes), np.nan)
    half_width[rows, columns] = half_width[columns, rows] = float(np.quantile(largest, level)) * spread.numpy()
    bands = PairBands(np.asarray(first.matrix - second.matrix), half_width, level, bootstrap)
    excesses = torch.tensor(excess, dtype=torch.float64)
    measured = (first.cas_excess, second.cas_excess)
    intervals = [interval_around(excesses[:, side], measured[side], level, classes, signed=True) for side in (0, 1)]
    difference_interval = interval_around(
        excesses[:, 0] - excesses[:, 1], measured[0] - measured[1], level, classes, signed=True
    )
    return PairedIntervals((intervals[0], intervals[1], difference_interval), bands)


def _both(samples: list[Samples | None]) -> list[Samples]:
    return [side for side in samples if side is not None]


def _excess(means: Tensor) -> float:
    return float(class_attribution_similarity(correlation_matrix(means)) - expected_cas(means))


def _largest(deviation: Tensor, spread: Tensor) -> float:
    """The largest |deviation| / spread of all pairs that vary."""
    varies = spread > 0  # not where it is NaN
    return float((deviation[varies].abs() / spread[varies]).max()) if varies.any() else 0.0


def describe_tests(tests: dict[str, AccuracyTest]) -> dict[str, Any]:
    """Plain JSON values."""
    return {name: {**asdict(test), "interval": list(test.interval)} for name, test in tests.items()}
