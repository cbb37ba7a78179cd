"""Losses of one's own: ``objective.loss = "python:…"``."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs import Quiet, assert_same_run, tiny

from ccf_plugin.errors import InputError
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe_files import load_recipe

OWN = "objective.loss=python:training.own_losses:"


def test_the_same_formula_gives_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    plain = train(tiny(), tmp_path / "plain", Quiet())
    own = train(tiny(f"{OWN}cross_entropy"), tmp_path / "own", Quiet())
    assert_same_run(own, plain)
    resumed = train(tiny(f"{OWN}cross_entropy"), tmp_path / "own", Quiet(), resume=True)
    assert resumed.is_finished


def test_options_are_its_keywords(tmp_path: Path) -> None:
    one = train(tiny(f"{OWN}cross_entropy", "optim.epochs=1", "optim.lr=1e-9"), tmp_path / "one", Quiet())
    recipe = tiny(f"{OWN}cross_entropy", "optim.epochs=1", "optim.lr=1e-9", "objective.options.factor=4.0")
    assert train(recipe, tmp_path / "four", Quiet()).rows[0].train_loss == pytest.approx(4 * one.rows[0].train_loss)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forgetful", r"expected a StepOutput of a scalar loss with a gradient and logits \(16, K\), found Tensor"),
        ("detached", "found a loss without one"),
        ("flat", r"found shapes \(\) and \(16,\)"),
        ("raising", r"expected it to run, found ZeroDivisionError: .* \(own_losses.py, line \d+\); correct the code"),
        ("unfit", r"expected a function of \(forward, images, adversarial, labels\).*refuses"),
        ("NUMBER", "expected a function, found int"),
        ("cross_entropie", "did you mean 'cross_entropy'"),
    ],
)
def test_what_is_no_loss_is_said(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny(OWN + name), tmp_path / "run", Quiet())
    assert not (tmp_path / "run" / "state" / "last.json").exists()


def test_a_file_that_names_one_needs_leave(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "digits"\n[objective]\nloss = "python:training.own_losses:flat"\n')
    with pytest.raises(InputError, match="add allow_code=True"):
        load_recipe(str(tmp_path / "mine.toml"))
    assert load_recipe(str(tmp_path / "mine.toml"), allow_code=True).objective.loss.startswith("python:")
