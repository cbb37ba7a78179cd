"""The one training loop. Read `train` from top to bottom: everything else hands it its parts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from ccf_plugin.errors import CCFError, InputError
from ccf_plugin.measure.evaluate import Batches, measure
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.training.alarms import alarm
from ccf_plugin.training.batches import TrainingBatches
from ccf_plugin.training.distillation import Teacher, distilled, load_teacher
from ccf_plugin.training.objectives import build_objective
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.run import EpochRow, Run, check_is_free, describe_environment
from ccf_plugin.training.schedule import learning_rate
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
    teachers: list[Teacher]
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
    batches = TrainingBatches(
        parts.train.images.to(device),
        parts.train.labels.to(device),
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        augmentation=recipe.data.augmentation,
        padding=recipe.data.crop_padding,
    )
    optimizer = torch.optim.SGD(
        parts.model.parameters(),
        lr=recipe.optim.lr,
        momentum=recipe.optim.momentum,
        weight_decay=recipe.optim.weight_decay,
    )
    if resume:
        run = Run.reopen(out, recipe)
        run.restore(parts.model, optimizer)
    else:
        run = Run.create(out, recipe, describe_environment(device, parts.precision), force=force)
    reporter.started(run)

    def train_epoch(epoch: int) -> tuple[float, float]:
        """One pass over the training images: the mean loss, and the accuracy on what the loss saw."""
        # Every epoch draws from its own seed, so that a resumed run repeats an uninterrupted one.
        torch.manual_seed(recipe.seed * 1_000_003 + epoch)
        parts.model.train()
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for done, (images, labels) in enumerate(batches.epoch(epoch), 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe.optim, epoch - 1 + (done - 1) / len(batches))
            output = objective(forward, images, labels, attack)
            loss = distilled(output, parts.teachers, epoch)
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            optimizer.step()
            # Sums stay on the device until the epoch ends: nothing in a step waits for it.
            loss_sum += loss.detach() * len(labels)
            correct += (output.logits.detach().argmax(1) == labels).sum()
            reporter.step(epoch, done, len(batches))
        return float(loss_sum) / len(parts.train), int(correct) / len(parts.train)

    for epoch in range(run.epoch + 1, recipe.optim.epochs + 1):
        started = time.perf_counter()
        rate = learning_rate(recipe.optim, epoch - 1)
        loss, accuracy = train_epoch(epoch)
        if not math.isfinite(loss):
            raise CCFError(
                f"expected a finite loss, found {loss} in epoch {epoch} at learning rate {rate:g}; epoch {epoch - 1} "
                f"remains in {out}: lower optim.lr or use precision float32"
            )
        trained = time.perf_counter() - started
        result = _evaluate(parts, reporter) if _is_due(recipe.evaluate.every, epoch, recipe) else None
        row = EpochRow(
            epoch=epoch,
            lr=rate,
            train_loss=loss,
            train_robust_accuracy=accuracy if recipe.objective.loss != "standard" else None,
            test_clean_accuracy=result.clean_accuracy if result else None,
            test_robust_accuracy=result.robust_accuracy if result else None,
            cas=result.cas if result else None,
            instance_cas=result.instance_cas if result else None,
            seconds=time.perf_counter() - started,
            images_per_second=len(parts.train) / trained,
        )
        row = replace(row, alarm=alarm(run.rows, row))
        kept = result if _is_due(recipe.probe.every, epoch, recipe) else None
        run.finish_epoch(row, parts.model, optimizer, _describe_model(parts), kept)
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
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = resolve_precision(recipe.precision, device)
    teachers = [
        load_teacher(
            section,
            num_classes=len(data.classes),
            input_size=_input_size(data.train),
            device=device,
            precision=precision,
        )
        for section in recipe.distill
    ]
    return _Parts(recipe, data, data.train, data.test, model, teachers, device, precision)


def _evaluate(parts: _Parts, reporter: Reporter) -> CrossClassResult:
    """Clean accuracy, RA and CAS on the test split; where the recipe probes clean images, C and CAS are of those."""

    def on_test(threat: ThreatModel | None) -> CrossClassResult:
        return measure(
            parts.model,
            parts.test,
            threat,
            classes=parts.data.classes,
            model_name=parts.recipe.model.name,
            data_name=parts.data.name,
            attack_name=parts.recipe.evaluate.name,
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
        "threat": {"norm": threat.norm, "eps": threat.eps},
    }
