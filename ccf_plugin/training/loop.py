"""The one training loop. Read `train` from top to bottom: everything else hands it its parts."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ccf_plugin.engine.memory import keep_freed_memory
from ccf_plugin.engine.switches import switches_put_back
from ccf_plugin.engine.timing import Stopwatch
from ccf_plugin.errors import DivergedError, InputError
from ccf_plugin.measure.evaluate import Batches
from ccf_plugin.runs.alarms import alarms
from ccf_plugin.runs.environment import describe_environment
from ccf_plugin.runs.folder import check_is_free, has_begun, lock
from ccf_plugin.runs.layout import AVERAGE
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.training.distillation import check_teachers
from ccf_plugin.training.interruption import Interruption
from ccf_plugin.training.monitor import Monitor, check_measurable, figures
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.run import Run, Snapshot
from ccf_plugin.training.saver import Saver
from ccf_plugin.training.schedule import learning_rate
from ccf_plugin.training.setup import Parts, prepare
from ccf_plugin.training.trainer import Totals, Trainer


class Reporter(Protocol):
    """What the loop tells while it runs."""

    def started(self, run: Run) -> None: ...
    def step(self, epoch: int, done: int, total: int) -> None: ...
    def evaluating(self, batches: Batches, total: int) -> Batches: ...
    def epoch_finished(self, row: EpochRow) -> None: ...


@switches_put_back()
def train(
    recipe: Recipe,
    out: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    allow_change: Collection[str] = (),
    force: bool = False,
    download: bool = False,
    trackers: Sequence[str] = (),
    spent: Stopwatch | None = None,
) -> Run:
    """Train by a recipe into the folder ``out``, evaluating and probing as it says.

    What it sets for the whole process (threads, cuDNN's choices, seeds) is put back at the end.

    Args:
        resume: continue the run in ``out`` where its state stands; one killed before its first state begins anew.
        allow_change: keys of the recipe that may differ from the run's when resuming.
        force: replace the run in ``out``.
        download: fetch the data set where it is missing.
        trackers: names of accelerate's trackers, such as "tensorboard"; they write into ``out``/trackers.
        spent: where the seconds of an epoch's parts are added up.

    Raises:
        InputError: a fault in recipe, data or model, which may have no head or resist the evaluation's attack (nothing
            is written then), or an existing run in ``out``.
        UnavailableError: data, device or a tracker that are not to be had here.
        DivergedError: loss, weights or logits stopped being finite; the last finished epoch remains.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    check_teachers(recipe.distill, out)
    processes = Processes(recipe, trackers, out)
    if resume and not has_begun(out):
        if not out.is_dir():
            raise InputError(f"expected a run to resume in {out}, found none; start it without --resume")
        resume = False
    if not resume:
        check_is_free(out, force=force)  # before the data are loaded for nothing
    if processes.device.type == "cpu":
        keep_freed_memory()
    parts = prepare(recipe, processes.device, download=download, processes=processes.count)
    check_measurable(parts)
    spent = spent or Stopwatch()
    trainer = Trainer(parts, processes, spent)
    with lock(out) if processes.is_main else nullcontext():
        run = _open(out, parts, trainer, processes, resume=resume, allow_change=allow_change, force=force)
        processes.start_tracking(recipe)
        reporter.started(run)
        with Interruption() as interruption, run.written_beside():
            saver, monitor = Saver(run, trainer, processes, interruption), Monitor(parts)
            while not run.is_finished:
                row = _train_epoch(run.epoch + 1, parts, trainer, monitor, saver, reporter, run, processes, spent)
                processes.track(row)
                reporter.epoch_finished(row)
        processes.finish()
    return run


def _train_epoch(
    epoch: int,
    parts: Parts,
    trainer: Trainer,
    monitor: Monitor,
    saver: Saver,
    reporter: Reporter,
    run: Run,
    processes: Processes,
    spent: Stopwatch,
) -> EpochRow:
    recipe = parts.recipe
    started, skipped = time.perf_counter(), trainer.step
    for step in trainer.steps(epoch):
        reporter.step(epoch, step, len(trainer.batches))
        saver.between_steps(epoch)
    totals = trainer.totals()
    _check_is_finite(totals, epoch, trainer, run)
    trained = time.perf_counter() - started
    images = max(0, len(parts.train) - skipped * recipe.optim.batch_size)
    models = {"": trainer.model} | ({} if (averaged := trainer.averaged_model()) is None else {AVERAGE: averaged})
    measured = {}
    if _is_due(recipe.evaluate.every, epoch, recipe):
        for suffix, model in models.items():
            with spent("evaluation"):
                measured[suffix] = monitor.measure(
                    model, lambda batches, total: saver.watched(epoch, reporter.evaluating(batches, total))
                )
    row = EpochRow(
        epoch=epoch,
        lr=learning_rate(recipe.optim, epoch - 1),
        train_loss=totals.loss,
        train_robust_accuracy=totals.accuracy if recipe.objective.loss != "standard" else None,
        seconds=time.perf_counter() - started,
        images_per_second=images / trained if images else 0.0,
        **figures(measured),  # type: ignore[arg-type]  # none of them is text
    )
    row = replace(row, alarm="; ".join(alarms(run.rows, row)))
    is_kept = _is_due(recipe.probe.every, epoch, recipe)
    snapshots = {
        suffix: Snapshot(model, measured[suffix].test if suffix in measured else None, is_kept)
        for suffix, model in models.items()
    }
    with spent("writing"):
        row = run.finish_epoch(row, snapshots, parts.describe_model(), write=processes.is_main)
        trainer.close_epoch()
        saver.save()
    return row


def _check_is_finite(totals: Totals, epoch: int, trainer: Trainer, run: Run) -> None:
    """Raise DivergedError where training went wrong, before anything of the epoch is written."""
    if not totals.failed_at:
        return
    rate = learning_rate(run.recipe.optim, epoch - 1 + (totals.failed_at - 1) / len(trainer.batches))
    found = f"a loss of {totals.loss:g}"
    if math.isfinite(totals.loss):
        found = "weights that give no finite logits in eval mode"
    last = run.folder / "last.safetensors"
    left = f"epoch {epoch - 1} remains in {last}" if epoch > 1 else "nothing was kept"
    raise DivergedError(
        f"expected a finite loss and finite weights, found {found} in epoch {epoch}, step {totals.failed_at}, at "
        f"learning rate {rate:g}; {left}: lower optim.lr or use precision float32"
    )


def _open(
    out: Path,
    parts: Parts,
    trainer: Trainer,
    processes: Processes,
    *,
    resume: bool,
    allow_change: Collection[str],
    force: bool,
) -> Run:
    """The run folder, which the first process alone writes; the trainer gets the state of a resumed run."""
    environment = {
        **describe_environment(parts.device, parts.precision),
        "processes": processes.count,
        "compiled": trainer.is_compiled,
    }
    run = None
    if processes.is_main and resume:
        run = Run.reopen(out, parts.recipe, allow_change=allow_change)
    elif processes.is_main:
        run = Run.create(out, parts.recipe, environment, force=force)
    processes.wait()
    if run is None:
        run = Run.read(out, parts.recipe) if resume else Run(out, parts.recipe)
    if resume:
        step = run.step
        run.restore(lambda states: trainer.restore(states, step))
        if processes.is_main:
            run.write_again(environment)
    return run


def _is_due(every: int, epoch: int, recipe: Recipe) -> bool:
    return epoch % every == 0 or epoch == recipe.optim.epochs
