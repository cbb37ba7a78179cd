"""Claims judged by the test that fits: over seeds where there are three, over test images where there are fewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from ccf_plugin.measuring.claims import Comparison, Correlation, Figure, Leaf, Number, is_linear, runs_of, value_of
from ccf_plugin.measuring.finished_runs import FinishedRun, NotMeasuredError
from ccf_plugin.probe.confidence import mcnemar
from ccf_plugin.runs.seeds import mean_and_sd

if TYPE_CHECKING:
    from numpy.typing import NDArray

Verdict = Literal["held", "not held", "undecided"]
LEVEL = 0.05
FEWEST_SEEDS = 3
_BOOTSTRAP = 10_000


@dataclass(frozen=True)
class Judgement:
    """What became of a comparison.

    Attributes:
        text: the comparison.
        verdict: "held" and "not held" where the margin differs from 0 with p below ``LEVEL``, two-sided.
        why: what stands against a verdict, or what the test does not know; "" where nothing does.
        test: the test that was made, in words; "" where none could be.
        p: its p, two-sided.
        left, right: both sides, the mean over seeds.
        margins: by seed, how far the comparison is true (above 0) or not.
        interval: of the mean margin, 95 %.
    """

    text: str
    verdict: Verdict
    why: str = ""
    test: str = ""
    p: float | None = None
    left: float | None = None
    right: float | None = None
    margins: Sequence[float] = field(default_factory=tuple)
    interval: tuple[float, float] | None = None


def judge(comparison: Comparison, runs: Mapping[str, Sequence[FinishedRun]], missing: Sequence[str] = ()) -> Judgement:
    """Judge a comparison by finished runs.

    Three seeds and more: Student's t of the margins, one a seed, which the runs share; where each side is of a run of
    its own and their seeds are others, Welch's t. Fewer: over the test images, where all figures are accuracies whose
    images are recorded: McNemar's exact test of two accuracies, the exact binomial test of one against a number, a
    bootstrap of the images for the rest. Those know the noise of images, not that of seeds. One run's correlation with
    0: against all circular shifts of one series along the other, since neighbouring epochs are alike.

    Args:
        runs: by name, its seeds.
        missing: what is not finished, of the runs that the comparison is about.
    """
    names = runs_of(comparison)
    if missing:
        return Judgement(comparison.text, "undecided", f"not finished: {', '.join(missing)}")
    seeds = _shared_seeds([runs[name] for name in names])
    try:
        margins, left, right = _margins(comparison, runs, seeds)
        if len(margins) >= FEWEST_SEEDS:
            return _over_seeds(comparison, margins, left, right)
        if (apart := _apart(comparison, runs)) is not None:
            return apart
        if not margins:
            return Judgement(comparison.text, "undecided", "the runs share no seed")
        sides = {"left": left, "right": right, "margins": tuple(margins)}
        return _over_images(comparison, runs, seeds, sides)
    except NotMeasuredError as error:
        return Judgement(comparison.text, "undecided", str(error))


def _shared_seeds(runs: Sequence[Sequence[FinishedRun]]) -> list[int | None]:
    """The seeds that all runs have; a run with one seed is paired with each seed of the others."""
    several = [[run.seed for run in of_name] for of_name in runs if len(of_name) > 1]
    if not several:
        return [runs[0][0].seed]
    return [seed for seed in several[0] if all(seed in others for others in several)]


def _of_seed(runs: Sequence[FinishedRun], seed: int | None) -> FinishedRun:
    return runs[0] if len(runs) == 1 else next(run for run in runs if run.seed == seed)


def _margins(
    comparison: Comparison, runs: Mapping[str, Sequence[FinishedRun]], seeds: Sequence[int | None]
) -> tuple[list[float], float, float]:
    sides = []
    for seed in seeds:

        def value(leaf: Leaf, seed: int | None = seed) -> float:
            return _value(leaf, runs, seed)

        pair = [float(value_of(side, value)) for side in (comparison.left, comparison.right)]
        if not np.isfinite(pair).all():
            raise NotMeasuredError(f"{comparison.text} is no finite number")
        sides.append(pair)
    both = np.array(sides).reshape(-1, 2)
    margins = comparison.sign * (both[:, 0] - both[:, 1])
    means = both.mean(0) if len(both) else np.full(2, np.nan)
    return margins.tolist(), float(means[0]), float(means[1])


def _value(leaf: Leaf, runs: Mapping[str, Sequence[FinishedRun]], seed: int | None) -> float:
    if isinstance(leaf, Figure):
        return _of_seed(runs[leaf.run], seed).value(leaf)
    first, second = _of_seed(runs[leaf.first.run], seed).series(leaf.first.column, leaf.second.column)
    return _spearman(first, second)


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    if len(set(first)) < 2 or len(set(second)) < 2:
        raise NotMeasuredError("a correlation needs two figures that vary along the epochs")
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def _decide(margin: float, p: float) -> Verdict:
    if p >= LEVEL or margin == 0:
        return "undecided"
    return "held" if margin > 0 else "not held"


def _over_seeds(comparison: Comparison, margins: Sequence[float], left: float, right: float) -> Judgement:
    mean, spread = mean_and_sd(margins)
    half = stats.t.ppf(1 - LEVEL / 2, len(margins) - 1) * spread / np.sqrt(len(margins))
    p = 0.0 if mean else 1.0  # where all seeds agree to the last digit
    if spread > 1e-12 * abs(mean):
        p = float(stats.ttest_1samp(margins, 0.0).pvalue)
    test = f"{'paired ' if len(runs_of(comparison)) > 1 else ''}t test over {len(margins)} seeds"
    interval = mean - float(half), mean + float(half)
    return Judgement(comparison.text, _decide(mean, p), "", test, p, left, right, tuple(margins), interval)


def _apart(comparison: Comparison, runs: Mapping[str, Sequence[FinishedRun]]) -> Judgement | None:
    """Welch's t test of two runs with different seeds; None where a side is not one run, or has few seeds."""
    sides = (comparison.left, comparison.right)
    both: list[NDArray[np.float64]] = []
    names: list[str] = []
    for side in sides:
        part = Comparison("", side, side, 1)
        of_side = runs_of(part)
        if len(of_side) != 1 or len(runs[of_side[0]]) < FEWEST_SEEDS:
            return None
        values = [
            float(value_of(side, lambda leaf, seed=run.seed: _value(leaf, runs, seed)))  # type: ignore[misc]
            for run in runs[of_side[0]]
        ]
        names += of_side
        both.append(np.array(values))
    if names[0] == names[1]:
        return None
    welch = stats.ttest_ind(both[0], both[1], equal_var=False)
    means = [float(values.mean()) for values in both]
    margin = comparison.sign * (means[0] - means[1])
    bounds = sorted(comparison.sign * float(bound) for bound in welch.confidence_interval(1 - LEVEL))
    test = f"Welch's t test of {len(both[0])} and {len(both[1])} seeds"
    p = float(welch.pvalue)
    return Judgement(
        comparison.text, _decide(margin, p), "", test, p, means[0], means[1], (margin,), (bounds[0], bounds[1])
    )


def _over_images(
    comparison: Comparison,
    runs: Mapping[str, Sequence[FinishedRun]],
    seeds: Sequence[int | None],
    sides: Mapping[str, Any],
) -> Judgement:
    """The judgement where there are fewer seeds than a test over seeds needs."""
    number = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"

    def undecided(why: str) -> Judgement:
        return Judgement(comparison.text, "undecided", f"{number}; {why}", **sides)

    leaves = comparison.leaves
    if any(isinstance(leaf, Correlation) for leaf in leaves):
        shifts = _against_shifts(comparison, runs, seeds)
        if shifts is None:
            return undecided("only one correlation against 0, of one seed, has a test without more")
        verdict = _decide(sides["margins"][0], shifts[0])
        return Judgement(comparison.text, verdict, "the noise along one run", shifts[1], shifts[0], **sides)
    parts = list(dict.fromkeys(part for leaf in leaves if isinstance(leaf, Figure) for part in _parts(leaf)))
    if len({_of_seed(runs[part.run], seed).images for part in parts for seed in seeds}) > 1:
        return undecided("the runs have other test images")
    records: list[NDArray[np.bool_]] = []  # each part's in turn, for each seed
    for seed in seeds:
        for part in parts:
            record = _of_seed(runs[part.run], seed).record(part.column, part.at)
            if record is None:
                return undecided(f"{part} has no record of single images")
            records.append(record)
    if len({len(record) for record in records}) > 1:
        return undecided("the runs have other test images")
    p, test, interval = _test_of_images(comparison, parts, np.array(records), len(seeds))
    note = "the noise of images, not of seeds"
    if any(part.at == "best" for part in parts):
        note += "; these images chose the best epoch"
    verdict = _decide(float(np.mean(sides["margins"])), p)
    return Judgement(comparison.text, verdict, note, test, p, **sides, interval=interval)


def _parts(figure: Figure) -> list[Figure]:
    """The figures of single epochs that a figure is made of."""
    return [replace(figure, at=at) for at in ("best", "last")] if figure.at == "delta" else [figure]


def _test_of_images(
    comparison: Comparison, parts: Sequence[Figure], records: NDArray[np.bool_], seeds: int
) -> tuple[float, str, tuple[float, float] | None]:
    """p, the test in words, and the interval of the margin where the test gives one; of records (seeds · parts, N)."""
    images = records.shape[1]
    if seeds == 1 and is_linear(comparison.left) and is_linear(comparison.right):
        zero = np.zeros(len(parts))
        constant = float(_margin_of(comparison, parts, zero))
        slopes = [float(_margin_of(comparison, parts, unit)) - constant for unit in np.eye(len(parts))]
        used = [place for place, slope in enumerate(slopes) if abs(slope) > 1e-9]
        if len(used) == 2 and not constant and abs(slopes[used[0]] + slopes[used[1]]) < 1e-9:
            return mcnemar(records[used[0]], records[used[1]]).p, f"McNemar's exact test on {images} images", None
        if len(used) == 1 and 0 <= (share := -constant / slopes[used[0]]) <= 1:
            p = float(stats.binomtest(int(records[used[0]].sum()), images, share).pvalue)
            return p, f"exact binomial test on {images} images", None
    # Images that are right in the same records are alike, so that only their numbers are drawn.
    kinds, counts = np.unique(records.T, axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(images, counts / images, _BOOTSTRAP)
    accuracies = (drawn @ kinds.astype(float) / images).T.reshape(seeds, len(parts), _BOOTSTRAP)
    margins = np.mean([_margin_of(comparison, parts, of_seed) for of_seed in accuracies], axis=0)
    tail = min((margins <= 0).sum(), (margins >= 0).sum())
    low, high = np.nanquantile(margins, [LEVEL / 2, 1 - LEVEL / 2]).tolist()
    return min(1.0, 2 * (1 + int(tail)) / (1 + _BOOTSTRAP)), f"bootstrap of {images} images", (low, high)


def _margin_of(comparison: Comparison, parts: Sequence[Figure], accuracies: NDArray[np.float64]) -> Any:
    """The margin where the parts have these accuracies, (parts,) or (parts, resamples)."""
    known = dict(zip(parts, accuracies, strict=True))

    def value(leaf: Leaf) -> Any:
        assert isinstance(leaf, Figure)  # noqa: S101  # a correlation has been sorted out
        both = [known[part] for part in _parts(leaf)]
        return both[0] - both[1] if len(both) > 1 else both[0]

    return comparison.margin(value)


def _against_shifts(
    comparison: Comparison, runs: Mapping[str, Sequence[FinishedRun]], seeds: Sequence[int | None]
) -> tuple[float, str] | None:
    """p and the test of one run's correlation with 0, or None where the comparison is another."""
    leaves = comparison.leaves
    zeros = [side for side in (comparison.left, comparison.right) if side == Number(0.0)]
    if len(seeds) > 1 or len(leaves) != 1 or not zeros or leaves[0] not in (comparison.left, comparison.right):
        return None
    (leaf,) = leaves
    assert isinstance(leaf, Correlation)  # noqa: S101  # as the caller has seen
    first, second = _of_seed(runs[leaf.first.run], seeds[0]).series(leaf.first.column, leaf.second.column)
    ranks = stats.rankdata(first), stats.rankdata(second)
    shifted = [abs(np.corrcoef(np.roll(ranks[0], by), ranks[1])[0, 1]) for by in range(len(first))]
    p = float(np.mean(np.array(shifted) >= shifted[0] - 1e-12))
    return p, f"against the {len(first)} circular shifts along the epochs"
