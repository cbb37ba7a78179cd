"""Training images as uint8 on the device, shuffled and augmented there in whole batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ccf_plugin.training.mixing import Mixing
from ccf_plugin.zoo.streaming import Images, read_ahead


class Batch(NamedTuple):
    """Rows of one training step.

    ``images`` float32 (B, C, H, W) in [0, 1]; ``labels`` int64 (B,), or of mixed images their shares of the classes,
    float32 (B, K); ``indices`` int64 (B,): which of the training images they are. ``share`` is what their mean weighs
    in the mean over processes: B · processes / the step's images.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    share: float


class Draws(NamedTuple):
    """The random numbers of an epoch, in the order in which its images come.

    ``order`` int64 (N,): which image; ``shifts`` int64 (N, 2): rows and columns that its crop is moved by; ``flips``
    bool (N,); ``centres`` int64 (N, 2): row and column of its square of zeros.
    """

    order: Tensor
    shifts: Tensor
    flips: Tensor
    centres: Tensor


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of an epoch, determined by the seed and the epoch's number alone.

    Args:
        images: (N, C, H, W) uint8, on the device that trains, or in host memory or on disk.
        labels: (N,) int64, on the device that trains.
        augmentation: "none", "crop" (random crop) or "crop-flip" (and a random flip).
        padding: pixels that a crop may be shifted by.
        border: what a crop shows beyond the image: the image reflected ("reflect"), or zeros ("zero").
        cutout: side in pixels of a square of zeros around a random pixel of each image, cut off at the borders
            (DeVries and Taylor 2017); 0 for none.
        extra: so many images at the end are further data: an epoch has as many images as without them, and of each
            batch ``extra_share``, rounded, are of them, drawn without repetition until all have come.
        mixing: mixes each image, augmented, with another of its batch.
        rank, processes: which part of every batch is this process's. Together they are exactly the batches of one
            process; where a batch has too few images, the first is repeated with a share of 0.
    """

    images: Images
    labels: Tensor
    batch_size: int
    seed: int
    augmentation: Literal["none", "crop", "crop-flip"] = "none"
    padding: int = 4
    border: Literal["reflect", "zero"] = "reflect"
    cutout: int = 0
    extra: int = 0
    extra_share: float = 0.5
    mixing: Mixing | None = None
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return -(-self._count // self.batch_size)

    @property
    def _count(self) -> int:
        """How many images an epoch has."""
        return len(self.labels) - self.extra

    def draws(self, epoch: int) -> Draws:
        """The epoch's random numbers, in host memory."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        count = self._count
        height, width = self.images.shape[2:]
        order = torch.randperm(count, generator=generator, device="cpu")
        shifts = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator, device="cpu") - self.padding
        flips = torch.randint(0, 2, (count,), generator=generator, device="cpu") > 0
        places = torch.rand(count, 2, generator=generator, dtype=torch.float32, device="cpu")
        centres = (places * torch.tensor([height, width], device="cpu")).long()
        if self.augmentation == "none":
            shifts.zero_()
        if self.augmentation != "crop-flip":
            flips.zero_()
        return Draws(self._with_extra(order, generator) if self.extra else order, shifts, flips, centres)

    def _with_extra(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """The order with each batch's last images replaced by further data, mixed within the batch."""
        batches = [rows.clone() for rows in torch.split(order, self.batch_size)]
        counts = [round(self.extra_share * len(rows)) for rows in batches]
        rounds = -(-sum(counts) // self.extra)
        orders = [torch.randperm(self.extra, generator=generator, device="cpu") for _ in range(rounds)]
        drawn = torch.cat(orders or [order[:0]])
        for rows, chosen in zip(batches, torch.split(drawn[: sum(counts)], counts), strict=True):
            rows[len(rows) - len(chosen) :] = self._count + chosen
        return torch.cat([rows[torch.randperm(len(rows), generator=generator, device="cpu")] for rows in batches])

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The epoch's batches but the first ``skip``; each image once, the last batch as large as what remains."""
        device, draws = self.labels.device, self.draws(epoch)
        order, shifts, flips, centres = (numbers.to(device) for numbers in draws)
        starts = range(skip * self.batch_size, self._count, self.batch_size)
        pieces = [self._piece(start) for start in starts]
        is_resident = isinstance(self.images, Tensor) and self.images.device == device
        rows = ((order if is_resident else draws.order)[place] for place, _ in pieces)
        read = self.images.__getitem__
        fetched = map(read, rows) if is_resident else read_ahead(read, rows)
        for start, (place, share), raw in zip(starts, pieces, fetched, strict=True):
            images, chosen = raw.to(device), order[place]
            if self.augmentation != "none":
                images = shift_and_flip(images, shifts[place], flips[place], self.border)
            if self.cutout:
                images = cut_out(images, centres[place], self.cutout)
            images, labels = images.float() / 255, self.labels[chosen]
            if self.mixing is not None:  # the second half are the partners
                pairs = [half for both in (images, labels) for half in both.chunk(2)]
                images, labels = self.mixing(*pairs, epoch=epoch, batch=start // self.batch_size)
            yield Batch(images, labels, chosen[: len(images)], share)

    def _piece(self, start: int) -> tuple[slice | Tensor, float]:
        """The places of this process's part of the batch that begins at ``start``, and its share.

        Where images are mixed, those of their partners follow.
        """
        size = min(self.batch_size, self._count - start)
        first, end = (size * rank // self.processes for rank in (self.rank, self.rank + 1))
        last, share = max(end, first + 1), (end - first) * self.processes / size
        if self.mixing is None:
            return slice(start + first, start + last), share
        places = torch.arange(first, last, device="cpu")
        return start + torch.cat((places, (places + 1) % size)), share


def shift_and_flip(
    images: Tensor, shifts: Tensor, flips: Tensor, border: Literal["reflect", "zero"] = "reflect"
) -> Tensor:
    """Crop each image shifted by its own (rows, columns), then flip it left to right.

    Equal to padding by reflection or by zeros, cropping at (padding + shift) and flipping, image by image.

    Args:
        images: (N, C, H, W) of any dtype.
        shifts: (N, 2) int64, each less than H and W in size.
        flips: (N,) bool.
    """
    count, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + shifts[:, :1]
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(flips.unsqueeze(1), width - 1 - columns, columns) + shifts[:, 1:]
    which = torch.arange(count, device=images.device)[:, None, None]
    seen = _reflected(rows, height)[:, :, None], _reflected(columns, width)[:, None, :]
    shifted = images.permute(0, 2, 3, 1)[(which, *seen)].permute(0, 3, 1, 2)
    if border == "reflect":
        return shifted
    inside = _within(rows, height)[:, None, :, None] & _within(columns, width)[:, None, None, :]
    return shifted.masked_fill(~inside, 0)


def cut_out(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Images (N, C, H, W) with zeros in a square of ``side`` pixels around each one's centre, (N, 2) row and column."""
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])

    def inside(places: Tensor, centre: Tensor) -> Tensor:
        first = centre.unsqueeze(1) - side // 2
        return (places >= first) & (places < first + side)

    square = inside(rows, centres[:, 0]).unsqueeze(2) & inside(columns, centres[:, 1]).unsqueeze(1)
    return images.masked_fill(square.unsqueeze(1), 0)


def _reflected(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)
