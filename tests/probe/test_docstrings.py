"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["probe", "metric"])
def test_examples(name: str) -> None:
    if name == "metric":
        pytest.importorskip("torchmetrics")
    found = doctest.testmod(importlib.import_module(f"ccf_plugin.probe.{name}"))
    assert found.attempted
    assert not found.failed
