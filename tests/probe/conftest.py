"""Small classifiers."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import rounding
from torch import Tensor, nn

# Of C, from the pixels on: a convolution of 9, a mean of 9, 24 features, some 12 images.
ROUNDING = rounding(9 + 9 + 24 + 12)


@pytest.fixture
def model() -> nn.Module:
    """A network with everything that a probe could disturb: BatchNorm, dropout, a nested head."""
    return small_network()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return small_batch()


def small_network(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(body, nn.Dropout(0.2), nn.Linear(24, classes))


def small_batch(count: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % classes
