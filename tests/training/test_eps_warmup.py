"""eps that rises over the first epochs: each epoch trains as at its own eps, and a resumed run goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.runs import assert_same_run, interrupted, tiny

from ccf_plugin import train
from ccf_plugin.threat import threat_model
from ccf_plugin.training.recipe_notes import unreached

WARMUP = "attack.warmup_epochs=4"


def test_eps_and_step_size_rise_together() -> None:
    recipe = tiny(WARMUP, "attack.eps=20/255", "attack.step_size=6/255")
    whole = recipe.training_threat()
    assert (whole.eps, whole.step_size) == (20 / 255, 6 / 255)
    for epoch, share in ((1, 0.25), (2, 0.5), (3, 0.75), (4, 1), (5, 1)):
        threat = recipe.training_threat(epoch)
        assert (threat.eps, threat.step_size) == pytest.approx((share * 20 / 255, share * 6 / 255), rel=1e-15)
        assert (threat.norm, threat.steps) == (whole.norm, whole.steps)
    assert recipe.evaluation_threat().eps == 20 / 255
    assert tiny().training_threat(1) == tiny().training_threat() == threat_model(eps="20/255", steps=whole.steps)


def test_the_first_epoch_is_one_at_its_own_eps(tmp_path: Path) -> None:
    train(tiny(WARMUP, "optim.epochs=1"), tmp_path / "rising")
    own = ("attack.eps=5/255", "evaluate.eps=20/255", "evaluate.step_size=5/255")
    train(tiny(*own, "optim.epochs=1"), tmp_path / "own")
    train(tiny("optim.epochs=1"), tmp_path / "whole")
    rising, own_eps, whole = (load_file(tmp_path / name / "last.safetensors") for name in ("rising", "own", "whole"))
    assert all(rising[key].equal(own_eps[key]) for key in rising)
    assert not all(rising[key].equal(whole[key]) for key in rising)


def test_a_resumed_run_goes_on_with_the_eps_of_its_epoch(tmp_path: Path) -> None:
    recipe = tiny("attack.warmup_epochs=3", "optim.epochs=3")
    resumed = train(recipe, interrupted(recipe, tmp_path / "resumed"), resume=True)
    assert_same_run(resumed, train(recipe, tmp_path / "whole"))


def test_a_warmup_that_does_not_end_is_told() -> None:
    assert unreached(tiny("attack.warmup_epochs=9", "optim.epochs=3")) == ["attack.warmup_epochs 9"]
