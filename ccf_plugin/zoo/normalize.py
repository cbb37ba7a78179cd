"""The layer that normalises [0, 1] images: part of the model, so that attacks and files see one thing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError


class Normalize(nn.Module):
    """(images − mean) / std per channel, on images (N, C, H, W) in [0, 1]; C = len(mean), else ValueError."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.mean.shape[1]:  # grey ones would become as many channels without a word
            raise ValueError(f"expected images of {self.mean.shape[1]} channels, found {images.shape[1]}")
        return (images - self.mean) / self.std


def with_normalization(
    network: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, *, channels: int
) -> nn.Module:
    """``network`` behind a ``Normalize`` layer, as ``normalize`` and ``model``; itself where both are None.

    Raises InputError where ``mean`` and ``std`` do not have one finite value per channel, a std is not positive, or a
    mean is above 1.
    """
    if mean is None and std is None:
        return network
    for parameter, values in (("mean", mean), ("std", std)):
        count = "nothing" if values is None else f"{len(values)} values"
        if values is None or len(values) != channels:
            raise InputError(f"{parameter}: expected {channels} values, one per channel, found {count}")
        if not all(_is_number(value) and (parameter == "mean" or value > 0) for value in values):
            raise InputError(
                f"{parameter}: expected {'finite' if parameter == 'mean' else 'positive'} numbers, found {values}"
            )
    if (highest := max(mean or ())) > 1:
        found = f"found {highest}, of images in 0..255; divide mean and std by 255"
        raise InputError(f"mean: expected that of images in [0, 1], {found}")
    layers = OrderedDict(normalize=Normalize(mean or (), std or ()), model=network)
    return nn.Sequential(layers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
