"""Images on disk, one folder per class, decoded into one uint8 array."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.zoo.classes import in_order


class ImageFile(Protocol):
    """An encoded image: a path, or bytes that some data set holds. ``str`` of it is how messages call it."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """Its bytes, from their beginning."""


Preprocess = Callable[[Image.Image], Image.Image]  # resizes and crops
Images = NDArray[np.uint8]
# The classes of a split in their order, each with a function that lists its images, called only where it is needed.
ClassFiles = Mapping[str, Callable[[], list[Path]]]

_GREY_MODES = {"1", "L", "LA", "La"}
_WIDE_MODES = ("I", "F")  # also I;16, …
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
_PER_TASK = 64  # small images: handing them over one by one would cost more than decoding them


def class_folders(folder: Path) -> ClassFiles:
    """The class folders in ``folder``, in order (``zoo.classes.in_order``). InputError where none is."""
    names = in_order([entry.name for entry in folder.iterdir() if entry.is_dir() and not is_litter(entry.name)])
    if not names:
        raise InputError(f"{folder}: expected one folder per class, found none; sort the images into such folders")
    return {name: partial(image_files, folder / name) for name in names}


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or what an operating system or an archiver has left."""
    return name.startswith(".") or name.lower() in _LITTER


def has_image_suffix(path: Path) -> bool:
    """Whether its name ends as an image's does."""
    return path.suffix.lower() in _SUFFIXES


def is_image(path: Path) -> bool:
    """By its name where that ends as an image's does, else by how the file begins."""
    if has_image_suffix(path):
        return True
    try:
        if not path.is_file():
            return False
        with Image.open(path):
            return True
    except Exception:  # of PIL's decoders, in many ways
        return False


def image_files(folder: Path) -> list[Path]:
    """The files below one class folder, sorted, whether they are images or not; ``is_litter`` is left out.

    Raises InputError where none is, and where links lead back to a folder that was there already.
    """
    files: list[Path] = []
    visited: set[tuple[int, int]] = set()
    folders = [folder]
    while folders:
        inside = folders.pop()
        state = inside.stat()
        if (state.st_dev, state.st_ino) in visited:
            raise InputError(
                f"{inside}: expected each folder once, found a circle of links to folders; remove the link"
            )
        visited.add((state.st_dev, state.st_ino))
        with os.scandir(inside) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                (folders if _is_folder(entry) else files).append(Path(entry.path))
    if not files:
        raise InputError(f"{folder}: expected images of this class, found none; add some or remove the folder")
    return sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def read_images(files: Sequence[ImageFile], preprocess: Preprocess | None) -> Images:
    """The images as uint8 (N, C, H, W): C is 1 where all of them are grey, else 3.

    Raises InputError naming the file for one that is not an 8-bit image, and naming two for sizes that differ.
    """
    workers = min(8, os.cpu_count() or 1)
    size = max(1, min(_PER_TASK, -(-len(files) // workers)))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        parts = (files[start : start + size] for start in range(0, len(files), size))
        tasks = pool.map(lambda part: [_decode(file, preprocess) for file in part], parts)
        decoded = (image for part in tasks for image in part)
        return stack(decoded, [str(file) for file in files])


def stack(decoded: Iterable[Images], names: Sequence[str]) -> Images:
    """Images (H, W) or (H, W, 3) in one array (N, C, H, W). InputError names two whose sizes differ."""
    images: Images | None = None
    for i, image in enumerate(decoded):
        if images is None:
            images = np.empty((len(names), 1 if image.ndim == 2 else 3, *image.shape[:2]), dtype=np.uint8)
        if image.shape[:2] != images.shape[2:]:
            first, other = (f"{shape[1]}×{shape[0]}" for shape in (images.shape[2:], image.shape[:2]))
            raise InputError(
                f"expected images of one size, found {names[0]} of {first} and {names[i]} of {other} (width×height); "
                "resize them, or use a model that brings its own resizing"
            )
        if image.ndim == 3 and images.shape[1] == 1:  # the first coloured image after grey ones
            images = np.repeat(images, 3, axis=1)
        images[i] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    if images is None:
        raise InputError("expected images, found none")
    return images


def downscaled(factor: int, preprocess: Preprocess | None = None) -> Preprocess:
    """Means over squares of ``factor`` × ``factor`` pixels, rounded to 8 bits, and then ``preprocess``.

    It raises InputError for an image whose sides are no multiples of ``factor``.
    """

    def shrink(image: Image.Image) -> Image.Image:
        width, height = image.size
        if width % factor or height % factor:
            raise InputError(Fault("downscale", f"a divisor of the images' {width}×{height} pixels", str(factor)))
        small = image.reduce(factor)
        return small if preprocess is None else preprocess(small)

    return shrink


def prepare(image: Image.Image, preprocess: Preprocess | None) -> Images:
    """One decoded image as uint8 (H, W) where it is grey, else (H, W, 3)."""
    grey = image.mode in _GREY_MODES
    converted = image.convert("L" if grey else "RGB")
    return np.asarray(converted if preprocess is None else preprocess(converted), dtype=np.uint8)


def _decode(file: ImageFile, preprocess: Preprocess | None) -> Images:
    try:
        if isinstance(file, Path) and not file.is_file():  # opening a named pipe would wait for ever
            raise OSError("no file")
        with file.open("rb") as opened, Image.open(opened) as image:
            image.load()
    except Exception as error:  # PIL's decoders fail in many ways on damaged files
        raise InputError(
            f"{file}: expected an image, found something that cannot be decoded as one; replace or remove it"
        ) from error
    if image.mode.startswith(_WIDE_MODES):
        raise InputError(f"{file}: expected an image of 8 bits a channel, found mode {image.mode}; convert it")
    return prepare(image, preprocess)
