"""How far figures would move with other images of the same kind: intervals and tests, without another attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from ccf_plugin.errors import InputError
from ccf_plugin.probe.jackknife import Interval, check_level, interval_around

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ccf_plugin.probe.result import CrossClassResult


ACCURACIES = ("robust_accuracy", "clean_accuracy", "accuracy")
SIMILARITIES = ("cas", "cas_excess", "instance_cas")
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


def interval_of(result: CrossClassResult, name: str, level: float) -> Interval | None:
    """See `CrossClassResult.interval`."""
    check_level(level)
    if name not in (*ACCURACIES, *SIMILARITIES):
        raise InputError(f"expected name to be one of {', '.join((*ACCURACIES, *SIMILARITIES))}, found {name!r}")
    figure, total = getattr(result, name), int(result.counts.sum())
    if figure is None or not total:
        return None
    if name in ACCURACIES:
        return wilson(round(figure * total), total, level)
    variance = variance_of(result, name)
    if variance is None:
        return None
    low, high = interval_around(figure, variance, level)
    if name == "instance_cas" and low <= 0:
        return None  # the nearest cosines are about 0, where the jackknife says too little
    most = len(result.matrix) * (len(result.matrix) - 1)
    return max(low, -most if name == "cas_excess" else 0.0), min(high, most)


def variance_of(result: CrossClassResult, name: str, other: CrossClassResult | None = None) -> float | None:
    """See `CrossClassResult.variance_of`."""
    sides = [moves_of(side, name) for side in ([result] if other is None else [result, other])]
    known = [side for side in sides if side is not None]
    if len(known) < len(sides):
        return None
    moved = known[0][0] if other is None else known[0][0] - known[1][0]
    return float(np.square(moved).sum()) + sum(noise**2 for _, noise in known)


def moves_of(result: CrossClassResult, name: str) -> tuple[NDArray[np.float64], float] | None:
    """By how much one of ``SIMILARITIES`` would move with other images, and the error that is the figure's own.

    Returns:
        `WithoutParts.apart`, (K, G) float64, which models on the same images share; and the standard deviation of CAS
        by chance as a mean over permutations, 0 for other figures. None where the result has no such figure.
    """
    parts = result.without_parts
    moved = None if parts is None else parts.apart(name, result.matrix, result.instance_matrix)
    if moved is None or not math.isfinite(getattr(result, name)):
        return None
    null = result.null
    return moved, null.cas_sd / math.sqrt(null.permutations) if name == "cas_excess" else 0.0


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
    first, second = _paired(first, second)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    number, term, tail = only_first + only_second, 1, 0
    for less in range(min(only_first, only_second) + 1):  # of the binomial coefficients, exactly
        tail += term
        term = term * (number - less) // (less + 1)
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**number))


def paired_bootstrap(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    *,
    bootstrap: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The interval of accuracy(first) - accuracy(second) over resampled images, both models on the same ones.

    A resample is known by how many of its images only the first model and only the second classify right, so that
    these numbers are drawn and not the images. With few such images (below 10) the interval is too narrow; where there
    are none, it has no width: `mcnemar` is exact there.

    Args:
        first, second: as for `mcnemar`.
        bootstrap: how often to resample.
        level: the interval's probability, between the percentiles of the resampled differences.
        seed: of the resampling.

    Raises:
        InputError: not two bool arrays of one length; fewer than two resamples; a level outside (0, 1).
    """
    check_resampling(bootstrap, level)
    first, second = _paired(first, second)
    shares = np.array([(first & ~second).mean(), (second & ~first).mean()])
    drawn = np.random.default_rng(seed).multinomial(len(first), [*shares, 1 - shares.sum()], bootstrap)
    differences = (drawn[:, 0] - drawn[:, 1]) / len(first)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


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
