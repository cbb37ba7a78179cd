"""A model that was trained on normalised images and is given plain ones: the note, and what the options make of it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import run_here
from torch import nn

from ccf_plugin.measuring.settings import Settings
from ccf_plugin.measuring.subject import load_subject
from ccf_plugin.zoo.normalizations import USUAL

CODE = """
from torch import nn

def net(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, classes))
"""
GREYS = np.linspace(0, 225, 10).astype(np.uint8)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Grey images, a class for each grey, and the classifier by the nearest grey of images as CIFAR-10's usually are.

    With c_k the mean over channels of (grey_k − mean) / std, argmin (z − c_k)² is argmax 2 c_k z − c_k².
    """
    images = np.repeat(GREYS, 3)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "grey.npz", x=images.astype(np.uint8), y=np.repeat(np.arange(10), 3))
    mean, std = (torch.tensor(values) for values in USUAL["cifar10"])
    centres = ((torch.tensor(GREYS / 255)[:, None] - mean) / std).mean(dim=1).float()
    weight = (2 * centres / 48)[:, None].expand(10, 48).clone()
    torch.save({"net": {"module.1.weight": weight, "module.1.bias": -(centres**2)}, "acc": 1.0}, tmp_path / "ckpt.t7")
    (tmp_path / "grey_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


BASE = {"data": "npz:grey.npz", "checkpoint": Path("ckpt.t7"), "clean": True}


@pytest.mark.usefixtures("files")
def test_a_jump_of_clean_accuracy_is_noted() -> None:
    with pytest.warns(UserWarning, match="clean accuracy") as caught:
        subject = load_subject("python:grey_code:net", Settings.of(**BASE))
    notes = [str(warning.message) for warning in caught]
    (note,) = [text for text in notes if "clean accuracy" in text]
    assert "100.0% where they are normalised as cifar10 usually is" in note
    assert note.endswith("normalize cifar10")
    assert isinstance(subject.loaded.model, nn.Sequential)
    assert not subject.loaded.model.training
    assert (subject.measure().clean_accuracy or 0) < 0.9, "what is measured is the model as it was given"


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("given", [{"normalize": "cifar10"}, USUAL["cifar10"]._asdict()], ids=["name", "values"])
def test_with_its_normalisation_it_is_right_and_nothing_is_noted(given: dict[str, object]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        subject = load_subject("python:grey_code:net", Settings.of(**BASE, **given))
    assert [str(warning.message) for warning in caught] == ["ckpt.t7: `net` of the file, prefix `module.` removed"]
    assert subject.measure().clean_accuracy == 1


def test_the_command_says_what_it_took(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe", "python:grey_code:net", "--checkpoint", "ckpt.t7", "--data", "npz:grey.npz", "--clean"]
    usual = [",".join(map(str, values)) for values in USUAL["cifar10"]]
    assert run_here(*command, "--mean", usual[0], "--std", usual[1], "--model-option", "classes=10", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["clean_accuracy"] == 1
    assert err == "ccf: note: ckpt.t7: `net` of the file, prefix `module.` removed\n"
    assert run_here(*command, "--json") == 0
    assert "normalize cifar10" in capsys.readouterr().err


def test_two_models_with_weights_of_one_s_own_are_compared(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *2 * ["python:grey_code:net"], *2 * ["--checkpoint", "ckpt.t7"], "--normalize", "cifar10"]
    assert run_here(*command, "--data", "npz:grey.npz", "--clean") == 0
    assert "100.0" in capsys.readouterr().out
