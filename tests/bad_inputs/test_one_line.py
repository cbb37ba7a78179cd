"""Broken files and impossible wishes: each ends in one line, and leaves the disk as it was."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import RANDOM_WEIGHTS, run

from bad_inputs.cases import FOLDER, ends_in_one_line, images, listing, probe
from bad_inputs.checkpoints import CHECKPOINTS, DESCRIPTIONS, OF_ANY_CODE
from bad_inputs.commands import BENCH, BENCHES, OPTIONS, RECIPE_LISTS, SWEEPS, THEORIES, TINY_IMAGENETS, option
from bad_inputs.data import ARRAYS, IMAGES
from bad_inputs.own_data import OWN_DATA
from bad_inputs.readers import BOARD, EVALUATE, EVALUATIONS, LEADERBOARDS, REPORTS, SALIENCIES
from bad_inputs.recipes import RECIPES
from bad_inputs.results import COMPARE, COMPARISONS, results
from bad_inputs.runs import NEW, RUNS
from bad_inputs.zoo import ZOO
from ccf_plugin.zoo.robustbench_models import import_robustbench

TABLE = {
    f"{name}: {what}": case
    for name, table in {
        "checkpoint": CHECKPOINTS,
        "of any code": OF_ANY_CODE,
        "description": DESCRIPTIONS,
        "arrays": ARRAYS,
        "images": IMAGES,
        "own data": OWN_DATA,
        "recipe": RECIPES,
        "option": OPTIONS,
        "run": RUNS,
        "zoo": ZOO,
        "compare": COMPARISONS,
        "saliency": SALIENCIES,
        "evaluate": EVALUATIONS,
        "leaderboard": LEADERBOARDS,
        "report": REPORTS,
        "sweep": SWEEPS,
        "bench": BENCHES,
        "theory": THEORIES,
        "recipes": RECIPE_LISTS,
        "fix-tinyimagenet": TINY_IMAGENETS,
    }.items()
    for what, case in table.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_gets_one_line_and_leaves_the_disk_as_it_was(
    ccf: Callable[..., tuple[int, str]], finished: Path, tmp_path: Path, name: str
) -> None:
    case = TABLE[name]
    if name.partition(":")[0] in ("run", "compare", "saliency", "evaluate", "report"):
        shutil.copytree(finished, tmp_path / "run")
    case.make(tmp_path)
    before = listing(tmp_path)
    code, err = ccf(*case.command)
    ends_in_one_line(code, err, case.says)
    assert listing(tmp_path) == before


NO_SPACE = (errno.ENOSPC, "No space left on device", "free some space")
READ_ONLY = (errno.EROFS, "Read-only file system", "check its path and permissions")
FORBIDDEN = (errno.EACCES, "Permission denied", "check its path and permissions")
WRITERS = [
    NEW,
    [*option("--clean"), "--out"],
    [*COMPARE, "--out"],
    ["saliency", "run", "run/last.safetensors", "--indices", "3", "--steps", "1", "--out"],
    [*EVALUATE, "--out"],
    [*BOARD, "--out"],
    ["report", "run", "--out"],
    [*BENCH, "--out"],
    ["theory", "--samples", "300", "--points", "1", "--out"],
]


CALLS = ["mkdir", "fsync", "replace"]
FAILURES = [
    pytest.param(*failure, call, marks=[] if place == number else pytest.mark.slow)
    for number, failure in enumerate([READ_ONLY, NO_SPACE, FORBIDDEN])
    for place, call in enumerate(CALLS)
]


@pytest.mark.parametrize(("number", "text", "remedy", "call"), FAILURES)
@pytest.mark.parametrize("command", WRITERS, ids=[command[0] for command in WRITERS])
def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(
    ccf: Callable[..., tuple[int, str]],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    number: int,
    text: str,
    remedy: str,
    call: str,
) -> None:
    """Injected, since permissions do not bind the superuser that tests may run as."""
    import_robustbench()  # which makes folders of its own when it is imported first

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, text)

    shutil.copytree(finished, tmp_path / "run")
    results(lambda _: None)(tmp_path)
    before = listing(tmp_path)
    monkeypatch.setattr(os, call, fail)
    code, err = ccf(*command, "deep/new")
    monkeypatch.undo()
    assert code == 1
    ends_in_one_line(code, err, remedy)
    assert text in err
    named = "run/environment.json" if command[0] == "bench" else "deep/new"  # bench trains in a folder of its own first
    assert call == "mkdir" or named in err
    assert listing(tmp_path) == before


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


def test_names_that_look_like_markup_are_names(ccf: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    images()(tmp_path)
    (tmp_path / "data/test/9").rename(tmp_path / "data/test/[bold]:bomb:[")
    code, err = ccf(*probe(FOLDER), "--out", "a[/b]/[red]c")
    assert code == 0
    assert err.startswith("ccf: note: folder:data: classes in doubtful order")
    assert [line.endswith(RANDOM_WEIGHTS) for line in err.splitlines()] == [False, True]
    assert (tmp_path / "a[/b]/[red]c.json").is_file()
    assert ccf(*NEW, "runs/[/x]") == (0, "")


def test_a_terminal_of_ascii_shows_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    code, _, err = run("probe", "größe", cwd=tmp_path)
    assert code == 2
    assert err.startswith("ccf: model 'gr\\xf6\\xdfe': no such file")
