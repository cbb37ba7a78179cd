"""Checkpoints as runs write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ccf_plugin.zoo.checkpoints import on_host, write_checkpoint


def save_checkpoint(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """The model's weights and what is said of them, in one file."""
    write_checkpoint([path], on_host(model.state_dict()), metadata)
