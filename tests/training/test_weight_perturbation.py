"""Adversarial weight perturbation against plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import Quiet, tiny
from torch import nn

from ccf_plugin.training.loop import train
from ccf_plugin.training.objectives import StepOutput
from ccf_plugin.training.recipe import PerturbationSection
from ccf_plugin.training.weight_perturbation import perturbed_weights


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()


IMAGES = torch.rand(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 3


def _step(model: nn.Module) -> StepOutput:
    logits = model(IMAGES)
    return StepOutput(nn.functional.cross_entropy(logits, LABELS), logits)


def test_weights_stand_uphill_inside_and_are_bit_identical_afterwards() -> None:
    model = _model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = _step(_model()).loss.item()
    with perturbed_weights(model, lambda: _step(model), PerturbationSection(gamma=0.05)):
        inside = {name: value.detach().clone() for name, value in model.named_parameters()}
        assert _step(model).loss.item() > loss
    matrices = {name for name, weight in before.items() if weight.ndim > 1}
    assert len(matrices) == 2
    for name in matrices:
        assert float((inside[name] - before[name]).norm() / before[name].norm()) == pytest.approx(0.05)
    assert all(torch.equal(inside[name], before[name]) for name in before.keys() - matrices)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_the_direction_is_the_gradients() -> None:
    model, reference = _model(), _model()
    weights = [parameter for parameter in reference.parameters() if parameter.ndim > 1]
    gradients = torch.autograd.grad(_step(reference).loss, weights)
    with perturbed_weights(model, lambda: _step(model), PerturbationSection(gamma=0.1)):
        moved = [parameter.detach().clone() for parameter in model.parameters() if parameter.ndim > 1]
    for weight, gradient, found in zip(weights, gradients, moved, strict=True):
        expected = weight + 0.1 * weight.norm() * gradient / gradient.norm()
        torch.testing.assert_close(found, expected.detach())


def test_sam_moves_all_weights_together_along_their_gradient() -> None:
    model, reference = _model(), _model()
    gradients = torch.autograd.grad(_step(reference).loss, list(reference.parameters()))
    length = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
    with perturbed_weights(model, lambda: _step(model), PerturbationSection(kind="sam", gamma=0.05)):
        moved = [parameter.detach().clone() for parameter in model.parameters()]
    for weight, gradient, found in zip(reference.parameters(), gradients, moved, strict=True):
        torch.testing.assert_close(found, (weight + 0.05 * gradient / length).detach())


def test_the_gradients_pass_leaves_batchnorm_alone() -> None:
    model = _model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with perturbed_weights(model, lambda: _step(model), PerturbationSection(gamma=0.1)):
        pass
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_without_a_section_nothing_runs() -> None:
    def never() -> StepOutput:
        raise AssertionError("a pass for nothing")

    with perturbed_weights(_model(), never, None):
        pass


def test_a_run_before_its_start_epoch_is_madry_bit_for_bit_and_differs_after(tmp_path: Path) -> None:
    awp = train(tiny("awp={gamma=0.05, start_epoch=1}", "optim.epochs=2"), tmp_path / "awp", Quiet())
    madry = train(tiny("optim.epochs=2", "checkpoints.every=1"), tmp_path / "madry", Quiet())
    assert awp.rows[0].train_loss == madry.rows[0].train_loss
    first, second = (load_file(run.folder / "last.safetensors") for run in (awp, madry))
    assert not all(torch.equal(first[key], second[key]) for key in first)
