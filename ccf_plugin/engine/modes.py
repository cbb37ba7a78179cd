"""A model in eval mode or fit to be copied, or random numbers from a seed, for a while; and where a model lies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
