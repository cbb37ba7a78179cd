"""Where data sets, models and weights lie, answered by paths alone. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.files import expanded_path

# The variable, and the folder where it is not set.
DATA_FOLDER = ("CCF_DATA", "data")
MODEL_FOLDER = ("CCF_MODELS", "models")


def folder_from(path: str | Path | None, default: tuple[str, str]) -> Path:
    """The path that was given; where that is None, the variable's, and where it is not set or empty, the default."""
    variable, folder = default
    return expanded_path(path if path is not None else os.environ.get(variable) or folder)


_LFS_POINTER = b"version https://git-lfs"


def check_file(path: Path) -> None:
    """Raise InputError unless a file that may be a checkpoint lies there."""
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise InputError(f"{path}: expected a checkpoint file, found {kind}; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected a checkpoint file, found an empty one; download or save it again")
    if is_web_page(path):
        raise InputError(f"{path}: expected a checkpoint file, found a web page; download it again")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(f"{path}: expected a checkpoint file, found a pointer to one; fetch it by git lfs pull")


def needs_code(
    path: Path,
    expected: str = "a description of its model",
    found: str = "a garbled one",
    code: str | None = None,
) -> InputError:
    """The error for a checkpoint that does not say of what network it is, or of one that the user must name.

    ``code`` is the spec of that network, where it is known.
    """
    if code is None:
        from ccf_plugin.zoo.sources import taking_checkpoint  # which imports this module
        from ccf_plugin.zoo.specs import forms

        code = forms(taking_checkpoint())
    return InputError(Fault(str(path), expected, found, f"load {code} with {{checkpoint={str(path)!r}}}"))


def is_web_page(path: Path) -> bool:
    """Whether ``path`` holds HTML: what a failed download leaves under the name of a checkpoint."""
    with path.open("rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html", b"<head"))
