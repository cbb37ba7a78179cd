"""Claims judged: each test against scipy, or a case by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from support.results import drawn
from support.studies import made_run

from ccf_plugin import CrossClassResult
from ccf_plugin.measuring.claims import parse_claim
from ccf_plugin.measuring.finished_runs import FinishedRun
from ccf_plugin.measuring.verdicts import Judgement, judge
from ccf_plugin.probe import tango, tango_p

RA = "test_robust_accuracy"


def judged(claim: str, **runs: list[FinishedRun]) -> Judgement:
    (comparison,) = parse_claim(claim, list(runs))
    return judge(comparison, runs)


def seeds(folder: Path, name: str, deltas: dict[int, float]) -> list[FinishedRun]:
    """A run of two epochs, the first the best, whose CAS falls by so much in each seed."""
    return [
        made_run(
            folder / f"{name}-{seed}", [{RA: 0.5, "cas": 10.0}, {RA: 0.4, "cas": 10.0 - delta}], name=name, seed=seed
        )
        for seed, delta in deltas.items()
    ]


def test_three_seeds_are_a_paired_t_test(tmp_path: Path) -> None:
    madry = seeds(tmp_path, "madry", {0: 6.0, 1: 5.0, 2: 7.5})
    kd = seeds(tmp_path, "kd", {0: 2.0, 1: 1.5, 2: 3.0})
    found = judged("madry.delta_cas > kd.delta_cas", madry=madry, kd=kd)
    expected = stats.ttest_rel([6.0, 5.0, 7.5], [2.0, 1.5, 3.0])
    assert found.verdict == "held"
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.left, found.right) == pytest.approx((18.5 / 3, 6.5 / 3))
    assert found.test == "paired t test over 3 seeds"
    assert judged("madry.delta_cas < kd.delta_cas", madry=madry, kd=kd).verdict == "not held"


def test_seeds_that_vary_more_than_they_differ_leave_it_undecided(tmp_path: Path) -> None:
    found = judged(
        "madry.delta_cas > kd.delta_cas",
        madry=seeds(tmp_path, "madry", {0: 6.0, 1: 1.0, 2: 4.0}),
        kd=seeds(tmp_path, "kd", {0: 2.0, 1: 3.0, 2: 3.0}),
    )
    assert found.verdict == "undecided"
    assert found.p == pytest.approx(stats.ttest_rel([6.0, 1.0, 4.0], [2.0, 3.0, 3.0]).pvalue)


def test_other_seeds_are_welch_s_test_and_one_seed_goes_with_each(tmp_path: Path) -> None:
    madry = seeds(tmp_path, "madry", {0: 6.0, 1: 5.0, 2: 7.5})
    others = seeds(tmp_path, "kd", {3: 2.0, 4: 1.5, 5: 3.0, 6: 2.5})
    found = judged("madry.delta_cas > kd.delta_cas", madry=madry, kd=others)
    expected = stats.ttest_ind([6.0, 5.0, 7.5], [2.0, 1.5, 3.0, 2.5], equal_var=False)
    assert (found.verdict, found.p) == ("held", pytest.approx(expected.pvalue))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    one = judged("madry.delta_cas > kd.delta_cas", madry=madry, kd=others[:1])
    assert one.margins == pytest.approx((4.0, 3.0, 5.5))
    assert one.test == "t test over 3 seeds"
    assert one.why == "without the noise of seeds of kd, which has one; the test images chose the best epoch"
    few = judged("madry.delta_cas > kd.delta_cas", madry=madry[:2], kd=others[:2])
    assert (few.verdict, few.why) == ("undecided", "the runs share no seed; give them the same")


@pytest.mark.filterwarnings("error")
def test_seeds_without_spread_and_figures_that_are_no_number_say_so(tmp_path: Path) -> None:
    flat, other, zero = (
        [
            made_run(tmp_path / f"{name}-{seed}", [{RA: robust, "cas": 9.0}], name=name, seed=seed)
            for seed in range(first, first + 3)
        ]
        for name, first, robust in (("flat", 0, 0.4), ("other", 3, 0.3), ("zero", 6, 0.0))
    )
    agree = "all seeds agree to the last digit, so that their noise is not known"
    for claim in ("flat.ra > 0.3", "flat.ra > other.ra", "flat.cas > other.cas"):
        found = judged(claim, flat=flat, other=other)
        assert (found.verdict, found.why, found.p, found.interval) == ("undecided", agree, None, None)
    infinite = judged("zero.cas / zero.ra > flat.cas / flat.ra", zero=zero, flat=flat)
    assert (infinite.verdict, infinite.p) == ("undecided", None)
    assert "no finite number" in infinite.why


def test_three_seeds_against_a_number(tmp_path: Path) -> None:
    madry = seeds(tmp_path, "madry", {0: 6.0, 1: 5.0, 2: 7.5})
    found = judged("madry.delta_cas > 5", madry=madry)
    assert found.p == pytest.approx(stats.ttest_1samp([6.0, 5.0, 7.5], 5.0).pvalue)
    assert judged("madry.last_ra < 0.41", madry=madry).verdict == "undecided"  # the same in all seeds


def with_results(folder: Path, name: str, best: CrossClassResult, last: CrossClassResult, seed: int = 0) -> FinishedRun:
    """A run of two epochs with these results, the first the best."""
    figures = [
        {RA: robust, "cas": result.cas, "cas_excess": result.cas_excess}
        for robust, result in ((0.5, best), (0.4, last))
    ]
    return made_run(folder / f"{name}-{seed}", figures, name=name, seed=seed, results={1: best, 2: last})


def apart(result: CrossClassResult) -> NDArray[np.float64]:
    assert result.without_parts is not None
    moved = result.without_parts.apart("cas", result.matrix)
    assert moved is not None
    return moved


def test_cas_of_one_seed_is_judged_by_parts_of_its_images(tmp_path: Path) -> None:
    best, last, taught = (drawn(0, share, noise, images=400) for share, noise in ((1.2, 1), (0.2, 2), (1.1, 3)))
    madry = [with_results(tmp_path, "madry", best, last)]
    kd = [with_results(tmp_path, "kd", best, taught)]

    for name in ("cas", "cas_excess"):
        fall, variance = getattr(best, name) - getattr(last, name), best.variance_of(name, last)
        assert variance is not None
        found = judged(f"madry.delta_{name} > 0", madry=madry)
        assert found.p == pytest.approx(2 * stats.t.sf(abs(fall) / variance**0.5, 19), rel=1e-2)
        half = stats.t.ppf(0.975, 19) * variance**0.5
        assert found.interval == pytest.approx((fall - half, fall + half), abs=1e-4)
        assert found.verdict == "held"
        assert found.test == "t test by a jackknife of 20 parts of the images"
        assert found.why == "the noise of images, not of seeds; the test images chose the best epoch"

    # best - last > 0.9 (best - taught): the best epoch of both is the same model
    margin = (best.cas - last.cas) - 0.9 * (best.cas - taught.cas)
    moved = 0.1 * apart(best) - apart(last) + 0.9 * apart(taught)
    several = judged("madry.delta_cas > 0.9 * kd.delta_cas", madry=madry, kd=kd)
    assert several.p == pytest.approx(2 * stats.t.sf(abs(margin) / np.sqrt(np.square(moved).sum()), 19), rel=1e-2)
    assert judged("kd.delta_cas > madry.delta_cas", madry=madry, kd=kd).verdict == "not held"

    # of a ratio, to first order
    moved = apart(last) / taught.cas - last.cas * apart(taught) / taught.cas**2
    ratio = judged("madry.cas / kd.cas > 0.5", madry=madry, kd=kd)
    assert ratio.interval is not None
    half = stats.t.ppf(0.975, 19) * np.sqrt(np.square(moved).sum())
    assert (ratio.interval[1] - ratio.interval[0]) / 2 == pytest.approx(half, rel=0.05)


def test_cas_of_two_seeds_is_judged_on_their_average(tmp_path: Path) -> None:
    models = [(drawn(0, 1.2, noise=1), drawn(0, 0.2, noise=2)), (drawn(0, 1.3, noise=4), drawn(0, 0.1, noise=5))]
    madry = [with_results(tmp_path, "madry", *pair, seed=seed) for seed, pair in enumerate(models)]
    falls = [best.cas - last.cas for best, last in models]
    moved = np.mean([apart(best) - apart(last) for best, last in models], axis=0)
    found = judged("madry.delta_cas > 0", madry=madry)
    assert found.p == pytest.approx(2 * stats.t.sf(np.mean(falls) / np.sqrt(np.square(moved).sum()), 19), rel=1e-2)
    assert found.margins == pytest.approx(falls, rel=1e-5)


def test_cas_of_one_seed_is_undecided_where_images_say_nothing(tmp_path: Path) -> None:
    madry, kd = seeds(tmp_path, "madry", {0: 6.0}), seeds(tmp_path, "kd", {0: 2.0})
    found = judged("madry.delta_cas > kd.delta_cas", madry=madry, kd=kd)
    assert found.verdict == "undecided"
    assert found.why == "one seed; madry.best_cas has no result that the run keeps (probe.every)"
    assert found.margins == (4.0,)
    few = drawn(0, images=19)
    of_few = [with_results(tmp_path, "few", few, few)]
    why = "one seed; few.last_cas has a result without intervals, as of fewer than 20 images a class"
    assert judged("few.cas > 1", few=of_few).why == why
    others = [made_run(tmp_path / "others", [{RA: 0.5, "cas": 3.0}], name="others", results={1: drawn(0)})]
    assert "has no result" in judged("others.cas > 1", others=others).why  # it is of another CAS
    mixed = judged("few.cas > 10 * few.ra", few=of_few)
    assert mixed.why == "one seed; few.last_cas and figures of another kind have no test together"
    same = judged("few.cas - few.cas > 1", few=of_few)
    assert same.verdict == "undecided"
    larger = [with_results(tmp_path, "larger", drawn(0, classes=5), drawn(0, classes=5))]
    other = [with_results(tmp_path, "other", drawn(0), drawn(0))]
    assert judged("larger.cas > other.cas", larger=larger, other=other).why == "one seed; the runs have other classes"


def with_records(folder: Path, name: str, best: np.ndarray, last: np.ndarray, **more: object) -> list[FinishedRun]:
    figures = [{RA: float(best.mean()), "cas": 9.0}, {RA: float(last.mean()), "cas": 8.0}]
    return [made_run(folder / f"{name}-0", figures, name=name, records={1: best, 2: last}, **more)]


def draw(share: float, number: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(number) < share * number


def test_accuracies_of_one_seed_are_judged_image_by_image(tmp_path: Path) -> None:
    best, last, taught = draw(0.5), draw(0.5) & draw(0.7, seed=1), draw(0.5) & draw(0.9, seed=2)
    madry, kd = with_records(tmp_path, "madry", best, last), with_records(tmp_path, "kd", best, taught)

    found = judged("kd.ra > madry.ra", madry=madry, kd=kd)
    gained, lost = int((taught & ~last).sum()), int((last & ~taught).sum())
    assert found.p == pytest.approx(stats.binomtest(min(gained, lost), gained + lost).pvalue)
    assert (found.verdict, found.test) == ("held", "McNemar's exact test on 400 images")

    fall = judged("madry.delta_ra > 0", madry=madry)
    only = int((best & ~last).sum())
    assert fall.p == pytest.approx(2 * 0.5**only)
    assert "chose the best epoch" in fall.why

    number = judged("madry.ra < 0.4", madry=madry)
    assert number.p == pytest.approx(stats.binomtest(int(last.sum()), 400, 0.4).pvalue)
    assert number.test == "exact binomial test on 400 images"


def test_other_expressions_of_accuracies_are_judged_by_how_images_move_them(tmp_path: Path) -> None:
    best, last = draw(0.5), draw(0.5) & draw(0.7, seed=1)
    madry, kd = with_records(tmp_path, "madry", best, last), with_records(tmp_path, "kd", best, best)
    found = judged("madry.delta_ra > kd.delta_ra + 0.05", madry=madry, kd=kd)
    values = best.astype(float) - last
    z = (values.mean() - 0.05) / (values.std() / 20)
    assert found.test == "z test by a jackknife of 400 images"
    assert found.verdict == "held"
    half = stats.norm.ppf(0.975) * values.std() / 20
    assert found.interval == pytest.approx((values.mean() - 0.05 - half, values.mean() - 0.05 + half))
    assert found.p == pytest.approx(2 * stats.norm.sf(z))
    ratio = judged("kd.ra / madry.ra > 1.2", madry=madry, kd=kd)
    moved = best / last.mean() - best.mean() / last.mean() ** 2 * last  # to first order
    z = (best.mean() / last.mean() - 1.2) / (moved.std() / 20)
    assert (ratio.verdict, ratio.p) == ("held", pytest.approx(2 * stats.norm.sf(z), rel=0.1))


def test_that_two_accuracies_differ_is_no_harder_to_find_than_which_is_larger(tmp_path: Path) -> None:
    """Of a resample |difference| is above 0 whatever is true."""
    one, other = draw(0.5), draw(0.5, seed=1)
    runs = {
        "a": with_records(tmp_path, "a", one, one),
        "b": with_records(tmp_path, "b", one, other & draw(0.98, seed=2)),
    }
    apart = one.astype(float) - (other & draw(0.98, seed=2))
    found = judged("abs(a.ra - b.ra) > 0", **runs)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(apart.mean()) / (apart.std() / 20)))
    assert found.verdict == "undecided"


def test_images_that_are_right_in_both_or_in_none_decide_nothing(tmp_path: Path) -> None:
    """Of 20 images that two models share, other images would not be."""
    one = draw(0.5, 20)
    runs = {name: with_records(tmp_path, name, one, one) for name in "ab"}
    found = judged("a.ra / b.ra > 0.5", **runs)
    assert (found.verdict, found.why) == ("undecided", "one seed; its margin is the same whatever the images")
    found = judged("a.ra > b.ra - 0.01", **runs)
    assert (found.verdict, found.test) == ("undecided", "Tango's score test on 20 images")


@pytest.mark.parametrize(
    ("claim", "sign"), [("a.ra > b.ra - 0.05", 1), ("b.ra < a.ra + 0.05", 1), ("a.ra < b.ra - 0.05", -1)]
)
def test_a_margin_between_two_accuracies_is_that_of_compare(tmp_path: Path, claim: str, sign: int) -> None:
    first, second = draw(0.5), draw(0.5) & draw(0.98, seed=1) | draw(0.04, seed=3)
    found = judged(claim, a=with_records(tmp_path, "a", first, first), b=with_records(tmp_path, "b", second, second))
    interval = sorted(sign * (bound + 0.05) for bound in tango(first, second))
    assert found.test == "Tango's score test on 400 images"
    assert found.interval == pytest.approx(interval)
    assert found.p == pytest.approx(tango_p(first, second, -0.05))
    assert (found.verdict != "undecided") == (found.p < 0.05) == (interval[0] * interval[1] > 0)


def test_the_choice_of_the_best_epoch_is_told_of_any_number_of_seeds_where_the_test_images_made_it(
    tmp_path: Path,
) -> None:
    madry = seeds(tmp_path, "madry", {0: 6.0, 1: 5.0, 2: 7.5})
    told = "the test images chose the best epoch"
    assert judged("madry.delta_cas > 0", madry=madry).why == told
    assert judged("madry.last_cas > 0", madry=madry).why == ""
    chosen = "validation_robust_accuracy"
    validated = [
        replace(run, selected_by=chosen, rows=[replace(row, **{chosen: row.test_robust_accuracy}) for row in run.rows])
        for run in madry
    ]
    assert judged("madry.delta_cas > 0", madry=validated).why == ""


def test_two_seeds_are_judged_by_images_too(tmp_path: Path) -> None:
    runs = {}
    for name, share in (("madry", 0.7), ("kd", 0.95)):
        runs[name] = [
            made_run(
                tmp_path / f"{name}-{seed}",
                [{RA: 0.5, "cas": 9.0}, {RA: float(last.mean()), "cas": 8.0}],
                name=name,
                seed=seed,
                records={1: draw(0.5), 2: last},
            )
            for seed in (0, 1)
            for last in [draw(0.5) & draw(share, seed=seed + 1)]
        ]
    found = judged("kd.ra > madry.ra", **runs)
    assert (found.verdict, len(found.margins)) == ("held", 2)
    assert "not of seeds" in found.why
    assert (
        judged("kd.cas > madry.cas", **runs).why
        == "2 seeds; kd.last_cas has no result that the run keeps (probe.every)"
    )


def test_records_of_other_images_or_of_none_decide_nothing(tmp_path: Path) -> None:
    best, last = draw(0.5), draw(0.3, seed=1)
    madry = with_records(tmp_path, "madry", best, last)
    others = with_records(tmp_path, "others", best, last, images="others")
    fewer = with_records(tmp_path, "fewer", draw(0.5, 200), draw(0.3, 200))
    for name, run in (("others", others), ("fewer", fewer)):
        found = judged(f"{name}.ra > madry.ra", madry=madry, **{name: run})
        assert (found.verdict, found.why) == ("undecided", "one seed; the runs have other test images")
    none = seeds(tmp_path, "none", {0: 1.0})
    assert (
        judged("none.ra > madry.ra", madry=madry, none=none).why
        == "one seed; none.last_ra has no record of single images"
    )


def test_a_run_s_correlation_is_held_against_shifts(tmp_path: Path) -> None:
    along = np.sin(np.linspace(0, 5, 40))
    run = [made_run(tmp_path / "a", [{RA: 0.5 + x / 4, "cas": 10 + x**3} for x in along], name="a")]
    noise = np.random.default_rng(0).random(40)
    other = [
        made_run(
            tmp_path / "b", [{RA: 0.5 + x / 4, "cas": 10 + y} for x, y in zip(along, noise, strict=True)], name="b"
        )
    ]
    found = judged("spearman(a.ra, a.cas) > 0", a=run)
    assert (found.verdict, found.p, found.left) == ("held", 1 / 40, pytest.approx(1.0))
    assert judged("spearman(b.ra, b.cas) > 0", b=other).verdict == "undecided"
    assert judged("spearman(a.ra, a.cas) > 0.5", a=run).verdict == "undecided"
    few = [made_run(tmp_path / "few", [{RA: 0.5 + x / 4, "cas": 10 + x} for x in along[:20]], name="few")]
    short = judged("spearman(few.ra, few.cas) > 0", few=few)
    assert (short.verdict, short.p) == ("undecided", 1 / 20)
    trend = "the noise along one run; figures that rise or fall all along it go together by that alone"
    assert (found.why, short.why) == (trend, f"{trend}; it decides from 21 epochs on")
    flat = [made_run(tmp_path / "c", [{RA: 0.5, "cas": 10.0}] * 3, name="c")]
    assert "vary along the epochs" in judged("spearman(c.ra, c.cas) > 0", c=flat).why


def test_when_a_figure_has_lost_half(tmp_path: Path) -> None:
    """RA is below half of its highest from epoch 4 on (at 2 it came back), CAS from 5 on."""
    falls = {"a": [0.4, 0.1, 0.3, 0.19, 0.0], "b": [0.4, 0.4, 0.1, 0.1, 0.1], "c": [0.1, 0.4, 0.4, 0.1, 0.1]}
    runs = [
        made_run(
            tmp_path / name,
            [{RA: ra, "cas": cas} for ra, cas in zip(robust, (10.0, 9.0, 8.0, 5.0, 4.9), strict=True)],
            name="co",
            seed=seed,
        )
        for seed, (name, robust) in enumerate(falls.items())
    ]
    found = judged("abs(halved(co.cas) - halved(co.ra)) < 3", co=runs)
    assert found.margins == (2.0, 1.0, 2.0)  # RA at 4, 3, 4; CAS at 5
    assert found.verdict == "held"
    assert found.p == pytest.approx(stats.ttest_1samp([2.0, 1.0, 2.0], 0.0).pvalue)
    (epoch,) = judged("halved(co.ra) < 5", co=runs[:1]).margins
    assert epoch == 1.0
    assert judged("halved(co.ra) < 5", co=runs[:1]).why == "one seed; an epoch has no test with fewer than three"
    kept = [made_run(tmp_path / "kept", [{RA: 0.4, "cas": 9.0}, {RA: 0.1, "cas": 9.0}, {RA: 0.3, "cas": 9.0}])]
    why = "run's test_robust_accuracy does not end below half of its highest"
    assert judged("halved(run.ra) < 5", run=kept).why == why
    assert judged("abs(halved(run.ra) - 3) < 1", run=kept).why == why


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "madry", {0: 6.0, 1: 5.0, 2: 7.5})
    assert judged("madry.best_icas > 0", madry=runs).why == "madry.best_icas was not measured"
    assert judged("madry.cas_50 > 0", madry=runs).why == "madry has no epoch 50"
    (comparison,) = parse_claim("madry.ra > 0", ["madry"])
    assert judge(comparison, {}, missing=["madry, seed 1"]).why == "not finished: madry, seed 1"
    assert "no finite number" in judged("madry.cas / (madry.ra - madry.ra) > 0", madry=runs).why
