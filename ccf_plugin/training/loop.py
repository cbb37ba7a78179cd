"""The one training loop. Read `train` and `Loop` from top to bottom: everything else gives them their parts."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ccf_plugin.engine.forward import contiguous
from ccf_plugin.engine.memory import batch_size_errors, keep_freed_memory
from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.engine.switches import preserve_global_state
from ccf_plugin.engine.timing import part, part_of_each
from ccf_plugin.errors import DivergedError
from ccf_plugin.measuring.evaluate import Batches
from ccf_plugin.probe.head_reader import ReadForward
from ccf_plugin.runs.alarms import alarms, fall_p
from ccf_plugin.runs.environment import describe_environment
from ccf_plugin.runs.folder import lock
from ccf_plugin.runs.layout import AVERAGE, weights_of
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.training.batches import Batch
from ccf_plugin.training.distillation import check_teachers, distilled
from ccf_plugin.training.interruption import Interruption
from ccf_plugin.training.method import Method
from ccf_plugin.training.mixing import classes_of
from ccf_plugin.training.monitor import Measured, Monitor, check_measurable, figures
from ccf_plugin.training.objectives import StepOutput
from ccf_plugin.training.opening import check_place, open_run
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.run import Run, Snapshot
from ccf_plugin.training.saver import Saver
from ccf_plugin.training.schedule import is_due, learning_rate
from ccf_plugin.training.setup import Parts, check_weights, prepare
from ccf_plugin.training.state import Totals, TrainingState
from ccf_plugin.training.temporal_ensembling import TemporalEnsemble
from ccf_plugin.training.weight_perturbation import perturbed_weights


class Reporter:
    """Receives the progress of a run. This one is silent; override the events to show."""

    def started(self, run: Run) -> None:
        """A run begins or continues."""

    def step(self, epoch: int, done: int, total: int) -> None:
        """``done`` of an epoch's ``total`` steps are done."""

    def evaluating(self, batches: Batches, total: int) -> Batches:
        """An evaluation of ``total`` batches begins; returns the batches, which it may count."""
        return batches

    def measured(self, epoch: int, models: Mapping[str, nn.Module]) -> None:
        """An epoch is trained, and evaluated where that is due, and will be written next.

        ``models`` are the run's own, which nothing may change: the weights as they are under "", the averaged ones,
        where there are some, under "_average". Every process of a job is told.
        """

    def epoch_finished(self, row: EpochRow) -> None:
        """An epoch is evaluated and written."""


@preserve_global_state()
def train(
    recipe: Recipe,
    out: Path,
    reporter: Reporter | None = None,
    *,
    resume: bool = False,
    allow_change: Collection[str] = (),
    force: bool = False,
    download: bool = False,
    trackers: Sequence[str] = (),
    interruption: Interruption | None = None,
) -> Run:
    """Train by a recipe into the folder ``out``, evaluating and probing as it says.

    What it sets for the whole process (threads, cuDNN's choices, seeds) is put back at the end.

    Args:
        reporter: receives the progress; None: no output.
        resume: continue the run in ``out`` where its state stands; one killed before its first state begins anew.
        allow_change: keys of the recipe that may differ from the run's when resuming.
        force: replace the run in ``out``.
        download: fetch the data set where it is missing.
        trackers: names of accelerate's trackers, such as "tensorboard"; they write into ``out``/trackers.
        interruption: entered already by the caller, whom signals and a time limit concern beyond this run.

    Raises:
        InputError: a fault in recipe, data or model, which may have no head or resist the evaluation's attack (nothing
            is written then), or an existing run in ``out``.
        UnavailableError: data, a device or a tracker is not available here.
        DivergedError: loss, weights or logits stopped being finite; the last finished epoch remains.
        Interrupted: SIGINT or SIGTERM came, or the time is up; the state is saved.
    """
    reporter = reporter or Reporter()
    check_teachers(recipe.distill, out)
    check_weights(recipe.model.weights, out)
    processes = Processes(recipe.device, sync_batchnorm=recipe.sync_batchnorm, trackers=trackers, folder=out)
    resume = check_place(out, resume=resume, force=force)  # before the data are loaded for nothing
    if processes.device.type == "cpu":
        keep_freed_memory()
    parts = prepare(recipe, processes.device, download=download, processes=processes.count)
    check_measurable(parts)
    loop = Loop(parts, processes)
    with lock(out) if processes.is_main else nullcontext():
        environment = {
            **describe_environment(parts.device, parts.precision),
            "processes": processes.count,
            "compiled": loop.method.is_compiled,
            "images": parts.fingerprints,
            "teachers": loop.method.teacher_fingerprints(),
        }
        run = open_run(
            out, parts.recipe, loop.state, processes, environment, resume=resume, allow_change=allow_change, force=force
        )
        processes.start_tracking(recipe.flat())
        reporter.started(run)
        with nullcontext(interruption) if interruption else Interruption() as ending, run.written_beside():
            saver = Saver(run, loop.state, processes, ending)
            while not run.is_finished:
                row = loop.epoch(run, saver, reporter)
                reporter.epoch_finished(row)
        processes.finish()
    return run


class Loop:
    """A run's training: `epoch` is for epoch, `steps` and `_step` for batch."""

    def __init__(self, parts: Parts, processes: Processes) -> None:
        self.parts, self.processes = parts, processes
        self.state = TrainingState(parts, processes)
        self.method = Method(parts, processes, self.state)
        self._monitor = Monitor(parts)

    def epoch(self, run: Run, saver: Saver, reporter: Reporter) -> EpochRow:
        """Train the run's next epoch, evaluate, log and save."""
        recipe, state, epoch = self.parts.recipe, self.state, run.epoch + 1
        started, skipped = time.perf_counter(), state.step
        for step in self.steps(epoch):
            reporter.step(epoch, step, len(self.method.batches))
            saver.between_steps(epoch)
        totals = state.totals()
        self._check_is_finite(totals, epoch, run)
        trained = time.perf_counter() - started
        images = max(0, len(self.parts.train) - skipped * recipe.optim.batch_size)

        models = self._models(epoch)
        measured: dict[str, Measured] = {}
        if is_due(recipe.evaluate.every, epoch, recipe.optim):
            for suffix, model in models.items():
                with part("evaluation"):
                    measured[suffix] = self._monitor.measure(
                        model, lambda batches, total: saver.watched(epoch, reporter.evaluating(batches, total))
                    )
        reporter.measured(epoch, models)
        row = EpochRow(
            epoch=epoch,
            lr=learning_rate(recipe.optim, epoch - 1),
            train_loss=totals.loss,
            train_robust_accuracy=totals.accuracy if recipe.objective.is_adversarial else None,
            seconds=time.perf_counter() - started,
            images_per_second=images / trained if images else 0.0,
            robust_fall_p=self._fall_p(measured),
            **figures(measured),  # type: ignore[arg-type]  # none of them is text
        )
        row = replace(row, alarm="; ".join(alarms(run.rows, row)))
        self._remember_most_robust(run, row, measured)

        is_kept = is_due(recipe.probe.every, epoch, recipe.optim)
        snapshots = {
            suffix: Snapshot(model, measured[suffix].test if suffix in measured else None, is_kept)
            for suffix, model in models.items()
        }
        with part("writing"):
            row = run.finish_epoch(row, snapshots, self.parts.describe_model(), write=self.processes.is_main)
            state.close_epoch()
            saver.save()
            results = {suffix: of_weights.test for suffix, of_weights in measured.items()}
            self.processes.track(row, results, pictures=is_kept and bool(recipe.probe.pictures))
        return row

    def steps(self, epoch: int) -> Iterator[int]:
        """Train an epoch, from the restored step where there is one; yields the steps done after each."""
        recipe, state = self.parts.recipe, self.state
        if state.step == 0:
            # Every epoch draws from its own seed, apart from those of the batches' order; so does every process.
            torch.manual_seed((recipe.seed + 1) * 2_000_003 + epoch + 1_000_000_007 * self.processes.rank)
        state.model.train()
        for batch in part_of_each("data", self.method.batches.epoch(epoch, skip=state.step)):
            with batch_size_errors("optim.batch_size", recipe.optim.batch_size):
                self._step(epoch, batch)
            yield state.step
        averaged = [] if state.average is None else [state.average.averaged]
        self.processes.share_buffers(state.model, *averaged)

    def _step(self, epoch: int, batch: Batch) -> None:
        recipe, state, method = self.parts.recipe, self.state, self.method
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optim, epoch - 1 + state.step / len(method.batches))
        if state.ensemble is not None and state.ensemble.weight(epoch):
            self._predict(state.ensemble, batch)
        adversarial = batch.images
        if recipe.objective.is_adversarial:
            with part("attack"):
                adversarial = method.attack(epoch)(batch.images, batch.labels)
        awp = recipe.awp if recipe.awp is not None and epoch > recipe.awp.start_epoch else None
        loss_of_bare_model = partial(self._loss, method.forward, epoch, batch, adversarial)
        with (
            part("weights' pass"),
            perturbed_weights(state.model, loss_of_bare_model, awp, self.processes.mean),
        ):
            output = self._loss(method.trained_forward, epoch, batch, adversarial)
            self.processes.backward(output.loss)
        with part("optimizer"):
            if recipe.optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(state.model.parameters(), recipe.optim.clip_norm)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)  # at once, so that the next attack finds their memory free
        state.step += 1
        if state.average is not None:
            state.average.after_step(state.model, epoch, is_last=state.step == len(method.batches))
        if batch.share:
            loss = output.loss.detach() * (len(batch.labels) / batch.share)
            state.add(loss, (output.logits.argmax(1) == classes_of(batch.labels)).sum())

    def _loss(self, forward: nn.Module, epoch: int, batch: Batch, adversarial: Tensor) -> StepOutput:
        """The step's whole loss, scaled so that the processes' mean is the mean over the step's images."""
        ensemble, term = self.state.ensemble, self.method.term
        with self.method.reading(forward, epoch) as read:
            output = self.method.objective(read, batch.images, adversarial, batch.labels)
        loss = distilled(output, adversarial, self.method.teachers, epoch)
        if ensemble is not None and ensemble.weight(epoch):
            loss = loss + ensemble.loss(epoch, batch.indices, output.logits)
        loss = loss if batch.share == 1 else loss * batch.share
        if term is not None and (weight := term.weight(epoch)):
            assert isinstance(read, ReadForward)  # noqa: S101  (the term has a weight)
            features = read.features(output.logits)
            loss = loss - weight * term.value(features, read.head, batch.labels, counts=batch.share > 0)
        return replace(output, loss=loss)

    def _predict(self, ensemble: TemporalEnsemble, batch: Batch) -> None:
        """Take the predictions of the step's images into the ensemble."""
        with torch.no_grad(), evaluation_mode(self.state.model):
            predictions = self.method.forward(batch.images)
        if self.processes.count == 1:
            ensemble.update(batch.indices, predictions)
            return
        # Every process needs the predictions of all, since the next epoch deals the images out anew.
        for indices, logits, share in self.processes.gather((batch.indices.cpu(), predictions.cpu(), batch.share)):
            if share:
                ensemble.update(indices.to(predictions.device), logits.to(predictions.device))

    def _models(self, epoch: int) -> dict[str, nn.Module]:
        """The models that an epoch's end measures and saves, by suffix: the raw weights and any averaged ones."""
        averaged = self.state.averaged_model(
            contiguous(batch.images) for batch in self.method.whole_batches.epoch(epoch)
        )
        return {"": self.state.model} | ({} if averaged is None else {AVERAGE: averaged})

    def _fall_p(self, measured: Mapping[str, Measured]) -> float | None:
        """p of fewer test images withstanding the attack than at the most robust epoch, where it is known."""
        if "" not in measured or (withstands := measured[""].withstands) is None or self.state.withstood is None:
            return None
        if len(withstands) != len(self.state.withstood):  # a resumed run whose test images were allowed to change
            return None
        return fall_p(self.state.withstood.numpy(), withstands)

    def _remember_most_robust(self, run: Run, row: EpochRow, measured: Mapping[str, Measured]) -> None:
        robust = [earlier.test_robust_accuracy or 0.0 for earlier in run.rows]
        is_most_robust = row.test_robust_accuracy is not None and row.test_robust_accuracy > max(robust, default=-1.0)
        if is_most_robust and (withstands := measured[""].withstands) is not None:
            self.state.withstood = torch.from_numpy(withstands)

    def _check_is_finite(self, totals: Totals, epoch: int, run: Run) -> None:
        """Raise DivergedError where training went wrong, before anything of the epoch is written."""
        if not totals.failed_at:
            return
        epochs_done = epoch - 1 + (totals.failed_at - 1) / len(self.method.batches)
        rate = learning_rate(self.parts.recipe.optim, epochs_done)
        fault = f"a loss of {totals.loss:g}"
        if math.isfinite(totals.loss):
            fault = "weights that give no finite logits in eval mode"
        survivor = f"epoch {epoch - 1} remains in {weights_of(run.folder, 'last')}" if epoch > 1 else "nothing was kept"
        raise DivergedError(
            f"expected a finite loss and finite weights, found {fault} in epoch {epoch}, step {totals.failed_at}, at "
            f"learning rate {rate:g}; {survivor}: lower optim.lr or use precision float32"
        )
