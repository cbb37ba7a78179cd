"""Small networks, and the outside data where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ccf_plugin.zoo.models import build_model

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def outside_data() -> Path:
    """The folder ``data`` in ``CCF_TEST_DATA`` (default ``../shared``)."""
    folder = REPOSITORY / os.environ.get("CCF_TEST_DATA", "../shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set CCF_TEST_DATA to the folder of outside test data")
    return folder


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks here are too small to share out among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
