"""Files: written so that a crash, a full disk or a second reader never meets half of one; CSV and JSON in one form."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

PICTURES = (".png", ".pdf", ".svg")  # what the name of a picture may end in


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
            error.filename = str(path)  # a full disk names no file, and the temporary one means nothing to the user
        raise


def json_bytes(content: object) -> bytes:
    """Plain values as indented JSON; ValueError for NaN and infinity."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: object) -> None:
    """``json_bytes`` into a file, as ``write_atomically`` does."""
    write_atomically(path, json_bytes(content))


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, digits: int | None = None) -> bytes:
    """Rows as CSV with a header; None and what a row lacks are empty cells.

    Args:
        columns: in their order; other keys of a row are left out.
        rows: values by column.
        digits: significant ones of a float; None for as many as give it back exactly.
    """

    def cell(value: object) -> object:
        return f"{value:.{digits}g}" if digits is not None and isinstance(value, float) else value

    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(row.get(name)) for name in columns] for row in rows)
    return buffer.getvalue().encode()


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV with a header, cells as text.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no such CSV, or a row is shorter or longer than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            columns, *lines = list(csv.reader(file)) or [[]]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    lines = [line for line in lines if line]  # an empty line is no row
    for line in lines:
        if len(line) != len(columns):
            raise ValueError("a row cut short" if len(line) < len(columns) else "a row too long")
    return columns, [dict(zip(columns, line, strict=True)) for line in lines]


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their dotted keys, as in "optim.epochs"."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def by_numbers_inside(name: str) -> list[tuple[int, str]]:
    """The key by which names are sorted so that kd-2 stands before kd-10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def toml_or_text(text: str) -> Any:
    """What stands behind "key=": a value as TOML writes it, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def expanded_path(text: str | Path) -> Path:
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
    """Make a folder with its parents; after the block those that are new and still empty go again."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def nothing_left_on_failure(*paths: Path) -> Iterator[None]:
    """Where the block fails, remove what is new of these files and folders and of names that go on from theirs.

    Such are a download's partial files. The folders that were made for the first path go too.
    """
    folders = [folder for path in paths[:1] for folder in path.parents if not folder.exists()]

    def present() -> set[Path]:
        return {file for path in paths for file in path.parent.glob(f"{path.name}*")}

    before = present()
    try:
        yield
    except BaseException:
        for path in present() - before:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for folder in folders:  # innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_writable(folder: Path) -> None:
    """Raise OSError where nothing can be written into a folder, or into that which it is to be made in.

    For what takes long to compute: a read-only file system is then found before, not after.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        error.filename = str(folder)
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
