"""Speed of training and evaluation as ratios within one run, PreActResNet-18 with batches of 128 (minutes each).

The images are made up, since speed does not depend on what they show. The figures in the README come from ``ccf bench``
and are in ``results/``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccf_plugin.measure.evaluate import Batches
from ccf_plugin.run_log import EpochRow
from ccf_plugin.training.bench import bench
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.run import Run
from ccf_plugin.zoo.precision import resolve_precision

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
HAS_BF16 = resolve_precision("auto", CPU) == "bf16"


class Quiet:
    """A reporter that shows nothing."""

    def started(self, run: Run) -> None: ...
    def step(self, epoch: int, done: int, total: int) -> None: ...
    def evaluating(self, batches: Batches, total: int) -> Batches:
        return batches

    def epoch_finished(self, row: EpochRow) -> None: ...


@pytest.fixture
def made(tmp_path: Path) -> str:
    """The spec of 512 training and 50 test images."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 512), ("test", 50)):
        arrays[f"x_{split}"] = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 10
    np.savez(tmp_path / "made.npz", **arrays)
    return f"data.name=npz:{tmp_path / 'made.npz'}"


def _bench(*settings: str) -> dict[str, Any]:
    threads = min(2, os.cpu_count() or 1)
    figures = bench(
        load_recipe("preact_linf", [*settings, "device=cpu", f"threads={threads}"]),
        Quiet(),
        epochs=3,
        reference_steps=2,
    )
    torch.set_num_threads(1)
    shown = {key: figures[key] for key in ("precision", "seconds_per_step", "shares", "probe", "utilisation")}
    print(json.dumps({**shown, **figures["reference"]}, indent=1))
    return figures


def test_a_float32_step_takes_at_most_as_long_as_its_arithmetic_promises(made: str) -> None:
    figures = _bench(made, "precision=float32")
    assert figures["reference"]["step_ratio"] >= 1.7
    assert figures["reference"]["evaluation_ratio"] >= 1.7


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no units for bf16")
def test_a_bf16_step_is_several_float32_steps(made: str) -> None:
    figures = _bench(made, "precision=bf16")
    assert figures["reference"]["step_ratio"] >= 4.0
    assert figures["reference"]["evaluation_ratio"] >= 3.5
    shares, step = figures["shares"], figures["probe"]["share_of_step"]
    assert shares["data"] <= 0.02
    assert step <= 0.01
    assert shares["data"] + shares["optimizer"] + shares["writing"] + shares["other"] <= 0.05
