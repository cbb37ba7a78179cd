"""The one training loop. Read `train` from top to bottom: everything else hands it its parts."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ccf_plugin.errors import CCFError, InputError
from ccf_plugin.measure.evaluate import Batches, check_input, measure
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.training.alarms import alarm
from ccf_plugin.training.averaging import WeightAverage
from ccf_plugin.training.batches import TrainingBatches
from ccf_plugin.training.distillation import Teacher, distilled, load_teacher
from ccf_plugin.training.log import AVERAGE, EpochRow
from ccf_plugin.training.objectives import StepOutput, build_objective
from ccf_plugin.training.recipe import DistillSection, Recipe
from ccf_plugin.training.run import (
    Run,
    Snapshot,
    check_is_free,
    describe_environment,
    optimizer_tensors,
    restore_optimizer,
)
from ccf_plugin.training.schedule import learning_rate
from ccf_plugin.training.weight_perturbation import perturbed_weights
from ccf_plugin.zoo.attacks import build_attack
from ccf_plugin.zoo.datasets import ImageData, Split, load_data
from ccf_plugin.zoo.models import build_model
from ccf_plugin.zoo.precision import Forward, Precision, resolve_device, resolve_precision
from ccf_plugin.zoo.threat import ThreatModel


class Reporter(Protocol):
    """What the loop tells while it runs."""

    def started(self, run: Run) -> None: ...
    def step(self, epoch: int, done: int, total: int) -> None: ...
    def evaluating(self, batches: Batches, total: int) -> Batches: ...
    def epoch_finished(self, row: EpochRow) -> None: ...


@dataclass(frozen=True)
class _Parts:
    """What a recipe becomes on this machine."""

    recipe: Recipe
    data: ImageData
    train: Split
    test: Split
    model: nn.Module
    device: torch.device
    precision: Precision


def train(
    recipe: Recipe,
    out: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    force: bool = False,
    download: bool = False,
) -> Run:
    """Train by a recipe into the folder ``out``, evaluating and probing as it says.

    Raises:
        InputError: a fault in recipe, data or model (nothing is written then), or an existing run in ``out``.
        CCFError: the loss stopped being finite; the last finished epoch remains.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("expected one process, found several: training does not run on more than one device yet")
    if not resume:
        check_is_free(out, force=force)  # before the data are loaded for nothing
    parts = _prepare(recipe, download=download)
    device, forward = parts.device, Forward(parts.model, precision=parts.precision)
    accelerator = Accelerator(cpu=device.type == "cpu")
    objective = build_objective(recipe.objective)
    attack = build_attack(
        recipe.attack.name,
        forward,
        recipe.training_threat(),
        mode=recipe.attack.batchnorm,
        options=recipe.attack.options,
    )
    clean_batches = TrainingBatches(
        parts.train.images.to(device),
        parts.train.labels.to(device),
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        padding=recipe.data.crop_padding,
    )
    batches = replace(clean_batches, augmentation=recipe.data.augmentation)
    optimizer = torch.optim.SGD(
        parts.model.parameters(),
        lr=recipe.optim.lr,
        momentum=recipe.optim.momentum,
        weight_decay=recipe.optim.weight_decay,
    )
    average = None if recipe.average is None else WeightAverage(parts.model, recipe.average)
    teachers = [_teacher(section, parts, average) for section in recipe.distill]
    environment = describe_environment(device, parts.precision)
    if resume:
        run = Run.reopen(out, recipe, environment)
        states = run.restore()
        parts.model.load_state_dict(states["model"])
        restore_optimizer(optimizer, states.get("optimizer", {}))
        if average is not None:
            average.averaged.load_state_dict(states["average"])
    else:
        run = Run.create(out, recipe, environment, force=force)
    reporter.started(run)

    def total_loss(epoch: int, images: Tensor, adversarial: Tensor, labels: Tensor) -> StepOutput:
        output = objective(forward, images, adversarial, labels)
        return replace(output, loss=distilled(output, adversarial, teachers, epoch))

    def train_epoch(epoch: int) -> tuple[float, float]:
        """One pass over the training images: the mean loss, and the accuracy on what the loss saw."""
        # Every epoch draws from its own seed, so that a resumed run repeats an uninterrupted one; apart from those of
        # the batches' order.
        torch.manual_seed((recipe.seed + 1) * 2_000_003 + epoch)
        parts.model.train()
        gamma = recipe.awp.gamma if recipe.awp is not None and epoch > recipe.awp.start_epoch else 0.0
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for done, (images, labels) in enumerate(batches.epoch(epoch), 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe.optim, epoch - 1 + (done - 1) / len(batches))
            adversarial = images if recipe.objective.loss == "standard" else attack(images, labels)
            step = partial(total_loss, epoch, images, adversarial, labels)
            optimizer.zero_grad(set_to_none=True)
            with perturbed_weights(parts.model, step, gamma):
                output = step()
                accelerator.backward(output.loss)
            optimizer.step()
            if average is not None:
                average.after_step(parts.model, epoch)
            # Sums stay on the device until the epoch ends: nothing in a step waits for it.
            loss_sum += output.loss.detach() * len(labels)
            correct += (output.logits.argmax(1) == labels).sum()
            reporter.step(epoch, done, len(batches))
        return float(loss_sum) / len(parts.train), int(correct) / len(parts.train)

    for epoch in range(run.epoch + 1, recipe.optim.epochs + 1):
        started = time.perf_counter()
        rate = learning_rate(recipe.optim, epoch - 1)
        loss, accuracy = train_epoch(epoch)
        finite = torch.stack([torch.isfinite(value).all() for value in parts.model.parameters()]).all()
        if not (math.isfinite(loss) and finite):
            left = f"epoch {epoch - 1} remains in {out}" if epoch > 1 else "nothing was kept"
            raise CCFError(
                f"expected a finite loss and finite weights, found a loss of {loss:g} at the end of epoch {epoch} at "
                f"learning rate {rate:g}; {left}: lower optim.lr or use precision float32"
            )
        if average is not None:
            average.after_epoch(parts.model, epoch)
        trained = time.perf_counter() - started
        models = {"": parts.model}
        if average is not None and average.has_moved:
            models[AVERAGE] = average.for_evaluation(images for images, _ in clean_batches.epoch(0))
        due = _is_due(recipe.evaluate.every, epoch, recipe)
        results = {suffix: _evaluate(parts, model, reporter) for suffix, model in models.items()} if due else {}
        row = EpochRow(
            epoch=epoch,
            lr=rate,
            train_loss=loss,
            train_robust_accuracy=accuracy if recipe.objective.loss != "standard" else None,
            seconds=time.perf_counter() - started,
            images_per_second=len(parts.train) / trained,
            **_figures(results),  # type: ignore[arg-type]  # none of them is the alarm
        )
        row = replace(row, alarm=alarm(run.rows, row))
        kept = results if _is_due(recipe.probe.every, epoch, recipe) else {}
        run.finish_epoch(
            row,
            {suffix: Snapshot(model, kept.get(suffix)) for suffix, model in models.items()},
            {
                "model": parts.model.state_dict(),
                "optimizer": optimizer_tensors(optimizer),
                **({} if average is None else {"average": average.averaged.state_dict()}),
            },
            _describe_model(parts),
        )
        reporter.epoch_finished(row)
    return run


def _prepare(recipe: Recipe, *, download: bool) -> _Parts:
    """Data, model, device and precision: all that can be wrong is found here, before anything is written."""
    device = resolve_device(recipe.device)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    data = load_data(
        recipe.data.name,
        root=Path(recipe.data.root).expanduser(),
        download=download,
        train_per_class=recipe.data.train_per_class,
        test_limit=recipe.data.test_limit,
    )
    if data.train is None or data.test is None:
        raise InputError(f"expected data with a train and a test split, found {data.name} without one of them")
    if len(data.train) % recipe.optim.batch_size == 1:
        raise InputError(
            f"optim.batch_size: expected one that leaves no last batch of a single image, which BatchNorm refuses, "
            f"found {recipe.optim.batch_size} for {len(data.train)} images"
        )
    size = min(data.train.images.shape[2:])
    if recipe.data.augmentation != "none" and recipe.data.crop_padding >= size:
        raise InputError(
            f"data.crop_padding: expected less than the images' {size} pixels, found {recipe.data.crop_padding}"
        )
    torch.manual_seed(recipe.seed)
    model = build_model(
        recipe.model.name,
        num_classes=len(data.classes),
        input_size=_input_size(data.train),
        options=recipe.model.options,
        mean=recipe.model.mean,
        std=recipe.model.std,
    )
    check_input(model, _input_size(data.train), recipe.model.name)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Parts(recipe, data, data.train, data.test, model, device, resolve_precision(recipe.precision, device))


def _teacher(section: DistillSection, parts: _Parts, average: WeightAverage | None) -> Teacher:
    if section.teacher == "average" and average is not None:
        return Teacher(Forward(average.averaged, precision=parts.precision), section)
    return load_teacher(
        section,
        num_classes=len(parts.data.classes),
        input_size=_input_size(parts.train),
        device=parts.device,
        precision=parts.precision,
    )


def _evaluate(parts: _Parts, model: nn.Module, reporter: Reporter) -> CrossClassResult:
    """Clean accuracy, RA and CAS on the test split; where the recipe probes clean images, C and CAS are of those."""

    def on_test(threat: ThreatModel | None) -> CrossClassResult:
        return measure(
            model,
            parts.test,
            threat,
            classes=parts.data.classes,
            model_name=parts.recipe.model.name,
            data_name=parts.data.name,
            attack_name=parts.recipe.evaluate.name,
            attack_options=parts.recipe.evaluate.options,
            batch_size=parts.recipe.evaluate.batch_size,
            instances=parts.recipe.probe.instances,
            seed=parts.recipe.evaluate.seed,
            precision=parts.precision,
            progress=reporter.evaluating,
        )

    adversarial = on_test(parts.recipe.evaluation_threat())
    if parts.recipe.probe.inputs == "adversarial":
        return adversarial
    return replace(on_test(None), robust_accuracy=adversarial.robust_accuracy)


def _figures(results: dict[str, CrossClassResult]) -> dict[str, float | None]:
    """An epoch row's figures of the raw weights and, where there are, of the averaged ones."""
    figures: dict[str, float | None] = dict.fromkeys(
        ("test_clean_accuracy", "test_robust_accuracy", "cas", "instance_cas")
    )
    for suffix, result in results.items():
        figures[f"test_clean_accuracy{suffix}"] = result.clean_accuracy
        figures[f"test_robust_accuracy{suffix}"] = result.robust_accuracy
        figures[f"cas{suffix}"] = result.cas
        if not suffix:
            figures["instance_cas"] = result.instance_cas
    return figures


def _is_due(every: int, epoch: int, recipe: Recipe) -> bool:
    return epoch % every == 0 or epoch == recipe.optim.epochs


def _input_size(split: Split) -> tuple[int, int, int]:
    channels, height, width = split.images.shape[1:]
    return channels, height, width


def _describe_model(parts: _Parts) -> dict[str, Any]:
    """What a checkpoint says of itself, so that it can be loaded wherever it lies."""
    threat = parts.recipe.evaluation_threat()
    return {
        "model": parts.recipe.model.model_dump(),
        "classes": list(parts.data.classes),
        "data": parts.data.name,
        "input_size": list(_input_size(parts.train)),
        "test_limit": parts.recipe.data.test_limit,
        "threat": threat.as_dict(),
    }
