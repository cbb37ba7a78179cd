"""Losses against plain float64 loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ccf_plugin.training.objectives import OBJECTIVES, madry, standard


def _cross_entropy(logits: Tensor, labels: Tensor) -> float:
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total += math.log(sum(math.exp(value) for value in row)) - row[label]
    return total / len(labels)


def _problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return images, weight, torch.tensor([0, 1, 2, 0, 1, 2])


def _forbidden(images: Tensor, labels: Tensor) -> Tensor:
    raise AssertionError("standard training ran the attack")


def test_standard_is_cross_entropy_of_clean_images() -> None:
    images, weight, labels = _problem()
    output = standard(lambda x: x @ weight.T, images, labels, _forbidden)
    assert math.isclose(float(output.loss), _cross_entropy(images @ weight.T, labels), rel_tol=1e-12)
    assert torch.equal(output.logits, images @ weight.T)


def test_madry_is_cross_entropy_of_attacked_images() -> None:
    images, weight, labels = _problem()
    output = madry(lambda x: x @ weight.T, images, labels, lambda x, y: x + 0.1 * y.unsqueeze(1))
    attacked = images + 0.1 * labels.unsqueeze(1)
    assert math.isclose(float(output.loss), _cross_entropy(attacked @ weight.T, labels), rel_tol=1e-12)


def test_the_losses_pass_gradcheck() -> None:
    images, weight, labels = _problem()
    for objective in OBJECTIVES.values():
        torch.autograd.gradcheck(
            lambda w, objective=objective: objective(lambda x: x @ w.T, images, labels, lambda x, y: x + 0.1).loss,
            (weight.requires_grad_(),),
        )
