"""A model that is used otherwise than it was trained, on plain images or with another activation: the notes on it."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import run_here
from torch import nn

from ccf_plugin.measuring.evaluate import MeasuredSplit
from ccf_plugin.measuring.mismatch import note_mismatch
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.measuring.subject import load_subject
from ccf_plugin.zoo.datasets import Split
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


@pytest.mark.parametrize(("order", "is_noted"), [([0, 1, 2], False), ([2, 1, 0], True)], ids=["RGB", "BGR"])
def test_channels_in_the_order_of_opencv_are_noted(order: list[int], is_noted: bool, recwarn: Any) -> None:
    """Red, green and blue images, each of the class that has its channel's number in the network's order."""
    images = torch.eye(3)[torch.arange(30) % 3].view(30, 3, 1, 1).expand(30, 3, 4, 4) * 255
    data = MeasuredSplit(Split(images.to(torch.uint8), torch.arange(30) % 3), ("r", "g", "b"), "colours")
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, bias=False))
    network[2].weight.data = torch.eye(3)[:, order]
    note_mismatch(network, data, device=torch.device("cpu"), is_normalized=True)
    notes = [str(warning.message) for warning in recwarn]
    assert ["100.0% where their channels are blue, green, red" in note for note in notes] == [True] * is_noted


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


ACTIVATED = """
import torch
import torch.nn.functional as F
from torch import nn

FORMS = {
    "module": lambda name: {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}[name](),
    "in place": lambda name: {"relu": nn.ReLU, "silu": nn.SiLU}[name](inplace=True),
    "function": lambda name: getattr(F, name),
    "method": lambda name: {"relu": lambda x: x.relu(), "silu": F.silu}[name],
    "statement": lambda name: lambda x: (torch.relu_(x) if name == "relu" else F.silu(x, inplace=True), x)[1],
}


class Net(nn.Module):
    def __init__(self, activation="relu", form="module"):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(a, 16, 3) for a in (3, 16, 16, 16))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16, momentum=None) for _ in range(4))
        self.activation = FORMS[form](activation)
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        for convolution, norm in zip(self.convolutions, self.norms):
            images = self.activation(norm(convolution(images)))
        return self.head(images.mean((2, 3)))
"""


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Coloured noise, and networks whose BatchNorm has seen other such images in training."""
    (tmp_path / "activated_code.py").write_text(ACTIVATED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "activated_code", raising=False)
    code = importlib.import_module("activated_code")
    images = np.random.default_rng(0).integers(0, 256, (200, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", x=images[:100], y=np.arange(100) % 10)
    seen = torch.from_numpy(images[100:]).permute(0, 3, 1, 2) / 255
    for name, inputs in {
        "relu": seen,
        "silu": seen,
        "gelu": seen,
        "half": (seen - 0.5) / 0.5,
        "bytes": seen * 255,
    }.items():
        torch.manual_seed(0)
        network = code.Net("relu" if name in ("half", "bytes") else name)
        with torch.no_grad():
            for convolution in network.convolutions:
                convolution.weight += 0.02  # the values' mean depends on the activation, as it does after training
        network(inputs)
        torch.save(network.state_dict(), f"{name}.pt")
    return tmp_path


def _notes(checkpoint: str, **settings: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = {"data": "npz:noise.npz", "clean": True, "checkpoint": Path(f"{checkpoint}.pt"), **settings}
        load_subject("python:activated_code:Net", Settings.of(**given))
    return [str(warning.message) for warning in caught]


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("form", ["module", "in place", "function", "method", "statement"])
def test_another_activation_than_in_training_is_noted(form: str) -> None:
    (note,) = _notes("silu", options={"form": form})
    assert "with SiLU in place of the network's activation" in note
    assert note.endswith("if the model was trained so, build it so")
    assert _notes("silu", options={"form": form, "activation": "silu"}) == []
    assert _notes("relu", options={"form": form}) == []


@pytest.mark.usefixtures("saved")
def test_the_nearest_activation_is_named() -> None:
    (note,) = _notes("gelu", options={"activation": "silu"})
    assert "with GELU" in note
    (note,) = _notes("relu", options={"activation": "gelu"})
    assert "with ReLU" in note


@pytest.mark.usefixtures("saved")
def test_a_normalisation_that_no_data_set_has_is_noted_by_what_batchnorm_recorded() -> None:
    (note,) = _notes("half")
    assert note.endswith("say it: mean and std 0.5,0.5,0.5")
    assert _notes("half", mean=(0.5,) * 3, std=(0.5,) * 3) == []
    (note,) = _notes("bytes")
    assert "say it: mean 0,0,0, std 0.00392157,0.00392157,0.00392157" in note
    assert _notes("bytes", mean=(0.0,) * 3, std=(0.00392157,) * 3) == []


@pytest.mark.usefixtures("saved")
def test_other_images_than_in_training_and_random_weights_are_no_sign(tmp_path: Path) -> None:
    dark = np.random.default_rng(1).integers(0, 80, (100, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "dark.npz", x=dark, y=np.arange(100) % 10)
    assert _notes("relu", data="npz:dark.npz") == []
    network = importlib.import_module("activated_code").Net()
    torch.save(network.state_dict(), "random.pt")
    assert _notes("random") == []


def test_looking_changes_nothing_of_the_model(saved: Path) -> None:
    network = importlib.import_module("activated_code").Net()
    network.load_state_dict(torch.load(saved / "silu.pt", weights_only=True))
    images = torch.randint(0, 256, (20, 3, 12, 12), dtype=torch.uint8)
    data = MeasuredSplit(Split(images, torch.arange(20) % 10), tuple(map(str, range(10))), "noise")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.warns(UserWarning, match="SiLU"):
        note_mismatch(network, data, device=torch.device("cpu"), is_normalized=True)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())
