"""What a claim means, by hand; and that nothing but claims is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.claims import Comparison, Correlation, Figure, Leaf, is_linear, parse_claim, runs_of

RUNS = ["madry", "kd"]
VALUES = {
    Figure("madry", "cas", "delta"): 6.0,
    Figure("kd", "cas", "delta"): 2.0,
    Figure("madry", "test_robust_accuracy", "last"): 0.2,
    Figure("kd", "test_robust_accuracy", "last"): 0.25,
    Figure("madry", "cas", 50): 7.3,
    Figure("madry", "epoch", "best"): 12.0,
    Figure("madry", "instance_cas", "best"): 30.0,
}


def value(leaf: Leaf) -> float:
    return 0.8 if isinstance(leaf, Correlation) else VALUES[leaf]


@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("madry.delta_cas > kd.delta_cas", 4.0),
        ("kd.delta_cas < 0.5 * madry.delta_cas", 1.0),
        ("kd.ra >= madry.last_ra", 0.05),
        ("madry.cas_50 <= 2 * (3 + 1)", 0.7),
        ("madry.best_epoch / 4 > 1", 2.0),
        ("abs(-madry.best_icas) < max(31, 2, kd.delta_cas)", 1.0),
        ("min(madry.delta_cas, kd.delta_cas) - 1 > 0", 1.0),
        ("spearman(madry.ra, madry.cas) > 0.5", 0.3),
        ("kd.test_robust_accuracy > 0", 0.25),
    ],
)
def test_a_comparison_has_its_margin(text: str, margin: float) -> None:
    (comparison,) = parse_claim(text, RUNS)
    assert comparison.margin(value) == pytest.approx(margin)


def test_a_chain_claims_each_step_and_a_figure_without_a_run_is_that_of_each() -> None:
    chain = parse_claim("kd.delta_cas < madry.delta_cas < 7", RUNS)
    assert [one.text for one in chain] == ["kd.delta_cas < madry.delta_cas", "madry.delta_cas < 7"]
    each = parse_claim("spearman(ra, cas) > 0", RUNS)
    assert [(runs_of(one), one.text) for one in each] == [
        (["madry"], "madry: spearman(ra, cas) > 0"),
        (["kd"], "kd: spearman(ra, cas) > 0"),
    ]
    (halved,) = parse_claim("halved(ra) < 5", ["co"])
    assert runs_of(halved) == ["co"]
    assert [one.text for one in parse_claim("ra < 0.05", ["co"])] == ["ra < 0.05"]


@pytest.mark.parametrize(
    ("text", "linear"),
    [
        ("kd.ra - 2 * madry.ra / 4 + 1 > 0", True),
        ("kd.ra * madry.ra > 0", False),
        ("1 / kd.ra > 0", False),
        ("abs(kd.ra) > 0", False),
    ],
)
def test_what_is_linear(text: str, linear: bool) -> None:
    (comparison,) = parse_claim(text, RUNS)
    assert is_linear(comparison.left) is linear


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kdd.ra > 0", "expected a run of this study (madry, kd), found 'kdd'; did you mean 'kd'?"),
        ("kd.rra > 0", "found 'rra'; did you mean 'ra'"),
        ("kd.best_cass > 0", "found 'cass'; did you mean 'cas'"),
        ("pearson(kd.ra, kd.cas) > 0", "a function among spearman, halved, abs, min, max, found 'pearson'"),
        ("spearman(kd.ra, madry.cas) > 0", "two figures of one run in spearman, found 'kd' and 'madry'"),
        ("spearman(kd.best_ra, kd.cas) > 0", "figures of a run without an epoch in spearman"),
        ("halved(kd.last_ra) > 0", "as in halved(kd.ra), found others"),
        ("halved(kd.ra, kd.cas) > 0", "expected one argument of halved, found 2"),
        ("spearman(kd.ra) > 0", "expected two arguments of spearman, found 1"),
        ("kd.ra == 0.5", "expected <, >, <= or >=, which a test can judge, found =="),
        ("kd.ra in madry.ra", "found in"),
        ("kd.ra", "expected a comparison by < or >"),
        ("kd.ra > 0 and madry.ra > 0", "expected a comparison by < or >"),
        ("1 < 2", "expected a figure of a run in it, found none"),
        ("", "none that can be read"),
        ("kd.ra >", "none that can be read"),
        ("kd.ra > 'a'", "expected numbers, run.figure"),
        ("kd.ra > True", "expected numbers, run.figure"),
        ("kd.ra > 1j", "expected numbers, run.figure"),
        ("kd.ra ** 9999999 > 0", "expected numbers, run.figure"),
        ("__import__('os').system('true') > 0", "expected numbers, run.figure"),
        ("().__class__.__bases__ > kd.ra", "expected numbers, run.figure"),
        ("kd.__class__ > 0", "found '__class__'"),
        ("(lambda: 1)() > kd.ra", "expected numbers, run.figure"),
        ("kd.ra > " + "(" * 250 + "1", "none that can be read"),
        ("kd.ra > " + "1+" * 500 + "1", "none that can be read"),
    ],
)
def test_what_is_no_claim_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_claim(text, RUNS)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@given(st.text(alphabet="kdmary.c_s<>=+-*/()0123456789 ,e'[]{}:@\\\n", max_size=60))
def test_any_text_is_a_claim_or_a_fault(text: str) -> None:
    found: list[Comparison] | str
    try:
        found = parse_claim(text, RUNS)
    except InputError as error:
        found = str(error)
    assert found
    assert "\n" not in found
