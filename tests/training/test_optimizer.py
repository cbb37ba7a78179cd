"""Optimisers against their formulas in float64, and as parts of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import Quiet, assert_same_run, interrupted, tiny
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.training.loop import Loop, train
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import OptimSection
from ccf_plugin.training.setup import prepare
from ccf_plugin.training.state import build_optimizer

LR, DECAY, MOMENTUM = 0.1, 0.02, 0.8


def sgd(steps: list[Tensor], start: Tensor, decay: float, nesterov: bool) -> Tensor:
    weight, velocity = start, torch.zeros_like(start)
    for gradient in steps:
        whole = gradient + decay * weight
        velocity = MOMENTUM * velocity + whole
        weight = weight - LR * (whole + MOMENTUM * velocity if nesterov else velocity)
    return weight


def adamw(steps: list[Tensor], start: Tensor, decay: float, nesterov: bool) -> Tensor:
    """Algorithm 2 of Loshchilov and Hutter 2019."""
    weight, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    for t, gradient in enumerate(steps, 1):
        first = MOMENTUM * first + (1 - MOMENTUM) * gradient
        second = 0.999 * second + 0.001 * gradient**2
        hat = (first / (1 - MOMENTUM**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        weight = weight - LR * (hat + decay * weight)
    return weight


@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize(
    ("name", "nesterov", "formula"), [("sgd", False, sgd), ("sgd", True, sgd), ("adamw", False, adamw)]
)
def test_steps_are_those_of_the_formula(name: Any, nesterov: bool, formula: Any, decay_all: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    optim = OptimSection(
        name=name, nesterov=nesterov, decay_all=decay_all, lr=LR, weight_decay=DECAY, momentum=MOMENTUM
    )
    optimizer = build_optimizer(model, optim)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    gradients = {key: [torch.randn_like(weight) for _ in range(4)] for key, weight in before.items()}
    for step in range(4):
        for key, weight in model.named_parameters():
            weight.grad = gradients[key][step].clone()
        optimizer.step()
    for key, weight in model.named_parameters():
        decay = DECAY if decay_all or key == "0.weight" else 0.0
        torch.testing.assert_close(weight.detach(), formula(gradients[key], before[key], decay, nesterov))


def test_the_gradient_is_cut_to_the_norm_of_all_weights() -> None:
    """Without decay and in the first step, the weights move by lr · clip_norm."""
    recipe = tiny("optim.clip_norm=0.01", "optim.weight_decay=0.0", "precision=float32")
    parts = prepare(recipe, torch.device("cpu"))
    before = [weight.detach().clone() for weight in parts.model.parameters()]
    next(Loop(parts, Processes(parts.recipe.device)).steps(1))
    moved = torch.cat([(a - b).flatten() for a, b in zip(parts.model.parameters(), before, strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_run_by_adamw_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings = ("optim.lr=0.001", "optim.decay_all=false", "optim.epochs=2", "optim.schedule=linear")
    recipe = tiny("optim.name=adamw", *settings)
    whole = train(recipe, tmp_path / "whole", Quiet())
    interrupted(recipe, tmp_path / "stopped")
    assert_same_run(train(recipe, tmp_path / "stopped", Quiet(), resume=True), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.schedule=points"], "optim.points: expected points with schedule 'points'"),
        (["optim.points=[[0, 0.1]]"], "optim.points: expected points with schedule 'points'"),
        (["optim.name=adamw", "optim.nesterov=true"], "optim.nesterov: expected false with AdamW"),
        (["optim.momentum=0.0", "optim.nesterov=true"], "optim.nesterov: expected false with AdamW or without"),
    ],
)
def test_what_does_not_go_together_is_told(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(*settings)
