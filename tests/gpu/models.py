"""What the tests on CUDA share: small networks, images and attacks there."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ccf_plugin.engine.graphs import CudaGraphs
from ccf_plugin.zoo.models import build_model

CUDA = torch.device("cuda")
SIMULATED = "simulated_cuda" in sys.modules  # tests/simulated_gpu


class Counted(CudaGraphs):
    """CUDA's graphs, and how many were recorded; none where it does not ``serve``."""

    def __init__(self, *, serves: bool = True) -> None:
        super().__init__()
        self.recorded = 0
        self._applies_to = serves

    def can_record(self, inputs: tuple[Tensor, ...]) -> bool:
        return self._applies_to and super().can_record(inputs)

    def record(self, run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        self.recorded += 1
        return super().record(run, device)


def network(seed: int = 0) -> nn.Module:
    """A pre-activation ResNet-18 of width 8 for 3 × 16 × 16, channels_last as in training."""
    torch.manual_seed(seed)
    options = {"width": 8, "blocks": [1, 1, 1, 1]}
    model = build_model("narrow_preact_resnet18", num_classes=10, input_size=(3, 16, 16), options=options)
    return model.to(device=CUDA, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def plain_network(seed: int = 0) -> nn.Module:
    """A few layers for 3 × 32 × 32, quickly compiled."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10)).to(CUDA)


def batch(count: int, side: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, side, side, generator=generator)
    return images.to(CUDA), torch.randint(10, (count,), generator=generator).to(CUDA)
