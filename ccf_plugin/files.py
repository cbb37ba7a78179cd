"""Writing files so that a crash, a full disk or a second reader never meets half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; ``path`` is as it was.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """As ``write_atomically`` for files that belong together: all are whole on the disk before the first is renamed."""
    asides = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    path = next(iter(contents))
    try:
        for path, content in contents.items():
            with asides[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            if path.is_dir():  # else the rename would fail with others done
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        for path, aside in asides.items():
            aside.replace(path)
        for folder in {path.parent for path in contents}:
            _flush_folder(folder)
    except BaseException as error:
        for aside in asides.values():
            with contextlib.suppress(OSError):  # where there is no folder, there is no file
                aside.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a full disk names none, and nobody knows the one aside
        raise


def write_json(path: Path, content: object) -> None:
    """Write plain values as indented JSON, as ``write_atomically`` does; ValueError for NaN and infinity."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def given_path(text: str | Path) -> Path:
    """A path from a recipe or the command line: one with ``~`` or ``..`` made absolute, so that all who name it show
    where it leads; another as it is."""
    path = Path(text)
    try:
        home = path.expanduser()
        return Path(os.path.realpath(home)) if home != path or ".." in path.parts else path
    except (RuntimeError, ValueError):  # no such user's home; no path at all
        return path


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder with its parents; where the block fails, those that are new and still empty go again."""
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in new:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def is_aside(path: Path) -> bool:
    """Whether a file is what ``write_atomically`` left behind when it was killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def _flush_folder(folder: Path) -> None:
    """The rename too is on disk; where folders cannot be opened (Windows), the system decides when."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
