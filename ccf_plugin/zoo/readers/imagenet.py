"""ImageNet and Tiny-ImageNet where people unpack them: one folder per class, named by its WordNet id (wnid).

ROOT/imagenet/{train,val}/<wnid>/… and ROOT/tiny-imagenet-200/{train,val}. Tiny-ImageNet's official validation set is
one folder of images, with val_annotations.txt to say which image is of which class; it is read as it is, and
``rearrange_validation`` gives it the folders that other programs expect. The official test sets have no labels, so the
validation set is the test split.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.zoo.readers.reader import ImageFiles, Reader, register_reader

if TYPE_CHECKING:
    from ccf_plugin.zoo.image_files import ClassFiles

_FOLDERS = {"tinyimagenet": "tiny-imagenet-200", "imagenet": "imagenet"}
_SPLIT_FOLDERS = {"train": "train", "test": "val"}
_REMEDIES = {
    "tinyimagenet": "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip in {root}",
    "imagenet": "put or link the images of ILSVRC 2012 there (https://image-net.org/download), one folder per class",
}
_ANNOTATIONS = "val_annotations.txt"


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> ImageFiles:
    """RGB; the classes in the order of their wnids.

    Raises UnavailableError where none of ``splits`` lies under ``root``, InputError where one is not as described.
    """
    from ccf_plugin.zoo.image_files import class_folders

    folder = root / _FOLDERS[name]
    folders = {split: folder / part for split, part in _SPLIT_FOLDERS.items() if (folder / part).is_dir()}
    if not any(split in folders for split in splits):
        parts = " or ".join(f"{folder / _SPLIT_FOLDERS[split]}" for split in splits)
        present = "nothing" if not folder.is_dir() else f"{folder} without it"
        raise UnavailableError(f"{name}: expected {parts}, found {present}; {_REMEDIES[name].format(root=root)}")
    by_wnid = class_folders if name == "imagenet" else _tiny_by_wnid
    splits_by_wnid = {split: by_wnid(split_folder) for split, split_folder in folders.items()}
    return ImageFiles(splits_by_wnid, colour=True, readable=readable_names)


def rearrange_validation(root: Path) -> int:
    """Move the images of ROOT/tiny-imagenet-200/val/images into val/<wnid>/images; how many were moved.

    Each move is atomic, and the same data are read before, after and in between: an interrupted call loses nothing, and
    the next one does the rest. Raises UnavailableError where there is no such folder, and InputError where an annotated
    image is missing (nothing is moved then).
    """
    from ccf_plugin.zoo.image_files import class_folders

    folder = root / _FOLDERS["tinyimagenet"] / "val"
    if not folder.is_dir():
        raise UnavailableError(
            f"tinyimagenet: expected {folder}, found nothing; {_REMEDIES['tinyimagenet'].format(root=root)}"
        )
    if not (folder / _ANNOTATIONS).is_file():
        class_folders(folder)  # rearranged by another program, or else no validation set
        return 0
    moves = [
        (path, folder / wnid / "images" / path.name)
        for wnid, list_files in _annotated(folder).items()
        for path in list_files()
        if path.parent == folder / "images"
    ]
    for source, target in moves:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    with contextlib.suppress(OSError):  # other files of the user's may lie there
        (folder / "images").rmdir()
    return len(moves)


def readable_names(wnids: Sequence[str]) -> tuple[str, ...]:
    """The first word that WordNet has for each wnid, by timm's table: n01440764 is "tench".

    Where two classes share it ("crane"), the wnid follows; where there is none, the wnid stands for itself.
    """
    from timm.data import ImageNetInfo

    table = ImageNetInfo()
    words = []
    for wnid in wnids:
        try:
            words.append(table.label_name_to_description(wnid).split(",")[0])
        except KeyError:
            words.append(wnid)
    count = Counter(words)
    return tuple(word if count[word] == 1 else f"{word} ({wnid})" for word, wnid in zip(words, wnids, strict=True))


def _tiny_by_wnid(folder: Path) -> ClassFiles:
    return _annotated(folder) if (folder / _ANNOTATIONS).is_file() else _with_inner_folders(folder)


def _with_inner_folders(folder: Path) -> ClassFiles:
    """<wnid>/images/… beside <wnid>/<wnid>_boxes.txt, as in the official train folder, or <wnid>/…."""
    from ccf_plugin.zoo.image_files import class_folders, image_files

    return {
        wnid: partial(image_files, inner) if (inner := folder / wnid / "images").is_dir() else list_files
        for wnid, list_files in class_folders(folder).items()
    }


def _annotated(folder: Path) -> ClassFiles:
    """By val_annotations.txt: each line begins with a file's name and its wnid, separated by tabs."""
    path = folder / _ANNOTATIONS
    names: dict[str, list[str]] = {}
    listed_names: set[str] = set()
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text, found other bytes; unpack the archive again") from error
    for line in lines:
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if not wnid or {name, wnid} & {".", ".."} or "/" in name + wnid:
            raise InputError(f"{path}: expected lines of file, tab, wnid, found {line[:60]!r}; unpack it again")
        if name in listed_names:
            raise InputError(f"{path}: expected each image once, found {name[:60]!r} twice; unpack the archive again")
        listed_names.add(name)
        names.setdefault(wnid, []).append(name)
    if not names:
        raise InputError(f"{path}: expected a line for each image, found none; unpack the archive again")
    return {wnid: partial(_locate, folder, wnid, sorted(names[wnid])) for wnid in sorted(names)}


def _locate(folder: Path, wnid: str, names: Sequence[str]) -> list[Path]:
    """Where the images of a class are: in the official folder, or rearranged."""
    return [_locate_one(folder, wnid, name) for name in names]


def _locate_one(folder: Path, wnid: str, name: str) -> Path:
    for place in (folder / "images", folder / wnid / "images", folder / wnid):
        if (place / name).is_file():
            return place / name
    raise InputError(
        f"{folder}: expected {name}, which {_ANNOTATIONS} names, in images or {wnid}, found it in neither; "
        "unpack the archive again"
    )


for _name in _FOLDERS:
    register_reader(Reader(_name, _name, _read))
