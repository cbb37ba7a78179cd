"""Each of the digits' recipes learns: shortened in every test run, as shipped among the slow tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs import Quiet

from ccf_plugin.runs.log import EpochRow, read_log
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe_files import load_recipe, shipped_recipes

DIGITS = [name for name in shipped_recipes() if name.startswith("digits")]
SHORT = [
    *("model.options.width=8", "optim.epochs=6", "optim.decay_epochs=[5]", "data.test_limit=200"),
    *("evaluate.every=6", "evaluate.steps=10", "probe.every=6", "probe.pictures=false"),
]
RAMP = "distill=[{teacher='average', weight=0.8, temperature=2.0, ramp=[3, 6], weight_after=1.0}]"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders to train in, of the shortened runs and of those as shipped: a teacher is also a student's run."""
    return {kind: tmp_path_factory.mktemp(kind) for kind in ("short", "whole")}


def _last_row(name: str, overrides: list[str]) -> EpochRow:
    """Of the recipe's run in the working directory, after that of its teacher; each is trained once."""
    folder = Path("runs") / name
    if not folder.exists():
        for section in load_recipe(name).distill:
            if section.teacher != "average":
                _last_row(Path(section.teacher).name, overrides)
        train(load_recipe(name, overrides), folder, Quiet())
    return read_log(folder)[-1]


def _robust_accuracy(row: EpochRow) -> float:
    """Of the averaged weights where there are some: they are the recipe's result."""
    averaged = row.test_robust_accuracy_average
    figure = row.test_robust_accuracy if averaged is None else averaged
    assert figure is not None
    return figure


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "digits" else pytest.mark.slow) for name in DIGITS]
)
def test_it_learns_in_a_few_epochs(name: str, kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """RA under PGD-10 is three times chance or more; with these settings it is 50 to 60 %."""
    monkeypatch.chdir(kept["short"])
    steps = [] if load_recipe(name).attack.steps == 1 else ["attack.steps=3"]
    ramp = ["average.stop_epoch=6", RAMP] if load_recipe(name).average is not None else []
    assert _robust_accuracy(_last_row(name, [*SHORT, *steps, *ramp])) >= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_it_learns_as_shipped(name: str, kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures in the recipes' headers are 84 to 86 %."""
    monkeypatch.chdir(kept["whole"])
    row = _last_row(name, [])
    assert _robust_accuracy(row) >= 0.7
    assert row.test_clean_accuracy is not None
    assert row.test_clean_accuracy >= 0.9
