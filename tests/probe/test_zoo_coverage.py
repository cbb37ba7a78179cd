"""The probe attaches to what RobustBench and timm hold: one network of each timm group and a few of RobustBench's
always, every entry of RobustBench with ``-m slow``.

`coverage_tables/*.csv` is the table of a full run on random weights (see `zoo_coverage.py` for the command).
"""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest

from . import zoo_coverage as coverage

timm = pytest.importorskip("timm")
if importlib.util.find_spec("robustbench") is None:  # importing it needs the zoo's repairs
    pytest.skip("robustbench is not installed", allow_module_level=True)

# the kinds of network that the full table shows, on the smallest of each: (name, outcome, kind, head)
ROBUSTBENCH = [
    ("cifar10/Linf/Wong2020Fast", "attached", "Linear", "linear"),
    ("cifar10/L2/Rice2020Overfitting", "attached", "Linear", "linear"),
    ("cifar10/Linf/Standard", "attached", "Linear", None),
    ("imagenet/Linf/Salman2020Do_R18", "attached", "Linear", "model.fc"),
]
SMALL_SECONDS = 60


def check(row: coverage.Row, outcome: str, kind: str | None, head: str | None) -> None:
    assert row.outcome == outcome, row
    assert kind is None or row.kind == kind
    assert head is None or row.head == head
    if outcome == "attached":
        assert float(row.error) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "outcome", "kind", "head"), ROBUSTBENCH)
def test_robustbench(name: str, outcome: str, kind: str | None, head: str | None) -> None:
    with coverage.time_limit(SMALL_SECONDS):
        check(coverage.robustbench_row(name), outcome, kind, head)


def test_a_narrow_volo_is_refused_with_the_reason() -> None:
    """Its logits are a head's plus half of the maximum over an auxiliary head's tokens."""
    volo = timm.models.volo.VOLO(
        layers=(1, 1, 1, 1), embed_dims=(24, 24, 24, 24), num_heads=(1, 1, 1, 1), num_classes=10
    )
    row = coverage.cover("volo", volo, (3, 224, 224))
    assert row.outcome == "refused"
    assert "'aux_head'" in row.reason
    assert "several positions" in row.reason


@pytest.mark.parametrize("library", ["robustbench", "timm"])
def test_the_table_is_what_is_claimed(library: str) -> None:
    """The committed full run: everything with a linear head is attached, and only mixtures and maxima are refused."""
    rows = coverage.read_table(library)
    outcomes = Counter(row.outcome for row in rows)
    assert set(outcomes) == {"attached", "refused"}
    refused = {row.model for row in rows if row.outcome == "refused"}
    assert all(float(row.error) <= 1e-5 for row in rows if row.outcome == "attached")
    assert all(row.reason for row in rows if row.outcome == "refused")
    if library == "timm":
        assert sum(int(row.stands_for) for row in rows) >= 1100
        assert refused == {"volo_d1_224"}
    else:
        assert len(rows) == 206
        assert {name.split("/")[-1].split("_")[0] for name in refused} == {
            "Chen2020Adversarial",
            "Diffenderfer2021Winning",
            "Bai2023Improving",
            "Bai2024MixedNUTS",
        }
        assert len(refused) == 11


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", coverage.read_table("robustbench"), ids=lambda row: row.model)
def test_every_robustbench_entry(row: coverage.Row) -> None:
    with coverage.time_limit(coverage.SECONDS):
        found = coverage.robustbench_row(row.model)
    assert (found.outcome, found.kind, found.head) == (row.outcome, row.kind, row.head), found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", coverage.read_table("timm"), ids=lambda row: row.model)
def test_every_timm_group(row: coverage.Row) -> None:
    with coverage.time_limit(coverage.SECONDS):
        found = coverage.timm_row(row.model)
    assert (found.outcome, found.kind, found.head) == (row.outcome, row.kind, row.head), found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [row.model for row in coverage.read_table("robustbench") if row.outcome == "refused"])
def test_mixtures_are_measured_by_gradients(name: str) -> None:
    with coverage.time_limit(coverage.SECONDS):
        members, cas = coverage.by_gradients(*coverage.robustbench_model(name))
    assert " + " in members
    assert 0 <= cas <= 2
