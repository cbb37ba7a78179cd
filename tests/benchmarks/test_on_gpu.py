"""The command that measures on a GPU, on a CPU: that its rows work, and that what fails or takes too long is told."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ccf_plugin.engine.forward import Forward
from ccf_plugin.report.study_page import build_page
from ccf_plugin.runs.pieces import unpack
from ccf_plugin.runs.study_file import read_study
from ccf_plugin.threat import threat_model
from ccf_plugin.training.study import shipped_studies
from ccf_plugin.zoo.attacks import is_replayed

from . import on_gpu


def _run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, on_gpu.__file__, "--out", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_rows_leave_json_and_a_table(tmp_path: Path) -> None:
    done = _run(tmp_path, "--device", "cpu", "--only", "instance_cas,evaluation")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "on_gpu.json").read_text())
    assert [row["status"] for row in found["rows"].values()] == ["finished", "finished"]
    assert found["rows"]["instance_cas"]["figures"]["10_classes"]["products"] > 0
    figures = found["rows"]["evaluation"]["figures"]
    assert figures["replayed_20"]["cas"] == pytest.approx(figures["eager_20"]["cas"])
    assert "| instance_cas | I-CAS of 10,000 × 512 | finished |" in (tmp_path / "on_gpu.md").read_text()


@pytest.mark.slow
def test_every_row_works_on_a_simulated_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(on_gpu.ROOT / "tests" / "simulated_gpu"))
    rows = [row.name for row in on_gpu.ROWS if row.name != "tests"]  # those are run by themselves (.ci/run)
    done = _run(tmp_path, "--small", "--only", ",".join(rows))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "on_gpu.json").read_text())["rows"]
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(rows, "finished")
    figures = found["evaluation"]["figures"]
    assert figures["replayed_20"]["cas"] == pytest.approx(figures["eager_20"]["cas"])


def test_rows_without_graphs_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCF_CUDA_GRAPHS", "1")
    monkeypatch.setattr(Forward, "weights_cast_once", Forward.weights_cast_once)
    assert is_replayed("PGD", threat_model())
    on_gpu._without_graphs()
    assert not is_replayed("PGD", threat_model())


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_studies())
def test_every_study_runs_in_small_and_goes_on_from_pieces(name: str, tmp_path: Path) -> None:
    first = _run(tmp_path / "first", "--study", name, "--device", "cpu", "--minutes", "0.6")  # 6 s
    assert first.returncode == 0, first.stderr
    done = _run(tmp_path / "out", "--study", name, "--device", "cpu", "--pieces", str(tmp_path / "first"))
    assert done.returncode == 0, done.stderr
    unpack(tmp_path / "out", tmp_path / name)
    study = read_study(tmp_path / name)
    assert study["finished"]
    assert [run["status"] for run in study["runs"]] == ["finished"] * len(study["runs"])
    assert len(build_page(tmp_path / name)[0].splitlines()) > 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert done.returncode == 1
    assert done.stderr == "expected a CUDA device, which torch does not see here\n"
    assert "expected rows among tests, step_captured" in _run(tmp_path, "--only", "none").stderr


@pytest.mark.slow
def test_what_a_row_had_when_its_time_ran_out_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row's process, its own children too, is ended."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "(out / 'slow.json').write_text('{\"first\": 1}')\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "(out / 'child').write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(on_gpu, "__file__", str(script))

    def measure(_: on_gpu.Setting) -> Iterator[dict[str, Any]]:
        yield from ()

    rows = [on_gpu.Row("slow", "waits", 3, measure), on_gpu.Row("later", "comes too late", 3, measure)]
    arguments = argparse.Namespace(out=tmp_path, minutes=11 / 60, device="cpu", data="")
    found = on_gpu.run_all(rows, arguments, "digits")["rows"]
    assert found["slow"]["status"] == "ended after its 3 s"
    assert found["slow"]["figures"] == {"first": 1}
    assert found["later"]["status"] == "no time left"
    assert _has_ended(int((tmp_path / "child").read_text()))
    assert json.loads((tmp_path / "on_gpu.json").read_text())["rows"]["slow"]["figures"] == {"first": 1}


def _has_ended(number: int, seconds: float = 60) -> bool:
    """Wait for a process that is not our child."""
    try:
        process = os.pidfd_open(number)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], seconds)[0])
    finally:
        os.close(process)


def test_kernels_are_told_apart() -> None:
    names = {
        "sm90_xmma_fprop_implicit_gemm_bf16": "convolution",
        "batch_norm_backward_elemt_channels_last_kernel": "normalisation",
        "triton_poi_fused_relu_3": "fused by inductor",
        "void at::native::vectorized_elementwise_kernel<4>": "elementwise",
        "Memcpy DtoD (Device -> Device)": "copy or cast",
        "something": "other",
    }
    assert {name: on_gpu._kind(name) for name in names} == names
