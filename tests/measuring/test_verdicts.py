"""Claims judged: each test against scipy, or a case by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.studies import made_run

from ccf_plugin.measuring.claims import parse_claim
from ccf_plugin.measuring.finished_runs import FinishedRun
from ccf_plugin.measuring.verdicts import Judgement, judge

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


def test_three_seeds_against_a_number(tmp_path: Path) -> None:
    madry = seeds(tmp_path, "madry", {0: 6.0, 1: 5.0, 2: 7.5})
    found = judged("madry.delta_cas > 5", madry=madry)
    assert found.p == pytest.approx(stats.ttest_1samp([6.0, 5.0, 7.5], 5.0).pvalue)
    assert judged("madry.last_ra < 0.41", madry=madry).verdict == "held"  # the same in all seeds
    assert judged("madry.last_ra < 0.4", madry=madry).verdict == "undecided"


def test_cas_of_one_seed_is_undecided(tmp_path: Path) -> None:
    madry, kd = seeds(tmp_path, "madry", {0: 6.0}), seeds(tmp_path, "kd", {0: 2.0})
    found = judged("madry.delta_cas > kd.delta_cas", madry=madry, kd=kd)
    assert found.verdict == "undecided"
    assert found.why.startswith("one seed; ")
    assert found.margins == (4.0,)


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


def test_other_expressions_of_accuracies_are_resampled(tmp_path: Path) -> None:
    best, last = draw(0.5), draw(0.5) & draw(0.7, seed=1)
    madry, kd = with_records(tmp_path, "madry", best, last), with_records(tmp_path, "kd", best, best)
    found = judged("madry.delta_ra > kd.delta_ra + 0.05", madry=madry, kd=kd)
    values = best.astype(float) - last
    z = (values.mean() - 0.05) / (values.std() / 20)
    assert found.test == "bootstrap of 400 images"
    assert found.verdict == "held"
    assert found.interval == pytest.approx(
        (values.mean() - 0.05 - 1.96 * values.std() / 20, values.mean() - 0.05 + 1.96 * values.std() / 20), abs=0.005
    )
    assert found.p == pytest.approx(2 * stats.norm.sf(z), abs=1e-3)
    ratio = judged("kd.ra / madry.ra > 1.2", madry=madry, kd=kd)
    assert (ratio.verdict, ratio.test) == ("held", "bootstrap of 400 images")


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
    assert judged("kd.cas > madry.cas", **runs).why.startswith("2 seeds; ")


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
    flat = [made_run(tmp_path / "c", [{RA: 0.5, "cas": 10.0}] * 3, name="c")]
    assert "vary along the epochs" in judged("spearman(c.ra, c.cas) > 0", c=flat).why


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "madry", {0: 6.0, 1: 5.0, 2: 7.5})
    assert judged("madry.best_icas > 0", madry=runs).why == "madry.best_icas was not measured"
    assert judged("madry.cas_50 > 0", madry=runs).why == "madry has no epoch 50"
    (comparison,) = parse_claim("madry.ra > 0", ["madry"])
    assert judge(comparison, {}, missing=["madry, seed 1"]).why == "not finished: madry, seed 1"
    assert "no finite number" in judged("madry.cas / (madry.ra - madry.ra) > 0", madry=runs).why
