"""Claims judged by the test that fits: over seeds where there are three, over test images where there are fewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ccf_plugin.measuring.claims import Comparison, Figure, Halving, Leaf, runs_of, value_of
from ccf_plugin.measuring.few_seeds import LEVEL, fitting_test
from ccf_plugin.measuring.finished_runs import FinishedRun, NotMeasuredError, of_seed
from ccf_plugin.runs.seeds import mean_and_sd

Verdict = Literal["held", "not held", "undecided"]
FEWEST_SEEDS = 3


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
    its own and their seeds are others, Welch's t. Fewer: `fitting_test`.

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
        return _of_few_seeds(
            comparison, runs, seeds, Judgement(comparison.text, "undecided", "", "", None, left, right, tuple(margins))
        )
    except NotMeasuredError as error:
        return Judgement(comparison.text, "undecided", str(error))


def _shared_seeds(runs: Sequence[Sequence[FinishedRun]]) -> list[int | None]:
    """The seeds that all runs have; a run with one seed is paired with each seed of the others."""
    several = [[run.seed for run in of_name] for of_name in runs if len(of_name) > 1]
    if not several:
        return [runs[0][0].seed]
    return [seed for seed in several[0] if all(seed in others for others in several)]


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
        return of_seed(runs[leaf.run], seed).value(leaf)
    if isinstance(leaf, Halving):
        return of_seed(runs[leaf.of.run], seed).halved(leaf.of)
    first, second = of_seed(runs[leaf.first.run], seed).series(leaf.first.column, leaf.second.column)
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


def _of_few_seeds(
    comparison: Comparison, runs: Mapping[str, Sequence[FinishedRun]], seeds: Sequence[int | None], known: Judgement
) -> Judgement:
    margin = float(np.mean(known.margins))
    try:
        tested = fitting_test(comparison, runs, seeds, margin)
    except NotMeasuredError as error:
        number = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        return replace(known, why=f"{number}; {error}")
    verdict = _decide(margin, tested.p)
    return replace(known, verdict=verdict, why=tested.note, test=tested.test, p=tested.p, interval=tested.interval)
