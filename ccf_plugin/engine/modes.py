"""A model in eval mode or fit to be copied, or random numbers from a seed, for a while; and where a model lies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter lies, or else its first buffer; the CPU for a model without either."""
    return next(
        (tensor.device for tensors in (model.parameters(), model.buffers()) for tensor in tensors), torch.device("cpu")
    )


@contextlib.contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Every module is in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode  # not train(): that would also set the module's children


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in its own mode afterwards."""
    with preserved_modes(model):
        model.eval()
        yield


@contextlib.contextmanager
def copyable(model: nn.Module) -> Iterator[None]:
    """Inside, ``copy.deepcopy`` takes the model.

    It refuses tensors with a graph, such as the weight that torch's older ``weight_norm`` and ``spectral_norm`` compute
    in every pass and leave in the layer's ``__dict__``.
    """
    computed = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        for module, name, value in computed:
            vars(module)[name] = value.detach()
        yield
    finally:
        for module, name, value in computed:
            vars(module)[name] = value


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from ``seed`` inside, the host's random state as before afterwards; None: nothing changes."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def seeded_by(attack: object, seed: int | None) -> Iterator[None]:
    """APGD, Square, … and attacks with noise of each image's own seed themselves: inside by this seed, if any."""
    own = {} if seed is None else {id(part): (part, part.seed) for part in _seeding(attack)}
    try:
        for part, _ in own.values():
            part.seed = seed
        yield
    finally:
        for part, before in own.values():
            part.seed = before


def _seeding(attack: object, seen: frozenset[int] = frozenset()) -> Iterator[Any]:
    """Those of an attack and the ones that it is made of which have a seed."""
    inside = getattr(attack, "__dict__", {})
    if id(attack) in seen:
        return
    if isinstance(inside.get("seed"), int):
        yield attack
    several = inside.get("_attacks")  # torchattacks'; ``_attack`` is build_attack's
    for part in (*(several.values() if isinstance(several, dict) else ()), inside.get("_attack")):
        yield from _seeding(part, seen | {id(attack)})
