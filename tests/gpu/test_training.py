"""Training on CUDA: interrupted and continued to the same weights, and every method takes its steps."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.runs import Quiet, assert_same_run, interrupted, tiny

from ccf_plugin.engine.memory import batch_size_errors
from ccf_plugin.errors import UnavailableError
from ccf_plugin.training.interruption import Interrupted
from ccf_plugin.training.loop import Loop, train
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.setup import prepare

from .models import CUDA

ON_CUDA = ["device=cuda", "compile=false", "probe.instances=true"]


@pytest.mark.usefixtures("same_every_time")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one(precision: str, tmp_path: Path) -> None:
    recipe = tiny(*ON_CUDA, f"precision={precision}", "average.kind=ema")
    whole = train(recipe, tmp_path / "whole", Quiet())
    # after an epoch, and in the middle of one, where a signal lets it save
    interrupted(recipe, tmp_path / "epoch")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "step", Quiet(signal_at=(2, 2), number=signal.SIGTERM))
    for name in ("epoch", "step"):
        assert_same_run(train(recipe, tmp_path / name, Quiet(), resume=True), whole)


METHODS = {
    "madry": [],
    "standard": ["objective.loss=standard"],
    "fast": ["attack.name=FFGSM", "attack.steps=1"],
    "trades": ["objective.loss=trades", "attack.name=TPGD"],
    "mart": ["objective.loss=mart", "attack.batchnorm=eval"],
    "L2": ["attack.norm=L2", "attack.eps=0.5"],
    "awp": ["awp.gamma=0.01"],
    "ensembling": ["ensembling.ramp=[0,1]"],
    "wake": ["average.kind=ema", "distill=[{teacher='average', weight=0.5, ramp=[0, 1]}]"],
    "swa": ["average.kind=swa", "average.every=epoch", "probe.inputs=clean"],
    "APGD": ["attack.name=APGD", "attack.batchnorm=eval"],
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_its_steps(name: str, tmp_path: Path) -> None:
    recipe = tiny(*ON_CUDA, "optim.epochs=2", "precision=bf16", *METHODS[name])
    run = train(recipe, tmp_path / "run", Quiet())
    assert run.epoch == 2
    assert all(np.isfinite([row.train_loss, row.cas]).all() for row in run.rows)
    weights = load_file(run.folder / "last.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


STEPS = {name: more for name, more in METHODS.items() if name != "APGD"} | {
    "swa at every step": ["average.kind=swa", "data.augmentation=crop-flip", "data.crop_border=zero", "data.cutout=2"],
    "crossclass": ["crossclass.weight=0.5", "crossclass.term=excess", "optim.clip_norm=1.0"],
    "mixup": ["data.mix=mixup", "objective.label_smoothing=0.1", "optim.name=adamw", "optim.nesterov=false"],
    "sam": ["awp.gamma=0.01", "awp.kind=sam", "data.mix=cutmix"],
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_do_not_wait(name: str, tmp_path: Path) -> None:
    """The host is ahead of the device in every step but the first ones, which compile, record and search."""
    recipe = tiny(*ON_CUDA, "data.train_per_class=10", "optim.batch_size=16", *STEPS[name])
    steps = Loop(prepare(recipe, CUDA), Processes(recipe.device, folder=tmp_path)).steps(1)
    for _ in range(3):
        next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_on_cuda_learns_what_the_cpu_learns(tmp_path: Path) -> None:
    """After three epochs, from the same weights and batches, with other random starts."""
    rows = {}
    for device in ("cuda", "cpu"):
        recipe = tiny(f"device={device}", "compile=false", "precision=float32", "data.train_per_class=30")
        rows[device] = train(recipe, tmp_path / device, Quiet()).rows
    for one, other in zip(rows["cuda"], rows["cpu"], strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=0.1)


def test_out_of_memory_names_the_batch_size() -> None:
    with (
        pytest.raises(UnavailableError, match=r"optim.batch_size: .* the GPU's memory, found 128 images.*; try 64"),
        batch_size_errors("optim.batch_size", 128),
    ):
        torch.empty(2**50, dtype=torch.uint8, device=CUDA)
    assert float(torch.ones(3, device=CUDA).sum()) == 3
