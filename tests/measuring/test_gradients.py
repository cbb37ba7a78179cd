"""Input gradients against finite differences and by hand, and as columns of a run's log."""

from __future__ import annotations

import csv
import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from support.broken_gradients import NONE
from support.runs import tiny
from torch import Tensor, nn

from ccf_plugin import InputError, load_model, train
from ccf_plugin.measuring.gradients import check_gradients, input_gradients
from ccf_plugin.threat import ThreatModel, threat_model
from ccf_plugin.training.setup import prepare
from ccf_plugin.zoo.datasets import Split

IMAGES = torch.randint(0, 256, (9, 1, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SPLIT = Split(IMAGES, torch.arange(9) % 3)


class Double(nn.Module):
    """float32 images, a float64 network: finite differences see it exactly enough."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(5, 12, generator=generator).double())
        self.second = nn.Parameter(torch.randn(3, 5, generator=generator).double())
        self.points: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.detach().double())
        return self.logits(images.double())

    def logits(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.first.T).tanh() @ self.second.T


def slopes(model: Double, points: Tensor, labels: Tensor) -> np.ndarray:
    """By central differences, (N, 12)."""

    def losses(flat: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model.logits(flat), labels, reduction="none")

    flat, step = points.flatten(1), 1e-5
    columns = [(losses(flat + step * one) - losses(flat - step * one)) / (2 * step) for one in torch.eye(12).double()]
    return torch.stack(columns, 1).detach().numpy()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_they_are_those_of_finite_differences_at_points_of_the_ball(norm: str) -> None:
    model, threat = Double(), threat_model(norm=norm, eps=0.4)
    found = input_gradients(model, SPLIT, threat, batch_size=9)
    here, there = model.points
    moves = (there - here).flatten(1)
    torch.testing.assert_close(here, IMAGES.double() / 255, rtol=0, atol=1e-7)
    sizes = moves.abs().amax(1) if norm == "Linf" else moves.norm(dim=1)
    assert sizes.max() <= 0.4 + 1e-6
    assert sizes.min() > (0.2 if norm == "Linf" else 0.4 - 1e-6)
    first, second = slopes(model, here, SPLIT.labels), slopes(model, there, SPLIT.labels)
    lengths = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    assert found.norm == pytest.approx(lengths[0].mean(), rel=1e-5)  # logits and pixels are float32
    assert found.alignment == pytest.approx(((first * second).sum(1) / (lengths[0] * lengths[1])).mean(), rel=1e-4)


def test_each_image_has_its_own_point_and_the_model_is_as_it_was() -> None:
    threat = threat_model(eps=0.3)
    whole = input_gradients(Double(), SPLIT, threat, seed=2)
    model = Double().train()
    in_parts = input_gradients(model, SPLIT, threat, seed=2, batch_size=2)
    assert astuple(in_parts) == pytest.approx(astuple(whole), rel=1e-6)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert input_gradients(Double(), SPLIT, threat, seed=3).alignment != whole.alignment


def test_a_linear_network_is_aligned_for_two_classes_and_one_without_slope_has_none() -> None:
    class Slope(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(weight))

        def forward(self, images: Tensor) -> Tensor:
            score = self.weight * images.flatten(1).sum(1)
            return torch.stack((torch.zeros_like(score), score), 1)

    split, threat = Split(IMAGES, torch.arange(9) % 2), ThreatModel("Linf", 0.5, 0.1, 1)
    assert input_gradients(Slope(0.3), split, threat).alignment == pytest.approx(1, abs=1e-6)
    flat = input_gradients(Slope(0.0), split, threat)
    assert flat.norm == 0
    assert math.isnan(flat.alignment)


def test_a_model_without_gradients_is_refused_in_one_line() -> None:
    class Detached(Double):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.detach())

    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.ones(len(images), 3)

    for model in (Detached(), Fixed()):
        with pytest.raises(InputError, match="expected a model that passes a gradient to its images") as caught:
            input_gradients(model, SPLIT, threat_model())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", NONE)
def test_each_way_to_break_gradients_off_is_refused(model: type[nn.Module]) -> None:
    images, labels = torch.rand(3, 1, 8, 8), torch.arange(3)
    with pytest.raises(InputError, match=r"found that none reaches them: .*; measure no gradients"):
        check_gradients(model(), images, labels)


def test_a_run_logs_them_where_its_recipe_asks(tmp_path: Path) -> None:
    rows = {}
    for asked in ("true", "false"):
        run = train(tiny("optim.epochs=1", f"probe.gradients={asked}"), tmp_path / asked)
        with (tmp_path / asked / "log.csv").open(newline="") as file:
            (rows[asked],) = csv.DictReader(file)
    assert rows["true"].keys() - rows["false"].keys() == {"gradient_norm", "gradient_alignment"}
    parts = prepare(run.recipe, torch.device("cpu"))
    model = load_model(str(tmp_path / "true")).model
    found = input_gradients(model, parts.test, run.recipe.evaluation_threat(), classes=len(parts.classes))
    logged = float(rows["true"]["gradient_norm"]), float(rows["true"]["gradient_alignment"])
    assert logged == pytest.approx(astuple(found), rel=1e-4)  # of a csv's digits
