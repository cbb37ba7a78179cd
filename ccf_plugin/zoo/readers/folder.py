"""Folders of images: ``folder:PATH`` with PATH/train/<class>/… and PATH/test/<class>/…, both in sorted order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccf_plugin.errors import InputError, some_of
from ccf_plugin.zoo.readers.reader import ImageFiles, Reader, register_reader


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> ImageFiles:
    from ccf_plugin.zoo.image_files import class_folders

    path = Path(name)
    by_split = {split: class_folders(path / split) for split in ("train", "test") if (path / split).is_dir()}
    if not any(split in by_split for split in splits):
        inside = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else ["no such folder"]
        expected = " or ".join(str(path / split / "<class>") for split in splits)
        raise InputError(f"folder:{path}: expected {expected}, found {some_of(inside, 6) or 'nothing'}; check the path")
    return ImageFiles(by_split)


register_reader(Reader("folder", "folder:PATH", _read, is_path=True))
