"""How far figures would move with other images of the same kind: intervals and tests, without another attack."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import InputError
from ccf_plugin.probe.jackknife import Interval, WithoutParts, check_level, interval_around
from ccf_plugin.probe.null import PermutationNull, permutation_null

_ACCURACIES = ("robust_accuracy", "clean_accuracy", "accuracy")
SIMILARITIES = ("cas", "cas_excess", "instance_cas")
_FIGURES = (*_ACCURACIES, *SIMILARITIES)
NO_PARTS = (
    "expected a result with intervals of CAS, found none: it has a class of fewer than 20 images, or more than 228 "
    "classes, or is of an older version; measure it anew with more images a class"
)


@dataclass(frozen=True)
class Confidence:
    """Intervals (low, high) over other images, at this ``level``; None for what was not measured."""

    cas: Interval
    cas_excess: Interval | None
    instance_cas: Interval | None
    level: float


def wilson(successes: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of a fraction such as an accuracy: ``successes`` of ``total`` images.

    Raises:
        InputError: numbers that are no fraction, or a level outside (0, 1).
    """
    check_level(level)
    if not 0 <= successes <= total or total < 1:
        raise InputError(f"expected successes from 0 to total, and total of 1 or more, found {successes} of {total}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, shrinkage = successes / total, 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / shrinkage
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / shrinkage
    # at 0 and 1 the interval ends there, but for rounding
    return (max(centre - half, 0.0) if successes else 0.0), (min(centre + half, 1.0) if successes < total else 1.0)


class WithIntervals:
    """How far the figures of a `CrossClassResult` would move with other images: its intervals and variances."""

    matrix: NDArray[np.float64]
    class_attribution: NDArray[np.float64]
    counts: NDArray[np.int64]
    instance_matrix: NDArray[np.float64] | None
    without_parts: WithoutParts | None

    @property
    def most_cas(self) -> int:
        """The largest CAS that there can be."""
        raise NotImplementedError

    @cached_property
    def null(self) -> PermutationNull:
        """CAS and C by chance: where the entries of each class attribution are permuted; computed at the first use."""
        return permutation_null(self.class_attribution)

    def interval(self, name: str = "robust_accuracy", level: float = 0.95) -> Interval | None:
        """The interval of a figure over other images of the same kind; None where it is not known.

        Of accuracies it is Wilson's, of CAS, its excess and I-CAS a jackknife's (`probe.jackknife`). These hold at this
        number of images a class: CAS of 10 images a class and of 1,000 are not comparable. An I-CAS that other images
        might make 0 has none.

        Args:
            name: "robust_accuracy", "clean_accuracy", "accuracy", "cas", "cas_excess" or "instance_cas".
            level: the interval's probability.

        Raises:
            InputError: another name, or a level outside (0, 1).
        """
        check_level(level)
        if name not in _FIGURES:
            raise InputError(f"expected name to be one of {', '.join(_FIGURES)}, found {name!r}")
        figure, total = getattr(self, name), int(self.counts.sum())
        if figure is None or not total:
            return None
        if name in _ACCURACIES:
            return wilson(round(figure * total), total, level)
        variance = self.variance_of(name)
        if variance is None:
            return None
        low, high = interval_around(figure, variance, level)
        if name == "instance_cas" and low <= 0:
            return None  # the nearest cosines are about 0, where the jackknife says too little
        most = self.most_cas
        return max(low, -most if name == "cas_excess" else 0.0), min(high, most)

    def variance_of(self, name: str, other: WithIntervals | None = None) -> float | None:
        """The variance of "cas", "cas_excess" or "instance_cas" over other images; None where not known.

        Args:
            name: the figure.
            other: of its difference from that of another model on the same images.
        """
        sides = [side.moves_of(name) for side in ([self] if other is None else [self, other])]
        known = [side for side in sides if side is not None]
        if len(known) < len(sides):
            return None
        moved = known[0][0] if other is None else known[0][0] - known[1][0]
        return float(np.square(moved).sum()) + sum(noise**2 for _, noise in known)

    def moves_of(self, name: str) -> tuple[NDArray[np.float64], float] | None:
        """By how much "cas", "cas_excess" or "instance_cas" would move with other images; None where not known.

        Returns:
            `WithoutParts.apart`, (K, G) float64, which models on the same images share; and the standard deviation of
            CAS by chance as a mean over permutations, 0 for other figures.
        """
        parts = self.without_parts
        moved = None if parts is None else parts.apart(name, self.matrix, self.instance_matrix)
        if moved is None or not math.isfinite(getattr(self, name)):
            return None
        null = self.null
        return moved, null.cas_sd / math.sqrt(null.permutations) if name == "cas_excess" else 0.0

    def intervals(self, level: float = 0.95) -> dict[str, list[float] | None]:
        """``interval`` of each figure, as plain values."""
        known = {name: self.interval(name, level) for name in _FIGURES}
        return {name: None if interval is None else list(interval) for name, interval in known.items()}

    def confidence(
        self, *, level: float = 0.95, instances: bool = True, bootstrap: int | None = None, seed: int | None = None
    ) -> Confidence:
        """``interval`` of CAS, of its excess and, with ``instances``, of I-CAS together, also of a saved result.

        Args:
            level: the intervals' probability.
            instances: also I-CAS.
            bootstrap, seed: deprecated and without effect, since no image is resampled any more.

        Raises:
            InputError: a class with images has fewer than 20, more than 228 classes, or a file of an older version.
        """
        if (bootstrap, seed) != (None, None):
            text = "confidence() needs no bootstrap and no seed any more: it is a jackknife; leave them out"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
        cas = self.interval("cas", level)
        if cas is None:
            raise InputError(NO_PARTS)
        of_instances = self.interval("instance_cas", level) if instances else None
        return Confidence(cas, self.interval("cas_excess", level), of_instances, level)


@dataclass(frozen=True)
class McNemar:
    """How many images only the first model classifies right, only the second, and the two-sided exact p of that."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test (1947): whether two models on the same images are equally accurate.

    Images on which both are right or both wrong say nothing. Of the others, half would be the first model's by chance:
    p is the binomial probability of a split that is as uneven, or more.

    Args:
        first, second: whether each image is classified right, (N,) bool, the same images in the same order, such as
            ``result.correct`` of two results.

    Raises:
        InputError: not two bool arrays of one length.
    """
    only_first, only_second = _told_apart(first, second)[0]
    number, term, tail = only_first + only_second, 1, 0
    for less in range(min(only_first, only_second) + 1):  # of the binomial coefficients, exactly
        tail += term
        term = term * (number - less) // (less + 1)
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**number))


def tango(first: NDArray[np.bool_], second: NDArray[np.bool_], *, level: float = 0.95) -> Interval:
    """The score interval of accuracy(first) - accuracy(second), both models on the same images (Tango 1998).

    It holds every difference d that the score test does not reject: with b images of N that only the first model
    classifies right, and c that only the second does, |b - c - N d| is at most z times its standard deviation where the
    difference is d. So it has a width also where no image tells the models apart.

    Args:
        first, second: as for `mcnemar`.
        level: the interval's probability.

    Raises:
        InputError: not two bool arrays of one length; a level outside (0, 1).
    """
    check_level(level)
    (only_first, only_second), number = _told_apart(first, second)
    z = NormalDist().inv_cdf((1 + level) / 2)
    low = -_largest_difference(only_second, only_first, number, z)
    return low, _largest_difference(only_first, only_second, number, z)


def tango_p(first: NDArray[np.bool_], second: NDArray[np.bool_], difference: float) -> float:
    """The two-sided p of the score test that `tango` inverts: whether accuracy(first) - accuracy(second) is this one.

    Args:
        first, second: as for `mcnemar`.
        difference: from -1 to 1; where it is 0, `mcnemar` is exact.

    Raises:
        InputError: not two bool arrays of one length.
    """
    apart, number = _told_apart(first, second)
    return 2 * NormalDist().cdf(-abs(_score(*apart, number, difference)))


def _told_apart(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[tuple[int, int], int]:
    """How many images only the first model classifies right, and only the second; and of how many."""
    first, second = _paired(first, second)
    return (int((first & ~second).sum()), int((second & ~first).sum())), len(first)


def _largest_difference(only_first: int, only_second: int, number: int, z: float) -> float:
    """The largest difference whose score is not below -z; those of all that are larger are."""
    low, high = (only_first - only_second) / number, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        is_rejected = _score(only_first, only_second, number, middle) < -z
        low, high = (low, middle) if is_rejected else (middle, high)
    return high


def _score(only_first: int, only_second: int, number: int, d: float) -> float:
    """b - c - N d in units of its standard deviation where the difference is d."""
    if d < 0:
        return -_score(only_second, only_first, number, -d)
    slope = (2 * number - only_first + only_second) * d - only_first - only_second
    likeliest = (math.sqrt(slope**2 + 8 * number * only_second * d * (1 - d)) - slope) / (4 * number)  # share of c
    sd = math.sqrt(max(number * (2 * likeliest + d * (1 - d)), 0.0))
    apart = only_first - only_second - number * d
    return apart / sd if sd else math.copysign(math.inf, apart) if apart else 0.0


def _paired(first: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = np.asarray(first), np.asarray(second)
    is_bool = first.dtype == second.dtype == np.bool_
    if not is_bool or first.ndim != 1 or first.shape != second.shape or not len(first):
        raise InputError(
            "expected two bool arrays of one length, found "
            f"{first.dtype} {first.shape} and {second.dtype} {second.shape}; give result.correct of two results"
        )
    return first, second


def check_resampling(bootstrap: int, level: float) -> None:
    """Raise InputError for fewer than two resamples, or a level that is no probability."""
    if bootstrap < 2 or not 0 < level < 1:
        raise InputError(f"expected bootstrap of 2 or more and level in (0, 1), found {bootstrap} and {level}")
