"""Tests of a comparison that know one or two seeds: over the test images, and along the epochs of one run.

They know the noise of images, not that of seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ccf_plugin.measuring.claims import Comparison, Correlation, Figure, Halving, Leaf, Number, is_linear
from ccf_plugin.measuring.finished_runs import FinishedRun, NotMeasuredError, of_seed
from ccf_plugin.probe.confidence import SIMILARITIES, mcnemar, tango, tango_p
from ccf_plugin.probe.jackknife import PARTS

Runs = Mapping[str, Sequence[FinishedRun]]
LEVEL = 0.05
FEWEST_SHIFTS = 1 + int(1 / LEVEL)  # the smallest p of n shifts is 1 / n
_ROUNDING = 1e-9  # a spread below this share of the margin is rounding


@dataclass(frozen=True)
class Tested:
    """A test that was made: in words, its two-sided p, what it does not know, and the margin's 95 % interval."""

    test: str
    p: float
    note: str
    interval: tuple[float, float] | None = None


def fitting_test(comparison: Comparison, runs: Runs, seeds: Sequence[int | None], margin: float) -> Tested:
    """The test that fits what the comparison is about.

    Accuracies: McNemar's exact test of two, Tango's score test of their difference from a number, the exact binomial
    test of one against a number, a jackknife of the images for other expressions. CAS, its excess and I-CAS: Student's
    t with the jackknife over the parts of the images, which the runs share (`WithoutParts`). A correlation with 0: all
    circular shifts of one series along the other.

    Args:
        seeds: those that are averaged over.
        margin: by how far the comparison is true, on the average of them.

    Raises:
        NotMeasuredError: none fits; why.
    """
    leaves = comparison.leaves
    if any(isinstance(leaf, Halving) for leaf in leaves):
        raise NotMeasuredError("an epoch has no test with fewer than three")
    if any(isinstance(leaf, Correlation) for leaf in leaves):
        return _against_shifts(comparison, runs, seeds)
    parts = list(dict.fromkeys(part for leaf in leaves if isinstance(leaf, Figure) for part in _parts(leaf)))
    measured = [(part, of_seed(runs[part.run], seed)) for seed in seeds for part in parts]
    if len({run.images for _, run in measured}) > 1:
        raise NotMeasuredError("the runs have other test images")
    similar = [part for part in parts if part.column in SIMILARITIES]
    if 0 < len(similar) < len(parts):
        raise NotMeasuredError(f"{similar[0]} and figures of another kind have no test together")
    if similar:
        tested = _by_jackknife(comparison, parts, measured, margin)
    else:
        tested = _by_images(comparison, parts, _records(measured), len(seeds), margin)
    return replace(tested, note="the noise of images, not of seeds")


def _parts(figure: Figure) -> list[Figure]:
    """The figures of single epochs that a figure is made of."""
    return [replace(figure, at=at) for at in ("best", "last")] if figure.at == "delta" else [figure]


def _margin_of(comparison: Comparison, parts: Sequence[Figure], values: NDArray[np.float64]) -> Any:
    """The margin where the parts have these values, (parts,) or (parts, …)."""
    known = dict(zip(parts, values, strict=True))

    def value(leaf: Leaf) -> Any:
        assert isinstance(leaf, Figure)  # noqa: S101  # a correlation has been sorted out
        both = [known[part] for part in _parts(leaf)]
        return both[0] - both[1] if len(both) > 1 else both[0]

    return comparison.margin(value)


def _records(measured: Sequence[tuple[Figure, FinishedRun]]) -> NDArray[np.bool_]:
    """Which images were right, (seeds · parts, N) bool."""
    records: list[NDArray[np.bool_]] = []
    for part, run in measured:
        record = run.record(part.column, part.at)
        if record is None:
            raise NotMeasuredError(f"{part} has no record of single images")
        records.append(record)
    if len({len(record) for record in records}) > 1:
        raise NotMeasuredError("the runs have other test images")
    return np.array(records)


def _by_images(
    comparison: Comparison, parts: Sequence[Figure], records: NDArray[np.bool_], seeds: int, margin: float
) -> Tested:
    images = records.shape[1]
    if seeds == 1 and is_linear(comparison.left) and is_linear(comparison.right):
        zero = np.zeros(len(parts))
        constant = float(_margin_of(comparison, parts, zero))
        slopes = [float(_margin_of(comparison, parts, unit)) - constant for unit in np.eye(len(parts))]
        used = [place for place, slope in enumerate(slopes) if abs(slope) > 1e-9]
        if len(used) == 2 and abs(slopes[used[0]] + slopes[used[1]]) < 1e-9:
            pair, slope = (records[used[0]], records[used[1]]), slopes[used[0]]
            if not constant:
                return Tested(f"McNemar's exact test on {images} images", mcnemar(*pair).p, "")
            if abs(difference := -constant / slope) <= 1:
                low, high = sorted(constant + slope * bound for bound in tango(*pair, level=1 - LEVEL))
                return Tested(f"Tango's score test on {images} images", tango_p(*pair, difference), "", (low, high))
        if len(used) == 1 and 0 <= (share := -constant / slopes[used[0]]) <= 1:
            p = float(stats.binomtest(int(records[used[0]].sum()), images, share).pvalue)
            return Tested(f"exact binomial test on {images} images", p, "")
    # Images that are right in the same records are alike. By how much does a little more of a kind's weight move it?
    kinds, counts = np.unique(records.T, axis=0, return_counts=True)
    accuracies = records.mean(1)
    moved = accuracies[:, None] + (kinds.T - accuracies[:, None]) / images
    apart = _apart(comparison, parts, accuracies.reshape(seeds, -1), moved.reshape(seeds, len(parts), -1))
    sd = float(np.sqrt(counts @ np.square(apart - counts @ apart / images)))
    half = float(stats.norm.ppf(1 - LEVEL / 2)) * _checked(sd, margin)
    p = 2 * float(stats.norm.sf(abs(margin) / sd))
    return Tested(f"z test by a jackknife of {images} images", p, "", (margin - half, margin + half))


def _by_jackknife(
    comparison: Comparison, parts: Sequence[Figure], measured: Sequence[tuple[Figure, FinishedRun]], margin: float
) -> Tested:
    """Student's t of the margin: it is seen how far it moves where each figure moves as without a part of the images.

    Models on the same images have the same parts; what is a figure's own (chance's mean over permutations) moves alone.
    """
    values, moved, noises = [], [], []
    for part, run in measured:
        result = run.result(part.column, part.at)
        if result is None:
            raise NotMeasuredError(f"{part} has no result that the run keeps (probe.every)")
        moves = result.moves_of(part.column)
        if moves is None:
            raise NotMeasuredError(f"{part} has a result without intervals, as of fewer than {PARTS} images a class")
        values.append(run.value(part))
        moved.append(moves[0].ravel())
        noises.append(moves[1])
    if len({moves.shape for moves in moved}) > 1:
        raise NotMeasuredError("the runs have other classes")
    moves_and_noise = np.concatenate([moved, np.diag(noises)], axis=1).reshape(
        -1, len(parts), len(moved[0]) + len(moved)
    )
    figures = np.array(values).reshape(-1, len(parts))
    apart = _apart(comparison, parts, figures, figures[:, :, None] + moves_and_noise)
    sd = float(np.sqrt(np.square(apart).sum()))
    half = float(stats.t.ppf(1 - LEVEL / 2, PARTS - 1)) * _checked(sd, margin)
    p = 2 * float(stats.t.sf(abs(margin) / sd, PARTS - 1))
    return Tested(f"t test by a jackknife of {PARTS} parts of the images", p, "", (margin - half, margin + half))


def _apart(
    comparison: Comparison, parts: Sequence[Figure], figures: NDArray[np.float64], moved: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far the seeds' mean margin is moved where the figures, (seeds, parts), are ``moved``, (seeds, parts, M)."""
    differences = [
        _margin_of(comparison, parts, there) - _margin_of(comparison, parts, here)
        for here, there in zip(figures, moved, strict=True)
    ]
    return np.asarray(np.mean(differences, axis=0))


def _checked(sd: float, margin: float) -> float:
    if not np.isfinite(sd) or sd <= _ROUNDING * abs(margin):
        raise NotMeasuredError("its margin is the same whatever the images")
    return sd


def _against_shifts(comparison: Comparison, runs: Runs, seeds: Sequence[int | None]) -> Tested:
    """One run's correlation with 0: neighbouring epochs are alike, and a shift keeps that, but no trend.

    Of series without a trend p holds its level. Two that rise or fall along the run are found to go together whatever
    else they are, which the note says.
    """
    leaves = comparison.leaves
    zeros = [side for side in (comparison.left, comparison.right) if side == Number(0.0)]
    if len(seeds) > 1 or len(leaves) != 1 or not zeros or leaves[0] not in (comparison.left, comparison.right):
        raise NotMeasuredError("with fewer than three a correlation has a test against 0 alone, of one seed")
    (leaf,) = leaves
    assert isinstance(leaf, Correlation)  # noqa: S101  # as the caller has seen
    first, second = of_seed(runs[leaf.first.run], seeds[0]).series(leaf.first.column, leaf.second.column)
    p = shifts_p(first, second)
    note = "the noise along one run; figures that rise or fall all along it go together by that alone"
    if 1 / len(first) >= LEVEL:
        note += f"; it decides from {FEWEST_SHIFTS} epochs on"
    return Tested(f"against the {len(first)} circular shifts along the epochs", p, note)


def shifts_p(first: Sequence[float], second: Sequence[float]) -> float:
    """The share of all circular shifts of one series whose rank correlation with the other is as large, or larger."""
    ranks = stats.rankdata(first), stats.rankdata(second)
    shifted = [abs(np.corrcoef(np.roll(ranks[0], by), ranks[1])[0, 1]) for by in range(len(first))]
    return float(np.mean(np.array(shifted) >= shifted[0] - 1e-12))
