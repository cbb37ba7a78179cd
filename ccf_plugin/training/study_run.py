"""Doing a study: what is not finished is trained, in time; what several processes do at once they share."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from ccf_plugin.errors import CCFError, DivergedError, InputError
from ccf_plugin.files import made_folder
from ccf_plugin.job import is_first_process, job_size
from ccf_plugin.measuring.claims import Comparison, parse_claim
from ccf_plugin.measuring.finished_runs import FinishedRun
from ccf_plugin.measuring.study_results import describe_study, save_study, state_claims
from ccf_plugin.runs.folder import LockedError, check_is_free, lock
from ccf_plugin.runs.layout import STUDY
from ccf_plugin.training.interruption import TIME_UP, Interrupted, Interruption
from ccf_plugin.training.loop import Reporter, train
from ccf_plugin.training.study import Member, Study

Status = Literal["finished", "begun", "waiting", "diverged"]
_LOCK = ".study.lock"


def run_study(
    study: Study,
    reporting: Callable[[Member], AbstractContextManager[Reporter]],
    *,
    until: float | None = None,
    download: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train what is not finished, until the time is up by ``time.monotonic``; give back the content of study.json.

    However short the time, a step is done, so that slots of any length come to an end; with −∞ nothing is trained.

    A run that another process trains is left to it. A run that diverges does not stop those that do not need it.

    Raises:
        InputError: a run in one of its folders was made by another recipe (before anything runs); as ``train``.
        Interrupted: a signal came; the state is saved.
    """
    if until is not None and job_size() > 1:
        raise InputError("expected a time limit in one process, found a job of several; end it by SIGTERM")
    statuses = _Statuses(study)
    elsewhere: set[Path] = set()
    has_trained = False
    with made_folder(study.folder), _taken_back_where_refused(study), Interruption(until) as interruption:
        results = update(study, statuses.all())
        for one in study.members:
            if statuses.known[one.folder] == "finished":
                say(f"{one.label}: finished already in {one.folder}")
        while (member := statuses.next_one(elsewhere)) is not None:
            if request := interruption.request:
                if request == TIME_UP and (has_trained or until == -math.inf):
                    break
                if request != TIME_UP:
                    where = f"{signal.Signals(request).name} before {member.label}"
                    raise Interrupted(where, request, "run the study again to go on")
            try:
                with lock(member.folder) if job_size() == 1 else contextlib.nullcontext():
                    if statuses.look(member) != "finished":  # by another process, since
                        has_trained = True
                        with reporting(member) as reporter:
                            train(
                                member.recipe,
                                member.folder,
                                reporter,
                                resume=member.has_begun,
                                allow_change=study.allow_change,
                                download=download,
                                interruption=interruption,
                            )
                    statuses.known[member.folder] = "finished"
            except LockedError:
                say(f"{member.label}: another process trains it")
                elsewhere.add(member.folder)
            except DivergedError as error:  # the others are worth having
                statuses.known[member.folder] = "diverged"
                say(f"{member.label}: {error}")
            except Interrupted as error:
                statuses.known[member.folder] = "begun"
                results = update(study, statuses.all())
                if not error.is_time_up:
                    where = f"{member.label}: {error.where}"
                    raise Interrupted(where, error.signal_number, "run the study again to go on") from None
                say(f"{member.label}: {error.where}")
                break
            results = update(study, statuses.all())
    return update(study, statuses.all()) if elsewhere else results


@contextlib.contextmanager
def _taken_back_where_refused(study: Study) -> Iterator[None]:
    """Remove what a new study wrote, should it be refused before a run of it has begun."""
    before, begun = set(study.folder.iterdir()), [member.has_begun for member in study.members]
    try:
        yield
    except CCFError:
        if study.folder / STUDY not in before and begun == [member.has_begun for member in study.members]:
            for path in set(study.folder.iterdir()) - before:
                if path.is_file():
                    path.unlink()
        raise


class _Statuses:
    """How far each run is, by its folder; InputError where a folder holds another recipe's run."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.known: dict[Path, Status] = {}
        for member in study.members:
            self.look(member)

    def look(self, member: Member) -> Status:
        """As the folder has it now."""
        status: Status = "waiting"
        if not member.has_begun:
            check_is_free(member.folder)
        else:
            status = "finished" if member.reopen(self._study.allow_change).is_finished else "begun"
        self.known[member.folder] = status
        return status

    def all(self) -> Mapping[Path, Status]:
        """Of all runs; those that other processes may be at are looked at again."""
        if job_size() == 1:
            for member in self._study.members:
                if self.known[member.folder] in ("waiting", "begun"):
                    self.look(member)
        return self.known

    def next_one(self, elsewhere: set[Path]) -> Member | None:
        """The next run to train: not finished, not another process's, its teachers finished."""
        self.all()
        for member in self._study.members:
            is_open = self.known[member.folder] in ("waiting", "begun") and member.folder not in elsewhere
            if is_open and all(self.known[teacher] == "finished" for teacher in member.teachers):
                return member
        return None


def update(study: Study, statuses: Mapping[Path, Status]) -> dict[str, Any]:
    """Write study.json and its tables anew from the runs' folders; claims that are new are stated now."""
    from filelock import FileLock

    described = {
        "name": study.name,
        "title": study.title,
        "baseline": study.baseline,
        "command": list(study.command),
        "runs": [
            {
                "name": member.name,
                "seed": member.seed,
                "label": member.label,
                "folder": member.folder.name,
                "teachers": [teacher.name for teacher in member.teachers],
                "status": statuses[member.folder],
            }
            for member in study.members
        ],
    }
    with FileLock(study.folder / _LOCK) if is_first_process() else contextlib.nullcontext():
        has_begun = any(status in ("finished", "begun") for status in statuses.values())
        stated = state_claims(study.folder, list(study.claims), has_begun=has_begun)
        comparisons = dict(study.claims) | {one.claim: _parsed(one.claim, study) for one in stated if one.withdrawn}
        runs = [
            FinishedRun.read(member.name, member.seed, member.folder)
            for member in study.members
            if statuses[member.folder] == "finished"
        ]
        results = describe_study(described, stated, comparisons, runs)
        if is_first_process():
            save_study(study.folder, results)
    return results


def _parsed(claim: str, study: Study) -> list[Comparison]:
    """A withdrawn claim; nothing where its runs are gone too."""
    try:
        return parse_claim(claim, study.names)
    except InputError:
        return []
