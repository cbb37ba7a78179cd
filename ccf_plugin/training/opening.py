"""Where a run begins or continues: the place is checked first, the folder is opened last."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.runs.environment import read_environment
from ccf_plugin.runs.folder import check_is_free, has_begun
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.run import Run
from ccf_plugin.training.state import TrainingState


def check_place(out: Path, *, resume: bool, force: bool) -> bool:
    """Whether there is a run to resume in ``out``; one that was killed before its first state begins anew.

    Raises:
        InputError: the folder is not free, or nothing of the run to resume is there.
    """
    if resume and has_begun(out):
        return True
    if resume and not out.is_dir():
        raise InputError(Fault("", f"a run to resume in {out}", "none", "start it without {resume}"))
    check_is_free(out, force=force)
    return False


def check_same(out: Path, kind: str, now: Mapping[str, str]) -> None:
    """Raise InputError where the run in ``out`` was last trained with other images or teachers; older runs do not say.

    Args:
        kind: "images" or "teachers".
        now: the hash of each split, by its name, and of the classes' names; or of each teacher's weights.
    """
    before = read_environment(out)
    last = [before, *before.get("resumed", [])][-1]
    known = last.get(kind) if isinstance(last, dict) else None
    if not isinstance(known, dict):
        return
    other = [name for name in now if name in known and known[name] != now[name]]
    if other:
        expected = f"the {kind} that the run in {out} was trained with"
        remedy = "bring them back, or start anew with another {out}"
        raise InputError(Fault("", expected, f"others ({', '.join(other)})", remedy))


def open_run(
    out: Path,
    recipe: Recipe,
    state: TrainingState,
    processes: Processes,
    environment: dict[str, Any],
    *,
    resume: bool,
    allow_change: Collection[str],
    force: bool,
) -> Run:
    """The run folder, which the first process alone writes; ``state`` becomes that of a resumed run."""
    run = None
    if processes.is_main and resume:
        run = Run.reopen(out, recipe, allow_change=allow_change)
        for kind, section in (("images", "data."), ("teachers", "distill")):
            if not any(key.startswith(section) for key in allow_change):
                check_same(out, kind, environment[kind])
    elif processes.is_main:
        run = Run.create(out, recipe, environment, force=force)
    processes.wait()
    if run is None:
        run = Run.read(out, recipe) if resume else Run(out, recipe)
    if resume:
        run.restore(state.restore)
        if processes.is_main:
            run.write_again(environment)
    return run
