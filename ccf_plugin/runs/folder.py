"""A run's folder as a whole: whether it is free, begun, or held by another process; beginning it and tidying it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.files import is_aside, made_folder, write_atomically, write_json
from ccf_plugin.runs.layout import ENVIRONMENT, EPOCHS, LAST_STATE, LOCK, PROBE, RECIPE, RUN_FILES, STATE


class LockedError(InputError):
    """Another process writes into a folder."""


def check_is_free(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that holds a run with finished epochs, unless ``force``; refuse one with other files always.

    Raises:
        InputError: the message names the ways out.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(Fault("", "a folder for the run", f"the file {folder}", "choose another {out}"))
    names = {entry.name for entry in folder.iterdir() if not is_aside(entry)} - {LOCK}
    others = sorted(names - set(RUN_FILES))
    if others or (names and ENVIRONMENT not in names):
        named = ", ".join((others or sorted(names))[:3])
        expected = f"an empty folder or a run in {folder}"
        raise InputError(Fault("", expected, f"other files ({named})", "choose another {out}"))
    if has_begun(folder) and not force:
        remedy = "continue it with {resume=True}, replace it with {force=True}, or choose another {out}"
        raise InputError(Fault("", f"no run at {folder} yet", "one", remedy))


def has_begun(folder: Path) -> bool:
    """Whether the folder holds a run that has saved a state."""
    return (folder / LAST_STATE).is_file()


def begin(folder: Path, environment: Mapping[str, Any], recipe: str) -> None:
    """Make the folder of a new run, in place of the run that ``check_is_free`` allows to replace.

    Args:
        folder: where.
        environment: what it runs on (``describe_environment``).
        recipe: the text of its recipe.toml.
    """
    for path in (folder / name for name in RUN_FILES):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    remove_asides(folder)
    write_json(folder / ENVIRONMENT, environment)  # first: by it the folder is known as a run's
    make_parts(folder)
    write_atomically(folder / RECIPE, recipe.encode())


def make_parts(folder: Path) -> None:
    """The folders inside a run's, which a copy may have lost while they were empty."""
    for part in (PROBE, EPOCHS, STATE):
        (folder / part).mkdir(exist_ok=True)


def remove_asides(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote."""
    for path in filter(is_aside, list(folder.rglob(".*"))):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep the folder to this process; the system lets go of it when the process ends, however it ends.

    Who holds it may hold it again inside.

    Raises:
        LockedError: another process writes there.
    """
    from filelock import FileLock, Timeout

    with made_folder(folder):
        held = FileLock(folder / LOCK, timeout=0, is_singleton=True)
        try:
            held.acquire()
        except Timeout:
            expected, remedy = "a folder that no other process writes", "wait for it to end, or choose another {out}"
            raise LockedError(Fault("", expected, f"{folder} locked by one", remedy)) from None
        try:
            yield
        finally:
            if [entry.name for entry in folder.iterdir()] == [LOCK]:  # the run could not even begin
                (folder / LOCK).unlink()
            held.release()
