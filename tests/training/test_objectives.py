"""Losses against plain float64 loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ccf_plugin.training.objectives import build_objective, madry, mart, trades


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


def _attacked(images: Tensor, labels: Tensor) -> Tensor:
    return images + 0.1 * (labels.unsqueeze(1) + 1)


@pytest.mark.parametrize("name", ["standard", "madry"])
def test_standard_and_madry_are_cross_entropy_of_what_they_are_given(name: str) -> None:
    images, weight, labels = _problem()
    adversarial = images if name == "standard" else _attacked(images, labels)
    objective = build_objective(name)
    output = objective(lambda x: x @ weight.T, images, adversarial, labels)
    assert math.isclose(float(output.loss), _cross_entropy(adversarial @ weight.T, labels), rel_tol=1e-12)
    assert torch.equal(output.logits, adversarial @ weight.T)


def _kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def _softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    images, weight, labels = _problem()
    output = madry(lambda x: x @ weight.T, images, _attacked(images, labels), labels, label_smoothing=0.3)
    expected = 0.0
    for row, label in zip((_attacked(images, labels) @ weight.T).tolist(), labels.tolist(), strict=True):
        log_p = [math.log(p) for p in _softmax(row)]
        expected -= sum((0.7 * (k == label) + 0.1) * value for k, value in enumerate(log_p)) / len(labels)
    assert math.isclose(float(output.loss), expected, rel_tol=1e-12)


def test_trades_is_its_papers_formula() -> None:
    images, weight, labels = _problem()
    output = trades(lambda x: x @ weight.T, images, _attacked(images, labels), labels, beta=2.5)
    clean, attacked = images @ weight.T, _attacked(images, labels) @ weight.T
    pairs = zip(clean.tolist(), attacked.tolist(), strict=True)
    divergences = [_kl(_softmax(p), _softmax(q)) for p, q in pairs]
    expected = _cross_entropy(clean, labels) + 2.5 * sum(divergences) / len(divergences)
    assert math.isclose(float(output.loss), expected, rel_tol=1e-12)
    assert torch.equal(output.logits, attacked)


def test_mart_is_its_papers_formula() -> None:
    images, weight, labels = _problem()
    output = mart(lambda x: x @ weight.T, images, _attacked(images, labels), labels, beta=1.5)
    expected = 0.0
    rows = zip(
        (images @ weight.T).tolist(), (_attacked(images, labels) @ weight.T).tolist(), labels.tolist(), strict=True
    )
    for clean, attacked, label in rows:
        p, q = _softmax(clean), _softmax(attacked)
        strongest = max(value for k, value in enumerate(q) if k != label)
        boosted = -math.log(q[label]) - math.log(1 - strongest)
        expected += (boosted + 1.5 * _kl(p, q) * (1 - p[label])) / len(labels)
    assert math.isclose(float(output.loss), expected, rel_tol=1e-12)


def test_simpler_cases_are_reached_bit_for_bit() -> None:
    images, weight, labels = _problem()

    def loss(objective: Any, **options: float) -> Tensor:
        return objective(lambda x: x @ weight.T, images, _attacked(images, labels), labels, **options).loss

    standard = madry(lambda x: x @ weight.T, images, images, labels)
    assert torch.equal(loss(trades, beta=0.0), standard.loss)
    assert torch.equal(loss(madry, label_smoothing=0.0), F.cross_entropy(_attacked(images, labels) @ weight.T, labels))


@pytest.mark.parametrize("objective", [madry, trades, mart])
def test_no_loss_is_nan_where_probabilities_are_zero(objective: Any) -> None:
    weight = torch.tensor([[200.0], [-200.0], [0.0]], requires_grad=True)
    images, labels = torch.tensor([[1.0], [1.0]]), torch.tensor([1, 0])
    loss = objective(lambda x: x @ weight.T, images, -images, labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("name", ["standard", "madry", "trades", "mart"])
def test_the_losses_pass_gradcheck(name: str) -> None:
    images, weight, labels = _problem()
    objective = build_objective(name)
    torch.autograd.gradcheck(
        lambda w: objective(lambda x: x @ w.T, images, _attacked(images, labels), labels).loss,
        (weight.requires_grad_(),),
    )
