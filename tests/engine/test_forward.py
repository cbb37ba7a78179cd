"""The one forward pass, with networks that need their feature maps contiguous."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import tiny
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.training.loop import train
from ccf_plugin.zoo.datasets import load_data

FEW = ("data.train_per_class=2", "data.test_limit=10", "attack.steps=1", "evaluate.steps=1")


class Viewed(nn.Module):
    """As LeNets of many a tutorial: `.view` of feature maps, which refuses channels_last ones."""

    def __init__(self, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3))
        self.head = nn.Linear(96, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).view(-1, 96))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_network_may_view_its_feature_maps(channels: int, weights: torch.memory_format, precision: str) -> None:
    torch.manual_seed(0)
    model = Viewed(channels).eval()
    images = torch.rand(5, channels, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        expected = model(images).float()
    model.to(memory_format=weights)  # type: ignore[call-overload]
    forward = Forward(model, precision=precision)  # type: ignore[arg-type]
    for images_ in (images, images.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(forward(images_), expected)


def test_images_of_one_channel_have_the_strides_of_their_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4))
    split = load_data(f"npz:{tmp_path / 'grey.npz'}", splits=("test",)).test
    assert split is not None
    ((images, _),) = split.batches(4, torch.device("cpu"))
    assert images.stride() == (64, 64, 8, 1)
    assert Viewed()(images).shape == (4, 10)


def test_such_a_network_is_trained_averaged_and_measured(tmp_path: Path) -> None:
    own = ("model.name=python:engine.test_forward:Viewed", "model.options={}", "average.kind=ema", "optim.epochs=1")
    (row,) = train(tiny(*own, *FEW), tmp_path / "run").rows
    assert None not in (row.cas, row.cas_average)
