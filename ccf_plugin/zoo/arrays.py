"""Images and labels in memory as a reader gives them: checked, and brought to one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.readers import Arrays

_MOST_CLASSES = 1_000_000  # where only the labels say how many there are; beyond, they are no labels


def checked_arrays(
    spec: str, arrays: Arrays, splits: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]]:
    """The class names, and of those of ``splits`` that there are the images uint8 (N, H, W, C) and labels int64 (N,).

    Raises InputError for what is not as ``Arrays`` describes it.
    """
    names = {split: arrays.names.get(split, (f"{split} images", f"{split} labels")) for split in arrays.splits}
    images = {
        split: _images(spec, names[split][0], array) for split, (array, _) in arrays.splits.items() if split in splits
    }
    labels = {split: _labels(spec, *names[split], *pair) for split, pair in arrays.splits.items()}
    highest = max(int(of_split.max()) for of_split in labels.values())
    if arrays.classes is None and highest >= _MOST_CLASSES:
        raise InputError(f"{spec}: expected labels under {_MOST_CLASSES:,}, found {highest}; number the classes from 0")
    classes = tuple(map(str, range(highest + 1) if arrays.classes is None else arrays.classes))
    if highest >= len(classes):
        raise InputError(f"{spec}: expected labels 0 to {len(classes) - 1} (see classes), found {highest}")
    return classes, {split: (of_split, labels[split]) for split, of_split in images.items()}


def _images(spec: str, name: str, images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8:
        raise InputError(f"{spec}: expected {name} of uint8 in 0..255, found {images.dtype}; scale and convert it")
    with_channels = images[..., None] if images.ndim == 3 else images
    if with_channels.ndim != 4 or with_channels.shape[-1] not in (1, 3) or 0 in with_channels.shape:
        raise InputError(f"{spec}: expected {name} of shape (N, H, W, 1 or 3) or (N, H, W), found {images.shape}")
    return with_channels


def _labels(spec: str, image_name: str, name: str, images: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    count = len(images) if images.ndim else 0
    if labels.shape != (count,) or count == 0 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{spec}: expected {name} of {count} integers, one per image of {image_name}, "
            f"found {labels.dtype} of shape {labels.shape}"
        )
    if labels.max() > np.iinfo(np.int64).max:
        raise InputError(f"{spec}: expected labels under {_MOST_CLASSES:,} in {name}, found {labels.max()}")
    if labels.min() < 0:
        raise InputError(f"{spec}: expected labels of 0 and above in {name}, found {labels.min()}")
    return labels.astype(np.int64)
