"""Whose a folder is: free for a new run, begun, or held by another process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ccf_plugin.errors import InputError
from ccf_plugin.files import is_aside, made_folder
from ccf_plugin.runs.layout import RUN_FILES


def check_is_free(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that holds a run with finished epochs, unless ``force``; refuse one with other files always.

    Raises:
        InputError: the message names the ways out.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"expected a folder for the run, found the file {folder}; choose another --out")
    found = {entry.name for entry in folder.iterdir() if not is_aside(entry)} - {".lock"}
    others = sorted(found - set(RUN_FILES))
    if others or (found and "environment.json" not in found):
        named = ", ".join((others or sorted(found))[:3])
        raise InputError(
            f"expected an empty folder or a run in {folder}, found other files ({named}); choose another --out"
        )
    if has_begun(folder) and not force:
        raise InputError(
            f"expected no run at {folder} yet, found one; continue it with --resume, replace it with --force, "
            "or choose another folder with --out"
        )


def has_begun(folder: Path) -> bool:
    """Whether the folder holds a run that has saved a state."""
    return (folder / "state" / "last.json").is_file()


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep the folder to this process; the system lets go of it when the process ends, however it ends.

    Raises:
        InputError: another process writes there.
    """
    from filelock import FileLock, Timeout

    with made_folder(folder):
        held = FileLock(folder / ".lock", timeout=0)
        try:
            held.acquire()
        except Timeout:
            raise InputError(
                f"expected a run folder that no other process writes, found {folder} locked by one; wait for it to "
                "end, or choose another --out"
            ) from None
        try:
            yield
        finally:
            if [entry.name for entry in folder.iterdir()] == [".lock"]:  # the run could not even begin
                (folder / ".lock").unlink()
            held.release()
