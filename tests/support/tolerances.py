"""How far two right results may lie apart: by the rounding of their sums, and no more."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def rounding(terms: int, dtype: torch.dtype = torch.float32, *, scale: float = 1.0) -> float:
    """How far apart two orders of adding up ``terms`` products may end, whose magnitudes sum to ``scale``.

    Each order ends within λ √terms u · scale of the exact sum, with u = eps / 2 the unit roundoff of ``dtype``, but for
    a chance of 2 exp(−λ²/2) at most (Higham & Mary 2019, theorem 2.4); here λ = 4. The terms of sums of sums add up.
    """
    return 4 * math.sqrt(terms) * torch.finfo(dtype).eps * scale


def terms_of(model: nn.Module) -> int:
    """How many products stand one behind another in a network's pass: the inputs of one output of each layer."""
    return sum(weight[0].numel() for weight in model.parameters() if weight.ndim > 1)


def undecided(logits: Tensor, tolerance: float) -> int:
    """How many rows of (N, K) logits have two largest so near each other that rounding decides between them.

    tolerance: of a logit, as a fraction of the largest in magnitude.
    """
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    return int((first - second <= 2 * tolerance * logits.abs().max()).sum())
