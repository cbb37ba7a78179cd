"""A network without BatchNorm for test_processes: one and two processes must agree on it."""

from __future__ import annotations

from support.precise import InFloat64
from torch import nn


def layer_norm_network(num_classes: int) -> nn.Module:
    return InFloat64(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, num_classes))
    )
