"""Models whose output is no tensor alone: every measurement is that of the same network by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import run_here
from support.hosts import OUTPUTS, TAKEN, both
from torch import nn

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.evaluate import AttackSettings, MeasuredSplit, measure
from ccf_plugin.measuring.robustness import AUTOATTACK, evaluate
from ccf_plugin.measuring.settings import ProbeOptions
from ccf_plugin.measuring.subject import Subject
from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.datasets import load_data
from ccf_plugin.zoo.sources import LoadedModel


def _data(count: int) -> MeasuredSplit:
    digits = load_data("digits", splits=("test",), test_limit=count)
    assert digits.test is not None
    return MeasuredSplit(digits.test, digits.classes)


def _subject(model: nn.Module, count: int, output: str | None, *, eps: float = 0.1) -> Subject:
    attack = AttackSettings(threat_model(eps=eps, steps=2))
    probe = ProbeOptions(output=output)
    loaded = LoadedModel(model=model, spec="host", name="host")
    return Subject(loaded, _data(count), attack, torch.device("cpu"), probe, batch_size=10)


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("attack", ["PGD", "APGD"])
def test_the_figures_under_attack_are_those_by_hand(name: str, attack: str) -> None:
    settings = AttackSettings(threat_model(eps=0.1, steps=3), attack)
    results = [
        measure(model, _data(20), settings, probe=ProbeOptions(output=output))
        for model, output in zip(both(name), (OUTPUTS.get(name), None), strict=True)
    ]
    assert results[0].figures() == results[1].figures()
    np.testing.assert_array_equal(results[0].matrix, results[1].matrix)


@pytest.mark.parametrize("name", TAKEN)
def test_an_evaluation_is_the_one_by_hand(name: str, tmp_path: Path) -> None:
    outputs = OUTPUTS.get(name), None
    found = [
        evaluate(_subject(model, 20, output), tmp_path / f"{place}.json", steps=(2,)).accuracies
        for place, (model, output) in enumerate(zip(both(name), outputs, strict=True))
    ]
    assert found[0] == found[1]


def test_autoattack_runs_on_it(tmp_path: Path) -> None:
    found = [
        evaluate(_subject(model, 5, None, eps=1.0), tmp_path / f"{place}.json", steps=(1,), autoattack=True).accuracies
        for place, model in enumerate(both("a_dataclass"))
    ]
    assert found[0] == found[1]
    assert found[0][AUTOATTACK] == 0


def test_which_logits_is_asked_before_anything_is_written(tmp_path: Path) -> None:
    model, _ = both("two_answers")
    with pytest.raises(InputError, match=r"choose the logits with output='one' or output='two'$"):
        evaluate(_subject(model, 5, None), tmp_path / "e.json", steps=(1,))
    assert not list(tmp_path.iterdir())


DIGITS = ("--data", "digits", "--limit", 20, "--steps", 1)


@pytest.mark.parametrize("command", ["probe", "evaluate", "compare", "saliency"])
@pytest.mark.parametrize("name", ["hugging_face", "two_answers"])
def test_commands_take_it(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = f"python:support.hosts:{name}"
    models = [spec] if command in ("probe", "evaluate") else [spec, spec]
    more = ["--indices", "0,1"] if command == "saliency" else []
    chosen = ["--output", OUTPUTS[name]] if name in OUTPUTS else []
    arguments = (command, *models, *DIGITS, *more, "--out", "result")
    assert run_here(*arguments, *chosen) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "result.json").read_text())


@pytest.mark.parametrize("command", ["probe", "evaluate", "compare", "saliency"])
def test_commands_ask_which_entry_it_is(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    models = ["python:support.hosts:two_answers"] * (1 if command in ("probe", "evaluate") else 2)
    assert run_here(command, *models, *DIGITS) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--output='one' or --output='two'" in line
    assert not list(tmp_path.iterdir())
