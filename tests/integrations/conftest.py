"""Weights & Biases without its servers, and the probe's small classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from probe.conftest import batch, model  # noqa: F401  (fixtures)


@pytest.fixture
def offline_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """wandb, whose runs go to the test's folder; it reads the environment once, until it is torn down."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield wandb
    wandb.teardown()
