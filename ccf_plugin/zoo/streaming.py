"""Images that stay on disk and are decoded when a batch asks for them; reading batches ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ccf_plugin.engine.memory import host_bytes
from ccf_plugin.errors import InputError
from ccf_plugin.zoo.image_files import ImageFile, Preprocess, read_images

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class StreamedImages:
    """Images on disk, decoded by several threads at a time when some of them are asked for.

    Raises:
        InputError: from any access, naming what cannot be decoded or is not of the first image's size.
    """

    files: Sequence[ImageFile]
    preprocess: Preprocess | None
    image_shape: tuple[int, ...]

    @classmethod
    def of(cls, files: Sequence[ImageFile], preprocess: Preprocess | None, *, colour: bool = False) -> StreamedImages:
        """Images of the first one's size and channels; grey ones are RGB after a coloured first, or with ``colour``."""
        channels, *size = read_images(files[:1], preprocess).shape[1:]
        return cls(files, preprocess, (3 if colour else channels, *size))

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self.files), *self.image_shape))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Decode the images of ``rows``, int64 (B,)."""
        files = [self.files[row] for row in rows.tolist()]
        images = torch.from_numpy(read_images(files, self.preprocess))
        channels, *size = self.image_shape
        if list(images.shape[2:]) != size or images.shape[1] > channels:
            expected, actual = ("×".join(map(str, shape)) for shape in (self.image_shape, images.shape[1:]))
            raise InputError(
                f"expected images of {expected} as {self.files[0]} is, found {actual} among {files[0]} and "
                f"{len(files) - 1} others; convert them"
            )
        return images.expand(-1, channels, -1, -1)

    def subset(self, rows: Tensor | slice) -> StreamedImages:
        """Those of ``rows``, int64 (B,)."""
        files = self.files[rows] if isinstance(rows, slice) else [self.files[row] for row in rows.tolist()]
        return replace(self, files=files)


# N uint8 images of the shape (N, C, H, W), of which a tensor of rows gives some.
Images = Tensor | StreamedImages


def open_images(files: Sequence[ImageFile], preprocess: Preprocess | None, *, colour: bool = False) -> Images:
    """Images in memory; where they would take more than half of the machine's, ``StreamedImages``.

    In memory all are grey where every one is, else RGB; with ``colour`` always RGB.
    """
    streamed = StreamedImages.of(files, preprocess, colour=colour)
    if prod(streamed.shape) > host_bytes() / 2:
        return streamed
    images = read_images(files, preprocess)
    return torch.from_numpy(np.repeat(images, 3, axis=1) if colour and images.shape[1] == 1 else images)


def on_device(images: Images, device: torch.device) -> Images:
    """In the device's memory; where they would take more than half of what is free there, as they are."""
    is_large = device.type == "cuda" and prod(images.shape) > torch.cuda.mem_get_info(device)[0] / 2
    return images.to(device) if isinstance(images, Tensor) and not is_large else images


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``read`` of each item, by a thread that is one item ahead of who uses them."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = None
        for item in items:
            following = reader.submit(read, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
