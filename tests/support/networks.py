"""A small network and a batch for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ccf_plugin.zoo.models import build_model


@pytest.fixture
def network() -> nn.Module:
    """A narrow network on 3×16×16 images that has seen a few batches, so that BatchNorm is not at its start."""
    torch.manual_seed(0)
    model = build_model("narrow_preact_resnet18", num_classes=5, input_size=(3, 16, 16), options={"width": 4})
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 16, 16))
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 16, 16, generator=generator), torch.arange(6) % 5
