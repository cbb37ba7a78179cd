"""How fast a recipe trains here: whole epochs of the one loop, beside the plain one, and the machine's own limit."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ccf_plugin.bench.plain_timing import ReferenceTiming
from ccf_plugin.engine.compilation import compiling_pays
from ccf_plugin.engine.devices import resolve_device
from ccf_plugin.engine.modes import copyable
from ccf_plugin.engine.precision import matrix_rate
from ccf_plugin.engine.switches import preserve_global_state
from ccf_plugin.engine.timing import Stopwatch, now
from ccf_plugin.measuring.evaluate import Batches
from ccf_plugin.probe import CrossClassProbe
from ccf_plugin.probe.trace import GRADIENT
from ccf_plugin.runs.environment import describe_environment
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.training.loop import Loop, Reporter, train
from ccf_plugin.training.monitor import Monitor
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.run import Run
from ccf_plugin.training.setup import Parts, prepare
from ccf_plugin.zoo.datasets import Split, load_data

_QUICK_STEPS, _QUICK_TEST_IMAGES = 4, 50
_COUNTED_IMAGES = 16
_MATRIX_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16384)}


@preserve_global_state()
def bench(
    recipe: Recipe,
    reporter: Reporter,
    *,
    epochs: int,
    reference_steps: int,
    quick: bool = False,
    download: bool = False,
) -> dict[str, Any]:
    """Time ``epochs`` epochs of a recipe after one to warm up; every one is evaluated, probed and written to disk.

    After each, ``reference_steps`` steps of ``plain_loop`` and its evaluation of one batch are timed in a process of
    their own, so that other work on the machine slows both alike; its epoch is extrapolated from them. It knows PGD in
    Linf alone.

    Args:
        reporter: receives the progress of the loop.
        quick: a few steps and test images instead of the recipe's.

    Returns:
        Plain data for JSON; seconds, images per second, FLOP/s, shares of an epoch as fractions.

    Raises:
        InputError, UnavailableError: as ``train`` does.
    """
    device = resolve_device(recipe.device)
    run_epochs = recipe.optim.epochs
    if quick:
        recipe = _shortened(recipe, download)
    parts = prepare(recipe, device, download=download)
    if recipe.compile == "auto":  # as the whole run decides
        recipe = recipe.model_copy(update={"compile": compiling_pays(device, parts.work())})
    recipe = _every_epoch(recipe, epochs + (2 if device.type == "cuda" else 1))
    parts = replace(parts, recipe=recipe)
    rates = [_matrix_rate(parts)]
    flops = _flops(parts)
    update = _probe_seconds(parts)
    spent = Stopwatch()
    evaluate = partial(Monitor(parts).measure_test, parts.model, Reporter().evaluating)
    with ReferenceTiming(recipe, reference_steps, evaluate) as plain, TemporaryDirectory() as folder:
        timer = _Timer(reporter, spent, epochs, plain.measure, waits=device.type == "cuda")
        train(recipe, Path(folder) / "run", timer)
        spent.stop()
    rates.append(_matrix_rate(parts))
    timed = slice(1, epochs + 1)
    epoch, speed = median(timer.seconds[timed]), median(row.images_per_second for row in timer.rows[timed])
    steps = -(-len(parts.train) // recipe.optim.batch_size)
    step = len(parts.train) / speed / steps
    total, evaluation = sum(timer.parts_seconds), spent.seconds["evaluation"] / len(timer.parts_seconds)
    return {
        "format": 1,
        **describe_environment(device, parts.precision),
        "machine": platform.machine(),
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "train_images": len(parts.train),
        "test_images": len(parts.test),
        "quick": quick,
        "warm_up_epoch_seconds": timer.seconds[0],
        "epoch_seconds": timer.seconds[timed],
        "seconds_per_epoch": epoch,
        "training_seconds_per_epoch": len(parts.train) / speed,
        "seconds_per_step": step,
        "images_per_second": speed,
        "evaluation_seconds": evaluation,
        "test_evaluation_seconds": plain.own_evaluation_seconds,
        "shares": {name: seconds / total for name, seconds in sorted(spent.seconds.items())}
        | {"other": 1 - sum(spent.seconds.values()) / total},
        "probe": {"seconds_per_update": update, "share_of_step": update / step},
        "flops_per_image": flops,
        "matrix_product_flops_per_second": max(rates),
        "utilisation": flops["training"] * speed / max(rates),
        "run": None if quick else {"epochs": run_epochs, "seconds": run_epochs * epoch, "extrapolated": True},
        "reference": plain.figures(step, epoch, steps, len(parts.test)),
    }


class _Timer(Reporter):
    """A reporter that times epochs, and does something else between them."""

    def __init__(
        self, inner: Reporter, spent: Stopwatch, epochs: int, between: Callable[[], None], *, waits: bool
    ) -> None:
        self._inner, self._spent, self._epochs, self._between, self._waits = inner, spent, epochs, between, waits
        self.seconds: list[float] = []
        self.rows: list[EpochRow] = []

    @property
    def parts_seconds(self) -> list[float]:
        """Of the epochs during which the stopwatch ran."""
        return self.seconds[-1:] if self._waits else self.seconds[1:]

    def started(self, run: Run) -> None:
        self._inner.started(run)
        self._since = now()

    def step(self, epoch: int, done: int, total: int) -> None:
        self._inner.step(epoch, done, total)

    def evaluating(self, batches: Batches, total: int) -> Batches:
        return self._inner.evaluating(batches, total)

    def epoch_finished(self, row: EpochRow) -> None:
        self.seconds.append(now() - self._since)
        self.rows.append(row)
        self._inner.epoch_finished(row)
        # On a GPU the stopwatch's waiting would slow the timed epochs: there it has one of its own, after them.
        if not self._waits or len(self.seconds) > self._epochs:
            self._spent.start()
        if 1 < len(self.seconds) <= self._epochs + 1:
            self._between()
        self._since = now()


def _every_epoch(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with ``epochs`` epochs, all of them evaluated and probed."""
    return recipe.model_copy(
        update={
            "optim": recipe.optim.model_copy(update={"epochs": epochs}),
            "evaluate": recipe.evaluate.model_copy(update={"every": 1}),
            "probe": recipe.probe.model_copy(update={"every": 1}),
            "stop": None,
        }
    )


def _shortened(recipe: Recipe, download: bool) -> Recipe:
    data = load_data(
        recipe.data.name,
        splits=("test",),
        root=recipe.data.root,
        download=download,
        classes=recipe.data.classes,
        test_limit=1,
    )
    classes = len(data.classes)
    per_class = max(2, _QUICK_STEPS * recipe.optim.batch_size // classes)
    given, batch = recipe.data.train_per_class, recipe.optim.batch_size
    per_class = per_class if given is None else min(per_class, given)
    if per_class * classes % batch == 1:
        per_class += 1
    limits = {"train_per_class": per_class, "test_limit": _QUICK_TEST_IMAGES, "validation": None}
    evaluate = recipe.evaluate.model_copy(update={"select": "test"})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=limits), "evaluate": evaluate})


def _matrix_rate(parts: Parts) -> float:
    sizes = _MATRIX_SIZES.get(parts.device.type, _MATRIX_SIZES["cpu"])
    return max(matrix_rate(parts.device, parts.precision, size=size) for size in sizes)


def _flops(parts: Parts) -> dict[str, float]:
    """Of one image: in an epoch's training (the recipe's first step), and in one evaluation."""
    train, test = (_few_images(split) for split in (parts.train, parts.test))
    with copyable(parts.model):
        parts = replace(parts, train=train, test=test, model=deepcopy(parts.model), validation=None)
    steps = Loop(parts, Processes(parts.recipe.device)).steps(1)
    with _FlopCounter() as training:
        next(steps)
    with _FlopCounter() as evaluation, warnings.catch_warnings(action="ignore", category=UserWarning):
        Monitor(parts).measure_test(parts.model, Reporter().evaluating)  # some classes may have no image among so few
    return {"training": training.total / len(train), "evaluation": evaluation.total / len(test)}


def _few_images(split: Split) -> Split:
    """Some images from the whole split, so that several classes are there."""
    return split.subset(
        torch.linspace(0, len(split) - 1, min(_COUNTED_IMAGES, len(split)), dtype=torch.float32, device="cpu").long()
    )


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """torch's own counts of the operations inside; its FlopCounterMode cannot follow an attack's autograd.grad."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def _probe_seconds(parts: Parts) -> float:
    """Of one update after a training pass."""
    batch_size = parts.recipe.optim.batch_size
    images, labels = next(iter(parts.train.batches(batch_size, parts.device)))
    seconds = []
    head, output = parts.recipe.probe.head, parts.recipe.probe.output
    with copyable(parts.model):
        model = deepcopy(parts.model)
    with CrossClassProbe(model, head=head, output=output) as probe, torch.set_grad_enabled(head == GRADIENT):
        for _ in range(5):
            model(images)
            start = now()
            probe.update(labels)
            seconds.append(now() - start)
    return median(seconds[1:])
