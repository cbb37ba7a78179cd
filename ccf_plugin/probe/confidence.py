"""How far figures would move with other images of the same kind: intervals and tests, without another attack."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import class_attribution_similarity, class_means, correlation_matrix, instance_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interval = tuple[float, float]
_MOST_AT_ONCE = 2**22  # numbers of the resamples that are computed together: 32 MB


@dataclass(frozen=True)
class Confidence:
    """Intervals (low, high) of CAS and I-CAS at confidence ``level``, from ``bootstrap`` resamples of the images."""

    cas: Interval
    instance_cas: Interval | None
    level: float
    bootstrap: int


@dataclass(frozen=True, eq=False)
class Samples:
    """Attributions of single samples as they were measured: ``rows`` A(x), (N, n) float; ``labels``, (N,) int64."""

    rows: Tensor
    labels: Tensor

    def matrix(self, classes: int) -> NDArray[np.float64]:
        """The instance matrix, (K, K)."""
        return instance_matrix(self.rows, self.labels, classes).double().cpu().numpy()

    def average_cas(self, classes: int) -> float:
        """Σ_{i≠j} max(mean cosine of all pairs of samples of classes i and j, 0)."""
        return float(class_attribution_similarity(instance_matrix(self.rows, self.labels, classes, reduction="mean")))

    def on_host(self) -> Samples:
        """The same outside the GPU's memory, where a result that somebody keeps may lie for long."""
        return Samples(self.rows.cpu(), self.labels.cpu())

    def confidence(self, classes: int, *, bootstrap: int, level: float, seed: int, instances: bool) -> Confidence:
        """Resample the images of every class with replacement, ``bootstrap`` times.

        An interval lies around the figure as measured: it takes the spread of the resampled figures, and leaves out
        their shift, which comes from a resample's repeated images. It says how far other images would move a figure
        at THIS number of images a class; it does not correct what few images do to the figure itself.
        """
        measured, resampled = self.resampled(classes, bootstrap=bootstrap, level=level, seed=seed, instances=instances)
        intervals = [
            interval_around(resampled[:, index], figure, level, classes) for index, figure in enumerate(measured)
        ]
        return Confidence(intervals[0], intervals[1] if instances else None, level, bootstrap)

    def resampled(
        self, classes: int, *, bootstrap: int, level: float, seed: int, instances: bool
    ) -> tuple[list[float], Tensor]:
        """CAS (and I-CAS) as measured, and of ``bootstrap`` resamples, (bootstrap, 1 or 2) float64.

        Which images a resample takes depends on the labels and the seed alone: two models measured on the same images
        get the same resamples.
        """
        _check_resampling(bootstrap, level)
        rows, labels, counts = self._by_class(classes)
        whole = torch.arange(len(labels), device=labels.device).unsqueeze(0)
        all_figures = [
            figures
            for chosen in (whole, *_draws(labels, counts, rows.shape[1], bootstrap, seed))
            for figures in _figures(rows, labels, counts, chosen, instances)
        ]
        return all_figures[0], torch.tensor(all_figures[1:], dtype=torch.float64)

    def resampled_means(self, classes: int, *, bootstrap: int, seed: int) -> Iterator[Tensor]:
        """The class attributions of the resamples of ``resampled``, some (b, K, n) float64 at a time."""
        rows, labels, counts = self._by_class(classes)
        for chosen in _draws(labels, counts, rows.shape[1], bootstrap, seed):
            yield _means(rows, counts, chosen)

    def _by_class(self, classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and labels in the order of classes, and how many there are of each, (K,) int64."""
        order = torch.argsort(self.labels, stable=True)
        labels = self.labels[order]
        return self.rows[order], labels, torch.bincount(labels, minlength=classes)


def difference_of_cas(
    first: Samples, second: Samples, classes: int, *, bootstrap: int, level: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of CAS(first) − CAS(second), both on the same resampled images (a paired bootstrap).

    What moves both models' CAS alike cancels, so that it is narrower than the two models' own intervals suggest.

    Raises:
        InputError: the two were measured on images of other labels or in another order; as ``Samples.resampled``.
    """
    if not torch.equal(first.labels, second.labels):
        raise InputError("expected both models' samples of the same images in the same order, found other labels")
    options: Any = {"bootstrap": bootstrap, "level": level, "seed": seed, "instances": False}
    (first_measured, first_resampled), (second_measured, second_resampled) = (
        samples.resampled(classes, **options) for samples in (first, second)
    )
    measured = first_measured[0] - second_measured[0]
    return interval_around((first_resampled - second_resampled)[:, 0], measured, level, classes, signed=True)


def wilson(successes: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of a fraction such as an accuracy: ``successes`` of ``total`` images.

    Raises:
        InputError: numbers that are no fraction, or a level outside (0, 1).
    """
    _check_level(level)
    if not 0 <= successes <= total or total < 1:
        raise InputError(f"expected successes from 0 to total, and total of 1 or more, found {successes} of {total}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, shrinkage = successes / total, 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / shrinkage
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / shrinkage
    # at 0 and 1 the interval ends there, but for rounding
    return (max(centre - half, 0.0) if successes else 0.0), (min(centre + half, 1.0) if successes < total else 1.0)


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
    _check_resampling(bootstrap, level)
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


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"expected level in (0, 1), found {level}")


def _check_resampling(bootstrap: int, level: float) -> None:
    if bootstrap < 2 or not 0 < level < 1:
        raise InputError(f"expected bootstrap of 2 or more and level in (0, 1), found {bootstrap} and {level}")


def _draws(labels: Tensor, counts: Tensor, features: int, bootstrap: int, seed: int) -> Iterator[Tensor]:
    """Which rows, lying class by class, each resample takes: (b, N) int64, as many at a time as memory bears."""
    starts = (counts.cumsum(0) - counts)[labels]
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, _MOST_AT_ONCE // max(len(labels), len(counts) * features))
    for first in range(0, bootstrap, at_once):
        size = min(at_once, bootstrap - first), len(labels)
        chance = torch.rand(size, generator=generator, dtype=torch.float64).to(labels.device)
        yield starts + (chance * counts[labels]).long()


def _means(rows: Tensor, counts: Tensor, chosen: Tensor) -> Tensor:
    """The class means, (b, K, n) float64, of the rows that each of ``chosen`` (b, N) names; rows lie class by class.

    All b sums of a class are one product of how often each row was chosen, (b, N_k), with the rows, (N_k, n).
    """
    times = torch.zeros(chosen.shape, dtype=torch.float64, device=rows.device)
    times.scatter_add_(1, chosen, times.new_ones(()).expand_as(chosen))
    parts = zip(torch.split(times, counts.tolist(), 1), torch.split(rows, counts.tolist()), strict=True)
    sums = torch.stack([often @ part.double() for often, part in parts], 1)
    return torch.stack([class_means(class_sums, counts) for class_sums in sums])


def _figures(rows: Tensor, labels: Tensor, counts: Tensor, chosen: Tensor, instances: bool) -> list[list[float]]:
    """CAS, and I-CAS where asked, of the rows that each of ``chosen`` (b, N) names."""
    means = _means(rows, counts, chosen)
    results = [[float(class_attribution_similarity(correlation_matrix(vectors)))] for vectors in means]
    if instances:
        for figures, order in zip(results, chosen, strict=True):
            figures.append(float(class_attribution_similarity(instance_matrix(rows[order], labels, len(counts)))))
    return results


def interval_around(
    resampled: Tensor, measured: float, level: float, classes: int, *, signed: bool = False
) -> Interval:
    """The interval of a figure as measured, of the spread of resampled ones but without their shift.

    Args:
        resampled: the resampled figures, (B,) float64.
        measured: the figure.
        level: the interval's probability.
        classes: K; no figure is above K(K-1).
        signed: whether it can be below 0.
    """
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    bound = float(classes * (classes - 1))
    around = measured + torch.quantile(resampled, tails) - resampled.median()
    low, high = around.clamp(-bound if signed else 0.0, bound).tolist()
    return low, high
