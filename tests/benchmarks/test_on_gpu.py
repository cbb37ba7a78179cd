"""The command that measures on a GPU, on a CPU: that its rows work, and that what fails or takes too long is told."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
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


ENDED = """#!{python}
import os, pathlib, signal, sys

if sys.argv[3] == "pack":
    pathlib.Path(sys.argv[5], "packed").write_text(" ".join(os.listdir(sys.argv[4])))
    sys.exit()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = pathlib.Path("runs/mine")
folder.mkdir(parents=True)
(folder / "study.json").write_text("{{}}")
os.kill(os.getppid(), signal.SIGTERM)
signal.pause()
"""


def test_a_study_that_is_told_to_end_packs_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a slot is shorter than it was said to be; the study itself saves at that signal."""
    script = tmp_path / "python"
    script.write_text(ENDED.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    arguments = argparse.Namespace(
        study="mine", pieces=None, minutes=9, device="cpu", small=True, momentum="none", out=tmp_path
    )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert on_gpu.do_study(arguments, "digits", tmp_path) == 143
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (tmp_path / "packed").read_text() == "study.json"


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
    arguments = argparse.Namespace(out=tmp_path, minutes=11 / 60, device="cpu", data="", small=True)
    found = on_gpu.run_all(rows, arguments, "digits")["rows"]
    assert found["slow"]["status"] == "ended after its 3 s"
    assert found["slow"]["figures"] == {"first": 1}
    assert found["later"]["status"] == "no time left"
    assert _has_ended(int((tmp_path / "child").read_text()))
    assert json.loads((tmp_path / "on_gpu.json").read_text())["rows"] == found


def test_a_row_that_leaves_no_figure_has_not_just_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nothing.py"
    script.write_text("print('nothing')")
    monkeypatch.setattr(on_gpu, "__file__", str(script))
    rows = [on_gpu.Row("nothing", "has no figure", 60, lambda _: iter(()))]
    found = on_gpu.run_all(rows, argparse.Namespace(out=tmp_path, minutes=1, device="cpu", data="", small=True), "")
    assert found["rows"]["nothing"]["status"] == "finished without a figure"
    assert found["rows"]["nothing"]["log"] == "nothing\n"


@pytest.mark.slow
def test_it_works_from_any_folder_and_tells_what_it_was_at_when_it_was_ended(tmp_path: Path) -> None:
    command = [
        sys.executable,
        on_gpu.__file__,
        "--out",
        "rows",
        "--device",
        "cpu",
        "--only",
        "instance_cas,digits,probe",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("instance_cas: finished")
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    rows = json.loads((tmp_path / "rows" / "on_gpu.json").read_text())["rows"]
    assert rows.pop("instance_cas")["figures"]["10_classes"]["products"] > 0
    assert {row["status"] for row in rows.values()} <= {"interrupted"}
    assert "probe" not in rows


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
