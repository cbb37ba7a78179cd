"""Section 4 by sampling: the data, Lemma 2's attack, Monte-Carlo estimates and adversarial training.

A sample is (6, K): the rows x_E,1 x_E,2 x_E,3 x_C,1 x_C,2 x_C,3, K features each. torchattacks does not fit: it clips
to [0, 1] and climbs the cross-entropy, and these features are unbounded, with a margin loss whose worst δ is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccf_plugin.theory.closed_forms import SyntheticModel

DEFAULT_SAMPLES = 60_000
_EXCLUSIVE = torch.eye(3, dtype=torch.float64, device="cpu")
_HAS = torch.cat([_EXCLUSIVE, 1 - _EXCLUSIVE], dim=1)  # (3, 6): which features a class has, and which its logit sums
_SMALLEST = 1e-9  # of μ/λ


@dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo mean and its standard error."""

    mean: float
    standard_error: float


def sample(model: SyntheticModel, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` samples, the classes in turn (eq. 8): x float64 (N, 6K), labels int64 (N,)."""
    labels = torch.arange(count, device="cpu") % 3
    noise = torch.randn(count, 6, model.features, dtype=torch.float64, generator=generator, device="cpu")
    return ((model.mu + model.sigma * noise) * _HAS[labels].unsqueeze(2)).flatten(1), labels


def worst_perturbation(labels: Tensor, eps: float, features: int = 1) -> Tensor:
    """Lemma 2's δ, (N, 6K): −ε on what the class has, ε on what it has not; the worst for any weights ≥ 0."""
    return (eps * (1 - 2 * _HAS[labels])).repeat_interleave(features, dim=1)


def head_weight(weights: Tensor) -> Tensor:
    """W (3, 6K) of the linear classifier: w₁ on the exclusive features of a class, w₂ on its shared ones (eq. 16)."""
    by_feature = weights.repeat_interleave(3, dim=0)  # (6, K)
    return (_HAS.unsqueeze(2) * by_feature).flatten(1)


def losses(logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Per sample (N,): the margin loss (eq. 10), label smoothed where β > 0 (eq. 13)."""
    true_class = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    highest = logits.masked_fill(_EXCLUSIVE[labels].bool(), -torch.inf).amax(1)
    return (1 - beta) * (highest - true_class) - beta / 2 * (logits.sum(1) - true_class)


def estimate(
    model: SyntheticModel, weights: Tensor, eps: float, *, samples: int = DEFAULT_SAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Monte-Carlo estimates of what ``SyntheticModel`` has in closed form, under Lemma 2's attack.

    Returns:
        "loss" (with its weight decay), "pairwise" (against the next class) and "joint" robust probability.
    """
    model.check_eps(eps)
    x, labels = sample(model, samples, torch.Generator().manual_seed(seed))
    logits = (x + worst_perturbation(labels, eps, model.features)) @ head_weight(weights).T
    true_class = logits.gather(1, labels.unsqueeze(1))
    next_class = logits.gather(1, ((labels + 1) % 3).unsqueeze(1))
    return {
        "loss": _mean(losses(logits, labels, model.beta) + model.lam / 2 * weights.square().sum()),
        "pairwise": _mean((true_class > next_class).double()),
        "joint": _mean(((true_class > logits).sum(1) == 2).double()),
    }


def _mean(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5))


def train(
    model: SyntheticModel, eps: float, *, samples: int = DEFAULT_SAMPLES, steps: int = 30, seed: int = 0
) -> Tensor:
    """Adversarial training of the 2K weights by projected gradient descent on a sample: the weights, (2, K).

    Every step perturbs the whole sample by Lemma 2 and follows the gradient of its mean loss and weight decay. The
    start is random. The distance from ``model.optimal_weights`` is the sample's error, of the order σ / (λ√samples).
    """
    model.check_eps(eps)
    generator = torch.Generator().manual_seed(seed)
    x, labels = sample(model, samples, generator)
    adversarial = x + worst_perturbation(labels, eps, model.features)
    drawn = torch.rand(2, model.features, dtype=torch.float64, generator=generator, device="cpu")
    weights = drawn * model.mu / model.lam
    for step in range(steps):
        weights.requires_grad_()
        loss = losses(adversarial @ head_weight(weights).T, labels, model.beta).mean()
        (gradient,) = torch.autograd.grad(loss + model.lam / 2 * weights.square().sum(), weights)
        rate = (1 - step / steps) / (2 * model.lam)  # λ is the curvature; falling, since the loss has a cone at w₂ = 0
        # Not quite 0, where the two other classes tie and the gradient is not the one on the side of w >= 0.
        weights = (weights.detach() - rate * gradient).clamp(min=_SMALLEST * model.mu / model.lam)
    return weights
