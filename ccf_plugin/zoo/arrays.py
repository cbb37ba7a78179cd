"""Images and labels in memory as a reader gives them: checked, and brought to one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.image_files import ImageFile
from ccf_plugin.zoo.readers import Arrays

_MOST_CLASSES = 1_000_000  # where only the labels say how many there are; beyond, they are no labels

_DARK, _MANY = 64, 100  # so many photographs do not all stay below; scans in 0..16, masks and cast floats do

# Images uint8 (N, H, W, C), or N to decode as they are needed; and labels int64 (N,).
LabelledImages = tuple[NDArray[np.uint8] | Sequence[ImageFile], NDArray[np.int64]]


def checked_arrays(
    spec: str, arrays: Arrays, splits: Sequence[str], notes: list[str]
) -> tuple[tuple[str, ...], dict[str, LabelledImages]]:
    """The class names, and the images and labels of those ``splits`` that exist.

    Labels in a column (N, 1) are flattened. A one-hot row (N, K) becomes the column of its one. Notes say so, and where
    images seem to be of another scale.

    Raises InputError for what is not as ``Arrays`` describes it.
    """
    names = {split: arrays.names.get(split, (f"{split} images", f"{split} labels")) for split in arrays.splits}
    images = {
        split: _images(spec, names[split][0], array) for split, (array, _) in arrays.splits.items() if split in splits
    }
    for split, array in images.items():
        if isinstance(array, np.ndarray) and len(array) >= _MANY and (highest := int(array.max())) < _DARK:
            notes.append(
                f"{names[split][0]} is {highest} at most, and white is 255; if its scale is another, convert it"
            )
    labels, count = {}, 1
    for split, pair in arrays.splits.items():
        column = _one_column(pair[1])
        if column is not pair[1] and pair[1].shape[1] > 1:
            notes.append(f"{names[split][1]} of one-hot rows {pair[1].shape} taken as class numbers")
            count = max(count, pair[1].shape[1])
        labels[split] = _labels(spec, *names[split], pair[0], column)
    highest = max(int(column.max()) for column in labels.values())
    if arrays.classes is None and (lowest := min(int(column.min()) for column in labels.values())) == 1:
        notes.append(f"labels begin at {lowest}, and classes count from 0: if these are 1 to K, subtract 1")
    if arrays.classes is None and highest >= _MOST_CLASSES:
        raise InputError(f"{spec}: expected labels under {_MOST_CLASSES:,}, found {highest}; number the classes from 0")
    count = max(count, highest + 1)
    classes = tuple(map(str, range(count) if arrays.classes is None else arrays.classes))
    if count > len(classes):
        raise InputError(f"{spec}: expected labels 0 to {len(classes) - 1} (see classes), found {count - 1}")
    return classes, {split: (split_images, labels[split]) for split, split_images in images.items()}


def _images(
    spec: str, name: str, images: NDArray[Any] | Sequence[ImageFile]
) -> NDArray[np.uint8] | Sequence[ImageFile]:
    if not isinstance(images, np.ndarray):
        return images
    if images.dtype != np.uint8:
        raise InputError(f"{spec}: expected {name} of uint8 in 0..255, found {images.dtype}; scale and convert it")
    with_channels = images[..., None] if images.ndim == 3 else images
    if with_channels.ndim != 4 or with_channels.shape[-1] not in (1, 3) or 0 in with_channels.shape:
        is_channel_first = images.ndim == 4 and images.shape[1] in (1, 3)
        remedy = f"; move the channels: {name}.transpose(0, 2, 3, 1)" if is_channel_first else ""
        raise InputError(
            f"{spec}: expected {name} of shape (N, H, W, 1 or 3) or (N, H, W), found {images.shape}{remedy}"
        )
    return with_channels


def _one_column(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels (N,) of a column (N, 1) and of one-hot rows (N, K); others as they are."""
    if labels.ndim != 2 or labels.dtype.kind not in "iufb" or 0 in labels.shape:
        return labels
    if labels.shape[1] == 1:
        return labels[:, 0]
    is_one_hot = ((labels == 0) | (labels == 1)).all() and ((labels == 1).sum(1) == 1).all()
    return labels.argmax(1) if is_one_hot else labels


def _labels(
    spec: str, image_name: str, name: str, images: NDArray[Any] | Sequence[ImageFile], labels: NDArray[Any]
) -> NDArray[np.int64]:
    count = len(images) if not isinstance(images, np.ndarray) or images.ndim else 0
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
