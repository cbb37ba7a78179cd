"""What `CrossClassProbe.run` borrows from the host and gives back, and what an attack says of itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from ``seed`` inside, the host's random state as before afterwards; None: nothing changes."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def describe_attack(attack: object) -> dict[str, Any]:
    """What an attack says of itself: ``describe()`` where it has one, else what torchattacks' attributes tell."""
    describe = getattr(attack, "describe", None)
    if callable(describe):
        return dict(describe())
    found = {key: getattr(attack, name) for key, name in _TORCHATTACKS_NAMES.items() if hasattr(attack, name)}
    return {"attack": getattr(attack, "__name__", type(attack).__name__), **found}


_TORCHATTACKS_NAMES = {"eps": "eps", "step_size": "alpha", "steps": "steps"}
