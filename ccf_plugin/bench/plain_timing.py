"""The seconds of the plain loop, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch

from ccf_plugin.bench import plain_loop as reference
from ccf_plugin.engine.devices import resolve_device
from ccf_plugin.engine.timing import now
from ccf_plugin.training.method import training_batches
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.setup import prepare


class ReferenceTiming:
    """The plain loop in a process of its own, whose memory is managed as public code's is.

    ``evaluate`` is this package's evaluation of the same test images, which is timed beside its.
    """

    def __init__(self, recipe: Recipe, steps: int, evaluate: Callable[[], object]) -> None:
        self._steps, self._evaluate = steps, evaluate
        self.reason = _why_no_reference(recipe, steps)
        self._pool: ProcessPoolExecutor | None = None
        self.step_seconds: list[float] = []
        self.image_seconds: list[float] = []
        self.own_evaluation_seconds: list[float] = []
        if self.reason is None:
            self._pool = ProcessPoolExecutor(
                1, get_context("spawn"), _start_plain_loop, (recipe, torch.get_num_threads())
            )

    def __enter__(self) -> ReferenceTiming:
        if self._pool is not None:
            self._pool.submit(_time_steps, 1).result()  # to warm up
            self._evaluate()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def measure(self) -> None:
        """Time some steps and an evaluation, and beside it the loop's own."""
        if self._pool is not None:
            self.step_seconds += self._pool.submit(_time_steps, self._steps).result()
            self.image_seconds.append(self._pool.submit(_time_evaluation).result())
            start = now()
            self._evaluate()
            self.own_evaluation_seconds.append(now() - start)

    def figures(self, step: float, epoch: float, steps: int, test_images: int) -> dict[str, Any]:
        """Beside the seconds of the loop's own step and epoch."""
        if not self.step_seconds:
            return {"not_measured": self.reason}
        plain_step, image = median(self.step_seconds), median(self.image_seconds)
        plain_epoch = plain_step * steps + image * test_images
        return {
            "step_seconds": self.step_seconds,
            "evaluation_seconds_per_image": self.image_seconds,
            "seconds_per_step": plain_step,
            "seconds_per_epoch": plain_epoch,
            "extrapolated": True,
            "step_ratio": plain_step / step,
            "epoch_ratio": plain_epoch / epoch,
            "evaluation_ratio": image * test_images / median(self.own_evaluation_seconds),
        }


def _why_no_reference(recipe: Recipe, steps: int) -> str | None:
    if steps < 1:
        return "not asked for"
    threats = recipe.training_threat(), recipe.evaluation_threat()
    names = {name for name in (recipe.attack.name, recipe.evaluate.name) if name is not None}
    if any(threat.norm != "Linf" for threat in threats) or names - {"PGD", "FFGSM"} or recipe.objective.loss != "madry":
        return "the plain loop knows loss madry under PGD or FFGSM in Linf alone"
    return None


class _PlainLoop:
    """Of the other process."""

    def __init__(self, recipe: Recipe) -> None:
        device = resolve_device(recipe.device)
        torch.backends.cudnn.allow_tf32 = True  # as it is by itself, and as public code leaves it
        parts = prepare(recipe, torch.device("cpu"))
        model = parts.model.to(device=device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=recipe.optim.weight_decay)
        batches = training_batches(recipe, parts.train.images, parts.train.labels)
        training = recipe.training_threat()
        if recipe.attack.name == "FFGSM":
            training = replace(training, steps=1)
        loaders = (reference.augmented_loader(batches, epoch) for epoch in count(1))
        whole = (batch for loader in loaders for batch in loader if len(batch[1]) == batches.batch_size)
        self.steps = reference.training_steps(model, optimizer, whole, training, attack_mode=recipe.attack.batchnorm)
        self.test = next(iter(parts.test.batches(recipe.evaluate.batch_size or 250, device)))
        self.evaluation = recipe.evaluation_threat()
        self.model = model


_plain_loop: _PlainLoop


def _start_plain_loop(recipe: Recipe, threads: int) -> None:
    global _plain_loop
    torch.set_num_threads(threads)
    _plain_loop = _PlainLoop(recipe)


def _time_steps(number: int) -> list[float]:
    """Seconds of each of the next steps."""
    seconds = []
    for _ in range(number):
        start = now()
        next(_plain_loop.steps)
        seconds.append(now() - start)
    return seconds


def _time_evaluation() -> float:
    """Seconds of evaluating one image, by one batch."""
    start = now()
    reference.evaluate(_plain_loop.model, [_plain_loop.test], _plain_loop.evaluation)
    return (now() - start) / len(_plain_loop.test[1])
