"""Data by spec: scikit-learn's digits, torchvision's CIFAR, ImageNet, image folders and npz files, as uint8 tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ccf_plugin.errors import InputError, check_at_least, did_you_mean
from ccf_plugin.files import given_path
from ccf_plugin.zoo.cifar import read_cifar
from ccf_plugin.zoo.image_files import ClassFiles, class_folders, prepare, stack
from ccf_plugin.zoo.imagenet import IMAGENETS, find_imagenet, readable_names
from ccf_plugin.zoo.loaded import Preprocess
from ccf_plugin.zoo.streaming import Images, open_images, read_ahead

_SPLITS = ("train", "test")
_NAMES = ("digits", "cifar10", "cifar100", *IMAGENETS)
_FORMS = f"{', '.join(_NAMES)}, folder:PATH or npz:PATH"
_DIGITS_TEST_PER_CLASS = 45
_MOST_CLASSES = 1_000_000  # where only the labels say how many there are; beyond, they are no labels

Keep = Callable[[NDArray[np.int64], str], NDArray[np.int64]]


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
        """Every so-manieth image: this process's share, so that all together are the split."""
        return self if processes == 1 else self.subset(slice(rank, None, processes))

    def batches(self, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """In order, (images float32 in [0, 1], labels int64) on ``device``; the last batch may be smaller."""
        # A tensor, because CUDA divides by a Python number by multiplying with its rounded reciprocal.
        scale = torch.tensor(255.0, device=device)
        starts = [number * batch_size for number in range(self.count_batches(batch_size))]
        every = [torch.arange(start, min(start + batch_size, len(self))) for start in starts]
        read = self.images.__getitem__
        images = map(read, every) if isinstance(self.images, Tensor) else read_ahead(read, every)
        for rows, of_rows in zip(every, images, strict=True):
            yield of_rows.to(device).float() / scale, self.labels[rows].to(device)

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

    def __call__(self, labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
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
    root: Path = Path("data"),
    download: bool = False,
    preprocess: Preprocess | None = None,
    train_per_class: int | None = None,
    test_limit: int | None = None,
) -> ImageData:
    """The data that ``spec`` names.

    ``digits``: scikit-learn's 8×8 scans, 1 channel, 0..16 scaled to 0..255; 45 test images of each class, the rest is
    for training. ``cifar10``, ``cifar100``: torchvision's, under ``root``; ``download`` fetches them. ``tinyimagenet``,
    ``imagenet``: the folders root/tiny-imagenet-200 and root/imagenet (see ``zoo.imagenet``), RGB, the validation set
    as the test split, classes in the order of their WordNet ids. ``folder:PATH``: PATH/train/<class>/… and
    PATH/test/<class>/…, classes and images in sorted order, 1 channel where every image that is read is grey, else RGB.
    ``npz:PATH``: arrays x uint8 (N, H, W, C) or (N, H, W) and y (test split), or x_train,
    y_train, x_test, y_test, and optionally classes.

    ``preprocess`` resizes and crops each image (PIL to PIL). ``train_per_class`` keeps the first so many training
    images of each class; ``test_limit`` keeps so many test images, evenly over the classes and the first of each, the
    remainder going to the first classes. The order of the data stays.

    A split that the data does not have is None; where it has none of ``splits``: InputError. InputError also for an
    unknown spec and data that are not as described; UnavailableError for CIFAR or ImageNet that is not there.
    """
    for split in splits:
        if split not in _SPLITS:
            raise InputError(f"splits: expected train or test, found {split!r}{did_you_mean(split, _SPLITS)}")
    check_at_least(1, train_per_class=train_per_class, test_limit=test_limit)
    check_spec(spec)
    spec, root = resolved(spec), given_path(root)
    keep = _Limits(train_per_class, test_limit)
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        classes, found = _digits(splits)
    elif spec in ("cifar10", "cifar100"):
        classes, found = read_cifar(spec, splits, Path(root), download=download)
    elif kind == "npz":
        classes, found = _npz(Path(rest), splits)
    elif kind == "folder":
        classes, parts = _read_classes(spec, _folder(Path(rest), splits), splits, keep, preprocess)
        return ImageData(spec, classes, parts.get("train"), parts.get("test"))
    else:
        found_files = find_imagenet(spec, Path(root), splits)
        wnids, parts = _read_classes(spec, found_files, splits, keep, preprocess, colour=True)
        return ImageData(spec, readable_names(wnids), parts.get("train"), parts.get("test"))
    parts = {split: _split(x, y, split, keep, preprocess) for split, (x, y) in found.items()}
    return ImageData(spec, classes, parts.get("train"), parts.get("test"))


def resolved(spec: str) -> str:
    """The spec, its path made absolute where it has ``~`` or ``..`` (``files.given_path``)."""
    kind, _, rest = spec.partition(":")
    return f"{kind}:{given_path(rest)}" if kind in ("folder", "npz") and rest else spec


def check_spec(spec: str) -> None:
    """Raise InputError unless ``spec`` has a form that ``load_data`` knows; whether the data exist is not looked at."""
    kind, separator, rest = spec.partition(":")
    if spec not in _NAMES and not (separator and kind in ("npz", "folder") and rest):
        raise _unknown(spec)


def _unknown(spec: str) -> InputError:
    names = (*_NAMES, "folder:PATH", "npz:PATH")
    return InputError(f"data {spec!r} is unknown; expected {_FORMS}{did_you_mean(spec, names)}")


def _split(
    images: NDArray[np.uint8], labels: NDArray[np.int64], split: str, keep: Keep, preprocess: Preprocess | None
) -> Split:
    """From images (N, H, W, C) in memory."""
    rows = keep(labels, split)
    images, labels = images[rows], labels[rows]
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if preprocess is not None:
        squeezed = images[..., 0] if images.shape[-1] == 1 else images
        decoded = (prepare(Image.fromarray(image), preprocess) for image in squeezed)
        channels_first = stack(decoded, [f"{split} image {row}" for row in rows])
    return Split(torch.from_numpy(channels_first), torch.from_numpy(labels))


def _digits(splits: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    # Spread evenly over each class, since neighbours were written by one hand; no random numbers, so that every
    # machine and every version of NumPy and scikit-learn has the same split.
    in_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        in_test[rows[np.arange(_DIGITS_TEST_PER_CLASS) * len(rows) // _DIGITS_TEST_PER_CLASS]] = True
    masks = {"train": ~in_test, "test": in_test}
    return tuple(map(str, range(10))), {split: (images[masks[split]], labels[masks[split]]) for split in splits}


def _folder(path: Path, splits: Sequence[str]) -> dict[str, ClassFiles]:
    found = {split: class_folders(path / split) for split in _SPLITS if (path / split).is_dir()}
    if not any(split in found for split in splits):
        there = "no such folder" if not path.is_dir() else f"{_some([entry.name for entry in path.iterdir()])}"
        names = " or ".join(str(path / split / "<class>") for split in splits)
        raise InputError(f"folder:{path}: expected {names}, found {there}; check the path")
    return found


def _read_classes(
    spec: str,
    found: Mapping[str, ClassFiles],
    splits: Sequence[str],
    keep: Keep,
    preprocess: Preprocess | None,
    *,
    colour: bool = False,
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """The class names and the splits that are wanted and found; ``colour``: RGB even where every image is grey."""
    wanted = [split for split in _SPLITS if split in splits and split in found]
    classes = tuple(found[wanted[0]])
    for split, files_of in found.items():
        if tuple(files_of) != classes:
            differing = _some(list(set(files_of) ^ set(classes)))
            raise InputError(f"{spec}: expected the same classes in {wanted[0]} and {split}, differ: {differing}")
    files: list[Path] = []
    labels: dict[str, NDArray[np.int64]] = {}
    for split in wanted:
        by_class = [list_files() for list_files in found[split].values()]
        every = [file for of_class in by_class for file in of_class]
        all_labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in by_class]).astype(np.int64)
        rows = keep(all_labels, split)
        files += [every[row] for row in rows]
        labels[split] = all_labels[rows]
    # Together, so that both splits agree on the channels.
    images = open_images(files, preprocess, colour=colour)
    both = Split(images, torch.from_numpy(np.concatenate([labels[split] for split in wanted])))
    ends = np.cumsum([len(labels[split]) for split in wanted]).tolist()
    spans = map(slice, [0, *ends], ends)
    return classes, {split: both.subset(part) for split, part in zip(wanted, spans, strict=True)}


def _npz(path: Path, splits: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    if not path.is_file():
        raise InputError(
            f"npz:{path}: expected an npz file, found {'a folder' if path.is_dir() else 'nothing'}; check the path"
        )
    try:
        with contextlib.closing(np.load(path, allow_pickle=False)) as file:
            arrays = {name: file[name] for name in file.files}
        if others := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"no arrays: {others}")
    except MemoryError as error:
        raise InputError(
            f"npz:{path}: expected arrays that fit into memory, found larger ones or a damaged file; write fewer images"
        ) from error
    except Exception as error:  # a damaged archive fails in many ways
        raise InputError(
            f"npz:{path}: expected plain arrays in an npz file, found a damaged or pickled one; write it by numpy.savez"
        ) from error
    names = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test") if "x_test" in arrays else ("x", "y")}
    pairs = {split: names[split] for split in splits if names[split][0] in arrays}
    if not pairs:
        wanted = " or ".join("/".join(names[split]) for split in splits)
        raise InputError(f"npz:{path}: expected arrays {wanted}, found {_some(list(arrays))}")
    # Labels of the whole file count, so that the number of classes does not depend on the splits asked for.
    labels = {split: _npz_labels(path, y, x, arrays) for split, (x, y) in names.items() if x in arrays}
    highest = max(int(of_split.max()) for of_split in labels.values())
    if "classes" not in arrays and highest >= _MOST_CLASSES:
        raise InputError(
            f"npz:{path}: expected labels under {_MOST_CLASSES:,}, found {highest}; number the classes from 0"
        )
    named = arrays["classes"].tolist() if "classes" in arrays else range(highest + 1)
    if not isinstance(named, Sequence) or any(isinstance(name, list) for name in named):
        raise InputError(f"npz:{path}: expected classes of one dimension, found {arrays['classes'].shape}")
    classes = tuple(str(name) for name in named)
    if highest >= len(classes):
        raise InputError(f"npz:{path}: expected labels 0 to {len(classes) - 1} (see classes), found {highest}")
    return classes, {split: (_npz_images(path, x, arrays), labels[split]) for split, (x, _) in pairs.items()}


def _npz_images(path: Path, name: str, arrays: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    images = arrays[name]
    if images.dtype != np.uint8:
        raise InputError(f"npz:{path}: expected {name} of uint8 in 0..255, found {images.dtype}; scale and convert it")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) == 0:
        raise InputError(
            f"npz:{path}: expected {name} of shape (N, H, W, 1 or 3) or (N, H, W), found {arrays[name].shape}"
        )
    return images


def _npz_labels(path: Path, name: str, images: str, arrays: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    labels = arrays.get(name)
    expected = f"npz:{path}: expected {name} of {len(arrays[images])} integers, one per image of {images}"
    if labels is None:
        raise InputError(f"{expected}, found {_some(list(arrays))}")
    if labels.shape != (len(arrays[images]),) or len(labels) == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{expected}, found {labels.dtype} of shape {labels.shape}")
    if labels.max() > np.iinfo(np.int64).max:
        raise InputError(f"npz:{path}: expected labels under {_MOST_CLASSES:,} in {name}, found {labels.max()}")
    if labels.min() < 0:
        raise InputError(f"npz:{path}: expected labels of 0 and above in {name}, found {labels.min()}")
    return labels.astype(np.int64)


def _some(names: list[str]) -> str:
    return (", ".join(sorted(names)[:6]) + (", …" if len(names) > 6 else "")) or "nothing"
