"""Data by spec, as uint8 tensors: the public functions over the table of readers (``zoo.readers``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ccf_plugin.errors import InputError, check_at_least, did_you_mean, some_of
from ccf_plugin.files import expanded_path
from ccf_plugin.zoo.arrays import LabelledImages, checked_arrays
from ccf_plugin.zoo.classes import listed, matched, order_of_known_list, printable, read_class_names
from ccf_plugin.zoo.folders import DATA_FOLDER, folder_from
from ccf_plugin.zoo.image_files import ImageFile, Preprocess, downscaled, is_image, prepare, stack
from ccf_plugin.zoo.readers import READERS, Arrays, ImageFiles, Reader
from ccf_plugin.zoo.specs import find, forms, nearest
from ccf_plugin.zoo.streaming import Images, open_images, read_ahead

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """``images`` uint8 (N, C, H, W), in memory or on disk, and ``labels`` int64 (N,)."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def count_batches(self, batch_size: int) -> int:
        """How many batches ``batches`` gives. Raises InputError for a size below 1."""
        if batch_size < 1:
            raise InputError(f"batch size: expected at least 1, found {batch_size}")
        return -(-len(self) // batch_size)

    def part(self, rank: int, processes: int) -> Split:
        """The share of process number ``rank``: images rank, rank + processes, …; the shares together are the split."""
        return self if processes == 1 else self.subset(slice(rank, None, processes))

    def batches(self, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """In order, (images float32 in [0, 1], labels int64) on ``device``; the last batch may be smaller."""
        # A tensor, because CUDA divides by a Python number by multiplying with its rounded reciprocal.
        scale = torch.tensor(255.0, dtype=torch.float32, device=device)
        starts = [number * batch_size for number in range(self.count_batches(batch_size))]
        batches = [torch.arange(start, min(start + batch_size, len(self)), device="cpu") for start in starts]
        read = self.images.__getitem__
        images = map(read, batches) if isinstance(self.images, Tensor) else read_ahead(read, batches)
        for rows, batch in zip(batches, images, strict=True):
            yield batch.to(device).float() / scale, self.labels[rows].to(device)

    def subset(self, rows: Tensor | slice) -> Split:
        """The images of ``rows``, int64 (B,)."""
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.subset(rows)
        return Split(images, self.labels[rows])


@dataclass(frozen=True)
class ImageData:
    """A data set: ``name`` is its spec; a split is None where it was not asked for or does not exist."""

    name: str
    classes: tuple[str, ...]
    train: Split | None
    test: Split | None


@dataclass(frozen=True)
class _Limits:
    """Which samples to keep."""

    train_per_class: int | None
    test: int | None

    def rows(self, labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
        """The indices to keep, ascending."""
        rank = np.empty(len(labels), dtype=np.int64)  # how many of its class stand before each sample
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            rank[rows] = np.arange(len(rows))
        if split == "train" and self.train_per_class is not None:
            return np.flatnonzero(rank < self.train_per_class)
        if split == "test" and self.test is not None:
            return np.sort(np.lexsort((labels, rank))[: self.test])
        return np.arange(len(labels))


def load_data(
    spec: str,
    *,
    splits: Sequence[str] = _SPLITS,
    root: str | Path | None = None,
    download: bool = False,
    classes: str | Path | Sequence[str] | None = None,
    downscale: int = 1,
    preprocess: Preprocess | None = None,
    train_per_class: int | None = None,
    test_limit: int | None = None,
) -> ImageData:
    """The data that ``spec`` names.

    ``digits``: scikit-learn's 8×8 scans, 1 channel, 0..16 scaled to 0..255; 45 test images of each class, the rest is
    for training. ``cifar10``, ``cifar100``: torchvision's, under ``root``; ``download`` fetches them. ``tinyimagenet``,
    ``imagenet``: the folders root/tiny-imagenet-200 and root/imagenet (see ``zoo.readers.imagenet``), RGB, the
    validation set as the test split, classes in the order of their WordNet ids. ``folder:PATH``: PATH/train/<class>/…
    and PATH/test/<class>/… (see ``zoo.readers.folder``), classes that are whole numbers in their order and others as
    text, images in sorted order, 1 channel where every image that is read is grey, else RGB. ``npz:PATH``: arrays x
    uint8 (N, H, W, C) or (N, H, W) and y (test split), or x_train, y_train, x_test, y_test, and optionally classes; or
    other usual names (see ``zoo.readers.npz``). ``hf:NAME``: a data set of Hugging Face's datasets, or a folder that
    its ``save_to_disk`` wrote (see ``zoo.readers.hf``). ``python:package.module:function``: what the user's own
    function returns for a split (see ``zoo.readers.python``). Or of another reader that is registered.

    ``root`` is CCF_DATA or else "data" where it is None. ``classes`` is a file of class names, one a line, or the names
    themselves: those of the data in another order, or names for classes that are numbers. ``downscale``
    replaces squares of so many pixels a side by their means; ``preprocess`` then resizes and crops each image (PIL to
    PIL). ``train_per_class`` keeps the first so many training images of each class;
    ``test_limit`` keeps so many test images, evenly over the classes and the first of each, the remainder going to the
    first classes. The order of the data stays.

    What was taken in a way that the user may not have meant is said by a warning, in a line each. A split that the data
    does not have is None; where it has none of ``splits``: InputError. InputError also for an unknown spec and data
    that are not as described; UnavailableError for CIFAR or ImageNet that is not there.
    """
    for split in splits:
        if split not in _SPLITS:
            raise InputError(f"splits: expected train or test, found {split!r}{did_you_mean(split, _SPLITS)}")
    check_at_least(1, train_per_class=train_per_class, test_limit=test_limit, downscale=downscale)
    check_spec(spec)
    order = None if classes is None else _Order.of(classes)
    spec = resolved(spec)
    reader, name = _find_reader(spec)
    folder = folder_from(root, DATA_FOLDER)
    data = reader.read(name, splits=splits, root=folder, download=download)
    wanted = [split for split in _SPLITS if split in splits and split in data.splits]
    if not wanted:
        raise InputError(
            f"{spec}: expected a split {' or '.join(splits)}, found {some_of(list(data.splits)) or 'none'}"
        )
    preprocess = preprocess if downscale == 1 else downscaled(downscale, preprocess)
    limits, notes = _Limits(train_per_class, test_limit), [*data.notes]
    if isinstance(data, ImageFiles):
        names, files = _listed(spec, data, wanted, order, notes)
        parts = _decoded(files, limits, preprocess, colour=data.colour)
        doubt = data.order_in_doubt
    else:
        names, arrays = _in_memory(spec, data, wanted, order, notes)
        parts = _from_arrays(arrays, limits, preprocess)
        doubt = None
    known = order_of_known_list(names)
    if order is None and (doubt := doubt or (known and f"they are {known}'s in another order than its own")):
        notes.append(f"classes in doubtful order ({doubt}); taken: {listed(names)}; a file of names gives another")
    for note in notes:
        warnings.warn(f"{spec}: {note}", stacklevel=2)
    return ImageData(spec, names, parts.get("train"), parts.get("test"))


def resolved(spec: str) -> str:
    """The spec, its path made absolute where it has ``~`` or ``..`` (``files.expanded_path``)."""
    entry = find(READERS, spec)
    return f"{entry[0].prefix}:{expanded_path(entry[1])}" if entry is not None and entry[0].is_path else spec


def check_spec(spec: str) -> None:
    """Raise InputError unless ``spec`` has a form that ``load_data`` knows; whether the data exist is not looked at."""
    if printable(spec) != spec:  # a run could not write it down
        raise InputError(
            f"data {printable(spec)}: expected a name in UTF-8, found other bytes; rename the folder or file"
        )
    reader, name = _find_reader(spec)
    reader.check(name)


def _find_reader(spec: str) -> tuple[Reader, str]:
    entry = find(READERS, spec)
    if entry is None:
        path = expanded_path(spec)
        meant = "folder" if path.is_dir() else "npz" if path.suffix == ".npz" else None
        near = nearest(READERS, spec) if meant is None else f"; did you mean '{meant}:{spec}'?"
        raise InputError(f"data {spec!r} is unknown; expected {forms(READERS)}{near}")
    return entry


@dataclass(frozen=True)
class _Order:
    """The class names that the user or a model gives, and what messages call them."""

    names: Sequence[str]
    source: str

    @classmethod
    def of(cls, classes: str | Path | Sequence[str]) -> _Order:
        if not isinstance(classes, str | Path):
            return cls(classes, "the classes given")
        path = expanded_path(classes)
        return cls(read_class_names(path), str(path))


_Listed = dict[str, tuple[Sequence[ImageFile], NDArray[np.int64]]]


def _listed(
    spec: str, data: ImageFiles, wanted: Sequence[str], order: _Order | None, notes: list[str]
) -> tuple[tuple[str, ...], _Listed]:
    """The class names, and the files and labels of the splits ``wanted``."""
    folders = tuple(data.splits[wanted[0]])
    for split, files_of in data.splits.items():
        if tuple(files_of) != folders:
            differing = some_of(sorted(set(files_of) ^ set(folders)), 6) or "their order"
            raise InputError(f"{spec}: expected the same classes in {wanted[0]} and {split}, differ: {differing}")
    names = tuple(map(printable, folders))
    if changed := [name for name, folder in zip(names, folders, strict=True) if name != folder]:
        notes.append(f"names of class folders that are not UTF-8 are written as {listed(changed)}")
    classes = tuple(map(printable, data.readable(folders)))
    if order is not None:
        classes, places = matched(spec, names, order.names, order.source, classes)
        folders = tuple(folders[place] for place in places)
    splits: _Listed = {}
    skipped: list[Path] = []
    for split in wanted:
        by_class = [_images_of(data.splits[split][folder](), skipped) for folder in folders]
        labels = np.repeat(np.arange(len(by_class)), [len(images) for images in by_class]).astype(np.int64)
        splits[split] = [image for images in by_class for image in images], labels
    if skipped:
        count = f"{len(skipped)} files that are" if len(skipped) > 1 else "a file that is"
        notes.append(f"{count} no image left out: {listed([path.name for path in skipped])}")
    return classes, splits


def _images_of(files: Sequence[Path], skipped: list[Path]) -> list[Path]:
    """Those of a class that are images; the others are added to ``skipped``."""
    images = [file for file in files if is_image(file)]
    if not images:
        raise InputError(
            f"{files[0].parent}: expected images of this class, found {some_of([file.name for file in files])}; add "
            "some or remove the folder"
        )
    if len(images) < len(files):
        chosen = set(images)
        skipped += [file for file in files if file not in chosen]
    return images


def _in_memory(
    spec: str, data: Arrays, wanted: Sequence[str], order: _Order | None, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, LabelledImages]]:
    """The class names, and the images and labels of the splits ``wanted``."""
    if order is not None and data.classes is None:
        data = replace(data, classes=order.names)
    names, arrays = checked_arrays(spec, data, wanted, notes)
    names = tuple(map(printable, names))
    if order is None:
        return names, arrays
    names, places = matched(spec, names, order.names, order.source)
    label_of = np.argsort(places)
    return names, {split: (images, label_of[labels]) for split, (images, labels) in arrays.items()}


def _from_arrays(
    arrays: Mapping[str, LabelledImages], limits: _Limits, preprocess: Preprocess | None
) -> dict[str, Split]:
    files: _Listed = {}
    parts: dict[str, Split] = {}
    for split, (images, labels) in arrays.items():
        if isinstance(images, np.ndarray):
            parts[split] = _from_pixels(images, labels, split, limits, preprocess)
        else:
            files[split] = images, labels
    return {**parts, **(_decoded(files, limits, preprocess, colour=False) if files else {})}


def _from_pixels(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    split: str,
    limits: _Limits,
    preprocess: Preprocess | None,
) -> Split:
    """From images (N, H, W, C) in memory."""
    rows = limits.rows(labels, split)
    images, labels = images[rows], labels[rows]
    # A copy, since NumPy takes a single channel for contiguous wherever it stands, and torch for channels_last.
    channels_first = images.transpose(0, 3, 1, 2).copy()
    if preprocess is not None:
        squeezed = images[..., 0] if images.shape[-1] == 1 else images
        decoded = (prepare(Image.fromarray(image), preprocess) for image in squeezed)
        channels_first = stack(decoded, [f"{split} image {row}" for row in rows])
    return Split(torch.from_numpy(channels_first), torch.from_numpy(labels))


def _decoded(splits: _Listed, limits: _Limits, preprocess: Preprocess | None, *, colour: bool) -> dict[str, Split]:
    files: list[ImageFile] = []
    labels: list[NDArray[np.int64]] = []
    for split, (all_files, all_labels) in splits.items():
        rows = limits.rows(all_labels, split)
        files += [all_files[row] for row in rows]
        labels.append(all_labels[rows])
    # Together, so that both splits agree on the channels.
    images = open_images(files, preprocess, colour=colour)
    both = Split(images, torch.from_numpy(np.concatenate(labels)))
    ends = np.cumsum([len(split_labels) for split_labels in labels]).tolist()
    spans = map(slice, [0, *ends], ends)
    return {split: both.subset(part) for split, part in zip(splits, spans, strict=True)}
