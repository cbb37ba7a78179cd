"""The probe attaches to what RobustBench, timm, torchvision and transformers hold: small networks always, every row of
the tables with ``-m slow``.

`coverage_tables/*.csv` is the table of a full run on random weights (see `zoo_coverage.py` for the command).
"""

from __future__ import annotations

import importlib.util
from typing import Any

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


# How many networks a table stands for at least, and the first words of the names that are refused.
CLAIMED = {
    "robustbench": (206, {"Chen2020Adversarial", "Diffenderfer2021Winning", "Bai2023Improving", "Bai2024MixedNUTS"}),
    "timm": (1100, {"volo"}),
    "torchvision": (15, {"squeezenet1"}),
    "transformers": (10, set()),
}


@pytest.mark.parametrize("library", CLAIMED)
def test_the_table_is_what_is_claimed(library: str) -> None:
    """The committed full run: what has a linear head is attached; mixtures, maxima and a ReLU behind the last layer (in
    squeezenet) are refused.
    """
    rows = coverage.read_table(library)
    assert {row.outcome for row in rows} <= {"attached", "refused"}
    refused = {row.model for row in rows if row.outcome == "refused"}
    assert all(float(row.error) <= 1e-5 for row in rows if row.outcome == "attached")
    assert all(row.reason for row in rows if row.outcome == "refused")
    few, names = CLAIMED[library]
    assert sum(int(row.stands_for or 1) for row in rows) >= few
    assert {name.split("/")[-1].split("_")[0] for name in refused} == names


def test_every_network_of_torchvision_is_probed_in_training_too() -> None:
    rows = coverage.read_table("torchvision")
    in_training = {row.model.removesuffix(coverage.TRAINING) for row in rows if row.model not in coverage.TORCHVISION}
    assert in_training == set(coverage.AUXILIARY)


def test_of_robustbench_all_are_there_but_mixtures() -> None:
    rows = coverage.read_table("robustbench")
    assert (len(rows), sum(row.outcome == "refused" for row in rows)) == (206, 11)


SMALL = {  # the others are slow
    "timm": coverage.SMALL_TIMM,
    "torchvision": set(coverage.NAMES["torchvision"]()) - set(coverage.LARGE_TORCHVISION),
    "transformers": list(coverage.TRANSFORMERS),
}


def rows_of_all_tables() -> list[Any]:
    marked = []
    for library in ("robustbench", "timm", "torchvision", "transformers"):
        for row in coverage.read_table(library):
            slow = [] if row.model in SMALL.get(library, ()) else [pytest.mark.slow]
            marked.append(pytest.param(library, row, id=f"{library}-{row.model}", marks=slow))
    return marked


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "row"), rows_of_all_tables())
def test_every_row(library: str, row: coverage.Row) -> None:
    if library in ("torchvision", "transformers"):
        pytest.importorskip(library)
    with coverage.time_limit(coverage.SECONDS):
        found = coverage.ROWS[library](row.model)
    assert (found.outcome, found.kind, found.head, found.features) == (row.outcome, row.kind, row.head, row.features)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [row.model for row in coverage.read_table("robustbench") if row.outcome == "refused"])
def test_mixtures_are_measured_by_gradients(name: str) -> None:
    with coverage.time_limit(coverage.SECONDS):
        members, cas = coverage.by_gradients(*coverage.robustbench_model(name))
    assert " + " in members
    assert 0 <= cas <= 2
