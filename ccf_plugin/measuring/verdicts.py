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
from ccf_plugin.runs.selection import BIASED, CLEAN

Verdict = Literal["held", "not held", "undecided"]
FEWEST_SEEDS = 3
_DIGITS = 1e-12  # a spread below this share of the mean is rounding
_CHOSEN = "the test images chose the best epoch"
_AGREE = "all seeds agree to the last digit, so that their noise is not known"


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

    Three seeds and more: Student's t of the margins, one a seed, which the runs share (a run's only seed goes with
    each, and ``why`` says that its noise is not known); where each side is of a run of its own and their seeds are
    others, Welch's t. Fewer: `fitting_test`.

    Args:
        runs: by name, its seeds.
        missing: what is not finished, of the runs that the comparison is about.
    """
    if missing:
        return Judgement(comparison.text, "undecided", f"not finished: {', '.join(missing)}")
    judgement = _judged(comparison, runs)
    if judgement.p is None or not _test_images_chose(comparison, runs):
        return judgement
    return replace(judgement, why="; ".join(filter(None, [judgement.why, _CHOSEN])))


def _judged(comparison: Comparison, runs: Mapping[str, Sequence[FinishedRun]]) -> Judgement:
    names = runs_of(comparison)
    seeds = _shared_seeds([runs[name] for name in names])
    try:
        margins, left, right = _margins(comparison, runs, seeds)
        if len(margins) >= FEWEST_SEEDS:
            return _over_seeds(comparison, runs, margins, left, right)
        if (apart := _apart(comparison, runs)) is not None:
            return apart
        if not margins:
            return Judgement(comparison.text, "undecided", "the runs share no seed; give them the same")
        return _of_few_seeds(
            comparison, runs, seeds, Judgement(comparison.text, "undecided", "", "", None, left, right, tuple(margins))
        )
    except NotMeasuredError as error:
        return Judgement(comparison.text, "undecided", str(error))


def _test_images_chose(comparison: Comparison, runs: Mapping[str, Sequence[FinishedRun]]) -> bool:
    """Whether a figure is of the best epoch, and the test images, which it is measured on, chose that one."""
    measured = [leaf for leaf in comparison.leaves if isinstance(leaf, Figure) and leaf.column != "epoch"]
    chosen = [leaf.run for leaf in measured if leaf.at in ("best", "delta")]
    return any(run.selected_by in (BIASED, CLEAN) for name in chosen for run in runs[name])


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
    if not p < LEVEL or margin == 0:  # a p that is NaN decides nothing
        return "undecided"
    return "held" if margin > 0 else "not held"


def _over_seeds(
    comparison: Comparison,
    runs: Mapping[str, Sequence[FinishedRun]],
    margins: Sequence[float],
    left: float,
    right: float,
) -> Judgement:
    mean, spread = mean_and_sd(margins)
    if spread <= _DIGITS * abs(mean):
        return Judgement(comparison.text, "undecided", _AGREE, left=left, right=right, margins=tuple(margins))
    half = stats.t.ppf(1 - LEVEL / 2, len(margins) - 1) * spread / np.sqrt(len(margins))
    p = float(stats.ttest_1samp(margins, 0.0).pvalue)
    names = runs_of(comparison)
    single = [name for name in names if len(runs[name]) == 1]
    why = f"without the noise of seeds of {' and '.join(single)}, which has one" if single else ""
    paired = "paired " if len(names) - len(single) > 1 else ""
    test = f"{paired}t test over {len(margins)} seeds"
    interval = mean - float(half), mean + float(half)
    return Judgement(comparison.text, _decide(mean, p), why, test, p, left, right, tuple(margins), interval)


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
        if not np.isfinite(values).all():
            raise NotMeasuredError(f"{comparison.text} is no finite number")
        names += of_side
        both.append(np.array(values))
    if names[0] == names[1]:
        return None
    means = [float(values.mean()) for values in both]
    margin = comparison.sign * (means[0] - means[1])
    known = Judgement(comparison.text, "undecided", _AGREE, left=means[0], right=means[1], margins=(margin,))
    if max(float(values.std()) for values in both) <= _DIGITS * max(map(abs, means)):
        return known
    welch = stats.ttest_ind(both[0], both[1], equal_var=False)
    low, high = sorted(comparison.sign * float(bound) for bound in welch.confidence_interval(1 - LEVEL))
    p = float(welch.pvalue)
    test = f"Welch's t test of {len(both[0])} and {len(both[1])} seeds"
    return replace(known, verdict=_decide(margin, p), why="", test=test, p=p, interval=(low, high))


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
