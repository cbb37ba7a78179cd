"""Folders of images: ``folder:PATH`` with PATH/train/<class>/… and PATH/test/<class>/….

Where there is no test folder, val or validation stands for it; where there are no splits at all but images in
PATH/<class>, all of them are the test split. Notes say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccf_plugin.errors import InputError, some_of
from ccf_plugin.zoo.readers.reader import ImageFiles, Reader, register_reader
from ccf_plugin.zoo.split_names import find_splits


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> ImageFiles:
    from ccf_plugin.zoo.classes import listed, order_in_doubt
    from ccf_plugin.zoo.image_files import class_folders, is_litter

    path = Path(name)
    entries = sorted(entry for entry in path.iterdir() if not is_litter(entry.name)) if path.is_dir() else []
    folders, notes = find_splits({entry.name: entry for entry in entries if entry.is_dir()}, splits)
    if not folders and "test" in splits and _are_classes(entries):
        folders, notes = {"test": path}, ["no train or test folder: all images are taken as the test split"]
    if not any(split in folders for split in splits):
        inside = [entry.name for entry in entries] if path.is_dir() else ["no such folder"]
        expected = " or ".join(str(path / split / "<class>") for split in splits)
        raise InputError(f"folder:{path}: expected {expected}, found {some_of(inside, 6) or 'nothing'}; check the path")
    by_split = {split: class_folders(split_folder) for split, split_folder in folders.items()}
    beside = [
        entry.relative_to(path).as_posix()
        for split in splits
        if split in folders
        for entry in sorted(folders[split].iterdir())
        if not entry.is_dir() and not is_litter(entry.name)
    ]
    if beside:
        notes.append(f"files beside the class folders are left out: {listed(beside)}")
    classes = next(iter(by_split.values()))
    return ImageFiles(by_split, order_in_doubt=order_in_doubt(list(classes)), notes=notes)


def _are_classes(entries: Sequence[Path]) -> bool:
    """Whether these are class folders: one of them has an image directly inside."""
    from ccf_plugin.zoo.image_files import has_image_suffix

    return any(has_image_suffix(file) for entry in entries if entry.is_dir() for file in entry.iterdir())


register_reader(Reader("folder", "folder:PATH", _read, is_path=True))
