"""The fast path is the plain loop: same images, same losses step by step, same figures on the test images."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from support.precise import InFloat64
from support.reads import Reads
from support.runs import tiny
from support.tolerances import rounding

from ccf_plugin.bench import plain_loop as reference
from ccf_plugin.errors import UnavailableError
from ccf_plugin.training.batches import TrainingBatches
from ccf_plugin.training.loop import Loop
from ccf_plugin.training.monitor import Monitor
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.setup import Parts, prepare

CPU = torch.device("cpu")
STEPS = 20


def _parts(*more: str) -> Parts:
    """About the narrow network on 30 digits a class: 19 batches of 16 an epoch, the last smaller."""
    return prepare(tiny("data.train_per_class=30", "optim.lr=0.01", *more), CPU)


def _precise(parts: Parts, logits: torch.dtype = torch.float64) -> Parts:
    return replace(parts, model=InFloat64(parts.model, logits))


def _losses(parts: Parts) -> list[float]:
    """Of each of the first 20 steps, by the loop itself."""
    loop = Loop(parts, Processes(parts.recipe.device))
    losses, before = [], 0.0
    for epoch in (1, 2):
        for step in loop.steps(epoch):
            total = loop.state.totals().loss * len(parts.train)
            size = min(16, len(parts.train) - (step - 1) * 16)
            losses.append((total - before) / size)
            before = total
        loop.state.close_epoch()
        before = 0.0
    return losses[:STEPS]


def _reference_losses(parts: Parts) -> list[float]:
    recipe = parts.recipe
    optimizer = torch.optim.SGD(
        parts.model.parameters(), lr=recipe.optim.lr, momentum=0.9, weight_decay=recipe.optim.weight_decay
    )
    batches = TrainingBatches(
        parts.train.images, parts.train.labels, batch_size=16, seed=0, augmentation="crop", padding=1
    )
    losses = []
    for epoch in (1, 2):
        torch.manual_seed((recipe.seed + 1) * 2_000_003 + epoch)
        loader = reference.augmented_loader(batches, epoch, workers=0)
        losses += reference.training_steps(
            parts.model, optimizer, loader, recipe.training_threat(), attack_mode=recipe.attack.batchnorm
        )
    return losses[:STEPS]


@pytest.mark.parametrize(
    ("mode", "memory_format"),
    # In train mode gradients cancel until a few are mere rounding, in float64 too: there the same memory order, which
    # leaves nothing to rounding.
    [("eval", torch.contiguous_format), ("train", torch.channels_last)],
)
def test_the_loss_of_each_of_20_steps_is_the_plain_loops(mode: str, memory_format: torch.memory_format) -> None:
    both = (_parts(f"attack.batchnorm={mode}", "optim.decay_epochs=[2]") for _ in range(2))
    fast, plain = (_precise(parts, torch.float32) for parts in both)  # as the loop takes them
    plain.model.to(memory_format=memory_format)  # type: ignore[call-overload]
    # What is left to rounding is the float32 logits and the loss's mean over 16 images.
    np.testing.assert_allclose(_losses(fast), _reference_losses(plain), rtol=rounding(16))
    for name, value in fast.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_bf16_losses_stay_near_those_of_float32() -> None:
    """For as long as the steps before, which moved the weights by other signs, weigh less than rounding."""
    exact, short = (_losses(_parts(f"precision={precision}"))[:4] for precision in ("float32", "bf16"))
    assert exact != short
    np.testing.assert_allclose(short, exact, rtol=rounding(9, torch.bfloat16))


@pytest.mark.parametrize("cutout", [0, 3])
@pytest.mark.parametrize("augmentation", ["none", "crop", "crop-flip"])
def test_an_epochs_images_are_those_of_a_loader_that_augments_them_one_by_one(augmentation: str, cutout: int) -> None:
    images = torch.randint(0, 256, (23, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batches = TrainingBatches(
        images,
        torch.arange(23),
        batch_size=5,
        seed=3,
        augmentation=augmentation,  # type: ignore[arg-type]
        padding=3,
        cutout=cutout,
    )
    loader = reference.augmented_loader(batches, 2, workers=0)
    for batch, (expected, labels) in zip(batches.epoch(2), loader, strict=True):
        torch.testing.assert_close(batch.images, expected, rtol=0, atol=0)
        assert batch.labels.tolist() == labels.tolist()


def test_one_pass_gives_what_separate_passes_give() -> None:
    parts = _precise(_parts())
    list(islice(Loop(parts, Processes(parts.recipe.device)).steps(1), 8))
    (loader,) = [list(parts.test.batches(20, CPU))]
    torch.manual_seed(0)
    apart = reference.evaluate(parts.model, loader, parts.recipe.evaluation_threat())
    together = Monitor(parts).measure(parts.model, lambda batches, _: batches).test
    assert together.clean_accuracy == apart.clean_accuracy
    # Another random start each: two of twenty images may fall on the other side.
    assert together.robust_accuracy == pytest.approx(apart.robust_accuracy, abs=0.1)
    assert together.cas == pytest.approx(apart.cross_class.cas, rel=0.1)


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("inputs", ["clean", "adversarial"])
def test_figures_do_not_depend_on_how_the_images_are_split(inputs: str, batch_size: int) -> None:
    parts = _precise(_parts("probe.instances=true", f"probe.inputs={inputs}"))
    list(islice(Loop(parts, Processes(parts.recipe.device)).steps(1), 8))
    whole = Monitor(parts).measure(parts.model, lambda batches, _: batches).test
    evaluate = parts.recipe.evaluate.model_copy(update={"batch_size": batch_size})
    other = replace(parts, recipe=parts.recipe.model_copy(update={"evaluate": evaluate}))
    split = Monitor(other).measure(parts.model, lambda batches, _: batches).test
    assert split.clean_accuracy == whole.clean_accuracy
    assert split.robust_accuracy == whole.robust_accuracy
    np.testing.assert_allclose(split.matrix, whole.matrix, atol=1e-6)
    np.testing.assert_allclose(split.instance_matrix, whole.instance_matrix, atol=1e-6)


def test_a_step_that_runs_out_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(_parts(), Processes("auto"))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.method, "attack", full)
    with pytest.raises(UnavailableError, match=r"optim.batch_size: .* found 16 images.* try 8"):
        next(loop.steps(1))


@pytest.mark.parametrize("loss", ["madry", "trades", "mart"])
def test_no_step_waits_for_the_device(loss: str) -> None:
    attack = ["attack.name=TPGD"] if loss == "trades" else []
    # Not [average]: torch counts the averaged steps in a tensor that it keeps on the host, and reads that.
    more = ["ensembling.ramp=[0, 1]", "data.augmentation=crop-flip", f"objective.loss={loss}"]
    loop = Loop(_parts(*attack, *more), Processes("auto"))
    steps = loop.steps(1)
    next(steps)  # the attack checks its first images
    with Reads() as reads:
        next(steps)
    assert reads.count == 0
    with reads:
        loop.state.totals()
    assert reads.count > 0
