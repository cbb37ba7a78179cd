"""Real jobs of several processes on the CPU (gloo), by torchrun and accelerate: the same run as one process makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file
from torch.testing import assert_close

from ccf_plugin.probe import CrossClassResult
from ccf_plugin.training.log import EpochRow, read_log

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"
)

# No random start: the processes' random numbers differ from those of one.
SETTINGS = [
    "model={name='python:processes_model:layer_norm_network'}",
    "attack.options={random_start=false}",
    "evaluate.options={random_start=false}",
    "data.train_per_class=7",  # 70 images in batches of 16: the last has 6
    "data.test_limit=41",
    "attack.steps=2",
    "evaluate.steps=2",
    "evaluate.batch_size=10",
    "optim.batch_size=16",
    "optim.epochs=2",
    "optim.decay_epochs=[1]",
    "optim.lr=0.05",
    "precision=float32",
    "probe.instances=true",
    "probe.pictures=false",
]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def _start(out: Path, launcher: list[str], *more: str, settings: list[str] = SETTINGS) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "ccf_plugin", "train", "digits", "--out", str(out)]
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=out.parent
    )


def _run(out: Path, launcher: list[str], *more: str, settings: list[str] = SETTINGS) -> list[EpochRow]:
    out.parent.mkdir(exist_ok=True)
    process = _start(out, launcher, *more, settings=settings)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert output.count("epoch 1 ") <= 1  # one process speaks
    return read_log(out)


def _assert_equal_within_rounding(found: Path, expected: Path) -> None:
    for name in ("best", "last"):
        assert_close(*(load_file(run / f"{name}.safetensors") for run in (found, expected)), rtol=1e-4, atol=1e-5)
    for row, twin in zip(read_log(found), read_log(expected), strict=True):
        assert row.test_robust_accuracy == twin.test_robust_accuracy
        assert row.train_robust_accuracy == twin.train_robust_accuracy
        assert row.train_loss == pytest.approx(twin.train_loss, rel=1e-4)
        assert row.cas == pytest.approx(twin.cas, rel=1e-3)
    ours, theirs = (CrossClassResult.load(run / "probe" / "002") for run in (found, expected))
    assert ours.counts.tolist() == theirs.counts.tolist()  # every image once
    assert ours.instance_cas == pytest.approx(theirs.instance_cas, rel=1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    _run(out, [])
    return out


def test_two_processes_train_what_one_does(alone: Path, tmp_path: Path) -> None:
    _run(tmp_path / "run", [*TORCHRUN, "2"])
    _assert_equal_within_rounding(tmp_path / "run", alone)
