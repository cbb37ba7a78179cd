"""Models that pass no gradient to their images, or zeros only: told in one line wherever attacks run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchattacks
from support.broken_gradients import NONE, InSteps, Working
from support.commands import run_here, sets
from support.runs import SMALLEST
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.gradients import NoGradientError
from ccf_plugin.probe import CrossClassProbe
from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.attacks import build_attack
from ccf_plugin.zoo.auto_attack import build_autoattack

IMAGES, LABELS = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6)
NEED_ONE = [("PGD", "Linf"), ("FGSM", "Linf"), ("TPGD", "Linf"), ("APGD", "Linf"), ("PGDL2", "L2"), ("CW", "L2")]


@pytest.mark.parametrize("model", NONE)
@pytest.mark.parametrize(("name", "norm"), NEED_ONE)
def test_an_attack_says_that_none_reaches_the_images(model: Any, name: str, norm: str) -> None:
    network = model().eval()
    attack = build_attack(name, Forward(network), threat_model(norm=norm, steps=10))
    with torch.no_grad():
        labels = network(IMAGES).argmax(1)  # what is wrong already is not attacked
    with pytest.raises(NoGradientError, match=r"none reaches them.*; probe it with clean or attack Square") as caught:
        attack(IMAGES, labels)
    assert "\n" not in str(caught.value)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_autoattack_says_so_too() -> None:
    network = NONE[0]().eval()
    attack, _ = build_autoattack(network, threat_model(), num_classes=10, seed=0)
    with pytest.raises(NoGradientError):
        attack(IMAGES, network(IMAGES).argmax(1))


@pytest.mark.parametrize("model", NONE)
def test_square_needs_none(model: Any) -> None:
    network = model().eval()
    attack = build_attack("Square", Forward(network), threat_model(eps=0.5), options={"n_queries": 200})
    with torch.no_grad():
        labels = network(IMAGES).argmax(1)
        assert (network(attack(IMAGES, labels)).argmax(1) != labels).any()


@pytest.mark.parametrize("model", NONE)
def test_a_plain_attack_in_a_probes_run_says_so(model: Any) -> None:
    network = model()
    attack = torchattacks.PGD(network, steps=2)
    with CrossClassProbe(network, head="head") as probe:
        with pytest.raises(
            NoGradientError, match=r"none reaches them.*; leave attack out, or give one that needs none"
        ):
            probe.run([(IMAGES, LABELS)], attack)


class Saturated(nn.Module):
    """So sure that the loss is 0, and its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)) * 1e6


def test_zeros_alone_are_noted_once() -> None:
    network = InSteps()
    attack = build_attack("PGD", Forward(network), threat_model(steps=2))
    with pytest.warns(UserWarning, match="attack PGD: the gradients of all 6 images of its first batch are zero"):
        attack(IMAGES, LABELS)
    with warnings.catch_warnings(action="error"):
        attack(IMAGES, LABELS)
    assert not network._forward_pre_hooks
    sure = Saturated()
    with pytest.warns(UserWarning, match="are zero"):
        build_attack("PGD", Forward(sure), threat_model(eps=1e-4, steps=2))(IMAGES, sure(IMAGES).argmax(1))


def test_one_image_with_a_gradient_is_enough() -> None:
    class Partly(Working):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return torch.cat([logits[:-1].detach(), logits[-1:]])

    with warnings.catch_warnings(action="error"):
        for model in (Working(), Partly()):
            build_attack("PGD", Forward(model), threat_model(steps=2))(IMAGES, LABELS)


def test_a_probes_run_notes_zeros_of_plain_attacks_and_does_not_repeat_those_of_ours() -> None:
    network = InSteps()
    for attack in (torchattacks.PGD(network, steps=2), build_attack("PGD", Forward(network), threat_model(steps=2))):
        with CrossClassProbe(network, head="head") as probe, pytest.warns(UserWarning, match="zero") as told:
            probe.run([(IMAGES, LABELS)] * 2, attack)
        assert ["are zero" in str(warning.message) for warning in told].count(True) == 1
    assert not network._forward_pre_hooks
    with CrossClassProbe(Working()) as probe, warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", message="no sample")
        probe.run([(IMAGES, LABELS), (IMAGES, LABELS + 4)], torchattacks.PGD(probe.model, steps=2))


MODEL = "python:support.broken_gradients:FrozenTrunk"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["probe", MODEL], "probe it with --clean or --attack Square, which need none"),
        (["compare", MODEL, MODEL], "probe it with --clean or --attack Square"),
        (["evaluate", MODEL], "probe it with clean or --attack Square"),
        (["evaluate", MODEL, "--autoattack"], "probe it with clean or --attack Square"),
    ],
)
def test_commands_say_it_in_one_line(
    arguments: list[str], remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(*arguments, "--data", "digits", "--limit", 20) == 2
    *notes, line = capsys.readouterr().err.splitlines()
    assert all("without a checkpoint has the weights that its code makes" in note for note in notes)
    assert "none reaches them" in line
    assert remedy in line


def test_training_says_it_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here("train", "digits", *sets([*SMALLEST[2:], f"model={{name='{MODEL}'}}"])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "choose evaluate.name = 'Square', which needs none" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("remedy", [["--clean"], ["--attack", "Square", "--eps", "0.9"]])
@pytest.mark.parametrize("name", ["FrozenTrunk", "InferenceTrunk", "WhollyInference"])
def test_the_remedies_work(
    name: str, remedy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    model = f"python:support.broken_gradients:{name}"
    code = run_here("probe", model, "--data", "digits", "--limit", 10, *remedy)
    assert code == 0, capsys.readouterr().err


def test_commands_note_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    model = "python:support.broken_gradients:InSteps"
    assert run_here("probe", model, "--data", "digits", "--limit", 20, "--head", "head") == 0
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "without a checkpoint has the weights that its code makes" not in line]
    (line,) = told
    assert line.startswith("ccf: note: attack PGD: the gradients of all 20 images")
