"""All here needs CUDA: `pytest -m gpu`. It is skipped, with that reason, where there is none.

``PYTHONPATH=tests/simulated_gpu pytest -m gpu`` runs it on a CPU that plays one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

os.environ["CCF_CUDA_GRAPHS"] = "1"  # what is tested here above all; off elsewhere until this has passed on a GPU
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS does not repeat itself bit for bit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs CUDA, which torch does not see here"))


@pytest.fixture
def same_every_time() -> Iterator[None]:
    """Kernels that give the same bits at every call."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.benchmark = benchmark
