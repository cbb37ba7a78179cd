"""Training images as uint8 on the device, shuffled and augmented there in whole batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of an epoch, determined by the seed and the epoch's number alone.

    Args:
        images: (N, C, H, W) uint8, on the device that trains.
        labels: (N,) int64, there too.
        augmentation: "none", "crop" (random crop with reflected borders) or "crop-flip" (and a random flip).
        padding: pixels that a crop may be shifted by.
    """

    images: Tensor
    labels: Tensor
    batch_size: int
    seed: int
    augmentation: Literal["none", "crop", "crop-flip"] = "none"
    padding: int = 4

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images in [0, 1] and labels; each image once, the last batch as large as what remains."""
        device = self.images.device
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        count = len(self.labels)
        order = torch.randperm(count, generator=generator).to(device)
        shifts = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator).to(device)
        flips = torch.randint(0, 2, (count,), generator=generator).to(device) > 0
        if self.augmentation == "none":
            shifts.fill_(self.padding)
        if self.augmentation != "crop-flip":
            flips.fill_(False)
        for start in range(0, count, self.batch_size):
            chosen = order[start : start + self.batch_size]
            images = self.images[chosen]
            if self.augmentation != "none":
                here = slice(start, start + self.batch_size)
                images = shift_and_flip(images, shifts[here] - self.padding, flips[here])
            yield images.float() / 255, self.labels[chosen]


def shift_and_flip(images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Crop each image shifted by its own (rows, columns), borders reflected, then flip it left to right.

    Equal to padding by reflection, cropping at (padding + shift) and flipping, image by image.

    Args:
        images: (N, C, H, W) of any dtype.
        shifts: (N, 2) int64, each less than H and W in size.
        flips: (N,) bool.
    """
    count, _, height, width = images.shape
    rows = _reflected(torch.arange(height, device=images.device) + shifts[:, :1], height)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(flips.unsqueeze(1), width - 1 - columns, columns)
    columns = _reflected(columns + shifts[:, 1:], width)
    which = torch.arange(count, device=images.device)
    channels_last = images.permute(0, 2, 3, 1)
    return channels_last[which[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
