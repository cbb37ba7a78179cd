"""Broken files and impossible wishes: each ends in one line, and leaves the disk as it was."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bad_inputs.cases import FOLDER, ends_in_one_line, images, listing, probe
from bad_inputs.checkpoints import CHECKPOINTS, DESCRIPTIONS
from bad_inputs.commands import OPTIONS, option
from bad_inputs.data import ARRAYS, IMAGES
from bad_inputs.recipes import RECIPES
from bad_inputs.runs import NEW, RUNS
from bad_inputs.zoo import ZOO

TABLE = {
    f"{name}: {what}": case
    for name, table in {
        "checkpoint": CHECKPOINTS,
        "description": DESCRIPTIONS,
        "arrays": ARRAYS,
        "images": IMAGES,
        "recipe": RECIPES,
        "option": OPTIONS,
        "run": RUNS,
        "zoo": ZOO,
    }.items()
    for what, case in table.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_gets_one_line_and_leaves_the_disk_as_it_was(
    ccf: Callable[..., tuple[int, str]], finished: Path, tmp_path: Path, name: str
) -> None:
    case = TABLE[name]
    if name.startswith("run: "):
        shutil.copytree(finished, tmp_path / "run")
    case.make(tmp_path)
    before = listing(tmp_path)
    code, err = ccf(*case.command)
    ends_in_one_line(code, err, case.says)
    assert listing(tmp_path) == before


NO_SPACE = (errno.ENOSPC, "No space left on device", "free some space")
READ_ONLY = (errno.EROFS, "Read-only file system", "check its path and permissions")
FORBIDDEN = (errno.EACCES, "Permission denied", "check its path and permissions")


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
@pytest.mark.parametrize(("number", "text", "remedy"), [NO_SPACE, READ_ONLY, FORBIDDEN])
@pytest.mark.parametrize(
    "command", [[*NEW, "deep/new"], [*option("--clean"), "--out", "deep/new"]], ids=["train", "probe"]
)
def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(
    ccf: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    number: int,
    text: str,
    remedy: str,
    call: str,
) -> None:
    """Injected, since permissions do not bind the superuser that tests may run as."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, text)

    monkeypatch.setattr(os, call, fail)
    code, err = ccf(*command)
    monkeypatch.undo()
    assert code == 1
    ends_in_one_line(code, err, remedy)
    assert text in err
    assert call == "mkdir" or "deep/new" in err
    assert listing(tmp_path) == {}


def test_a_folder_that_cannot_be_read_is_named(
    ccf: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images()(tmp_path)
    scan = os.scandir

    def forbidden(path: Path) -> Any:
        if str(path).endswith("7"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    code, err = ccf(*probe(FOLDER))
    ends_in_one_line(code, err, "data/test/7: Permission denied; check its path and permissions")
