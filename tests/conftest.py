"""What all tests share: where the data beside the project lie, and one thread, so that timing noise stays small."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

OUTSIDE = Path(__file__).parents[1] / os.environ.get("CCF_TEST_DATA", "../shared")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Small networks are slower on two threads than on one, and far slower where another process wants the second.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(scope="session")
def outside() -> Path:
    """The folder ``CCF_TEST_DATA`` (default ``../shared``): real CIFAR-10 in ``data``, figures in ``golden``."""
    if not (OUTSIDE / "data").is_dir():
        pytest.skip(f"{OUTSIDE / 'data'} is absent; set CCF_TEST_DATA to the folder of outside test data")
    return OUTSIDE


@pytest.fixture(scope="session")
def outside_data(outside: Path) -> Path:
    """Real CIFAR-10."""
    return outside / "data"
