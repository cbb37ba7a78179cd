"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["probe.probe", "integrations.torchmetrics"])
def test_examples(name: str) -> None:
    if name.endswith("torchmetrics"):
        pytest.importorskip("torchmetrics")
    found = doctest.testmod(importlib.import_module(f"ccf_plugin.{name}"))
    assert found.attempted
    assert not found.failed
