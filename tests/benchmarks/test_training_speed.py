"""Speed of training and evaluation as ratios within one run, PreActResNet-18 with batches of 128 (minutes each).

The images are made up, since speed does not depend on what they show. Documented figures come from ``ccf bench``
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
from support.runs import Quiet

from ccf_plugin.bench.speed import bench
from ccf_plugin.engine.precision import matrix_rate, resolve_precision
from ccf_plugin.training.recipe_files import load_recipe

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# Passes of the network that the plain loop takes for one of ours: for the weights' gradients in each step of its attack
# and a clean pass more; in evaluation a second attack too.
STEP = (10 * 3 + 3 + 1) / (10 * 2 + 3)
EVALUATION = (2 * (20 * 3 + 1) + 1) / (20 * 2 + 2)
# What must be left of those and of the units' rate: at the highest of rates memory decides.
KEPT_OF_STEP, KEPT_OF_EVALUATION, LEAST_UTILISATION = 0.5, 0.35, 0.25
HAS_BF16 = resolve_precision("auto", CPU) == "bf16"


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
def test_a_bf16_step_is_as_many_float32_steps_as_the_units_rates_promise(made: str) -> None:
    """The rates are measured here and now: AVX-512's units for bf16 gain far less than AMX's."""
    figures = _bench(made, "precision=bf16")
    torch.set_num_threads(figures["threads"])
    rates = figures["matrix_product_flops_per_second"] / max(matrix_rate(CPU, "float32", size=n) for n in (1024, 2048))
    torch.set_num_threads(1)
    reference = figures["reference"]
    print(json.dumps({"bf16 rate in float32 rates": rates, "utilisation": figures["utilisation"]}))
    assert reference["step_ratio"] >= KEPT_OF_STEP * STEP * rates
    assert reference["evaluation_ratio"] >= KEPT_OF_EVALUATION * EVALUATION * rates
    assert figures["utilisation"] >= LEAST_UTILISATION
    shares, step = figures["shares"], figures["probe"]["share_of_step"]
    assert shares["data"] <= 0.02
    assert step <= 0.01
    assert shares["data"] + shares["optimizer"] + shares["writing"] + shares["other"] <= 0.05
