"""Real jobs of several processes on the CPU (gloo), by torchrun and accelerate: the same run as one process makes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file
from support.commands import ended, run, sets, start
from torch.testing import assert_close

from ccf_plugin.errors import InputError
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.runs.log import EpochRow, read_log
from ccf_plugin.training.processes import Processes

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
TESTS = [Path(__file__).parent, Path(__file__).parents[1]]  # where the processes find their network
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def _start(
    out: Path, launcher: list[str], *more: str, settings: list[str] = SETTINGS, found_in: Sequence[Path] = ()
) -> subprocess.Popen[str]:
    arguments = ["train", "digits", "--out", out, *sets(settings), *more]
    return start(*arguments, cwd=out.parent, launcher=launcher, found_in=[*found_in, *TESTS])


def _run(out: Path, launcher: list[str], *more: str, settings: list[str] = SETTINGS) -> list[EpochRow]:
    out.parent.mkdir(exist_ok=True)
    arguments = ["train", "digits", "--out", out, *sets(settings), *more]
    code, output, errors = run(*arguments, cwd=out.parent, launcher=launcher, found_in=TESTS)
    assert code == 0, errors
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


# What `accelerate launch` exports of a user's configuration.
CONFIGURED = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DYNAMO_BACKEND": "eager",
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerates_environment_changes_nothing_and_is_told(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = [] if processes == 1 else [*TORCHRUN, "2"]
    settings = [*SETTINGS, "data.train_per_class=3", "optim.epochs=1"]
    _run(tmp_path / "plain", launcher, settings=settings)
    for name, value in CONFIGURED.items():
        monkeypatch.setenv(name, value)
    _run(tmp_path / "configured", launcher, settings=settings)
    plain, configured = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "configured"))
    assert_close(configured, plain, rtol=0, atol=0)
    one, other = (read_log(tmp_path / name)[0] for name in ("plain", "configured"))
    assert (one.train_loss, one.cas) == (other.train_loss, other.cas)
    told = json.loads((tmp_path / "configured" / "environment.json").read_text())
    assert told["precision"] == "float32"
    assert told["variables"].items() >= CONFIGURED.items()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_models_are_not_split_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=f"the whole model each, found ACCELERATE_USE_{name}=true; launch with"):
        Processes("auto", folder=tmp_path)


def test_an_accelerator_of_the_hosts_own_choices_is_refused(tmp_path: Path) -> None:
    code = (
        "from accelerate import Accelerator\n"
        "host = Accelerator(mixed_precision='bf16', cpu=True)\n"
        "from ccf_plugin.training.processes import Processes\n"
        "Processes('cpu')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError: expected accelerate without choices of its own" in done.stderr


METHODS = {
    "trades": ["objective.loss=trades", "attack.name=PGD"],  # its own attack starts at random
    "mart": ["objective.loss=mart"],
    "weight perturbation": ["awp={gamma=0.01}"],
    "cross-class term": ["crossclass={weight=4.0, term='excess'}", "awp={gamma=0.01}"],
    "ensembling": ["ensembling={weight=5.0, decay=0.5, ramp=[1, 2]}"],
    "average teacher": ["average={kind='ema', decay=0.9}", "distill=[{teacher='average', weight=0.5}]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_on_two_processes(method: str, tmp_path: Path) -> None:
    settings = [*SETTINGS, *METHODS[method]]
    _run(tmp_path / "one", [], settings=settings)
    _run(tmp_path / "two", [*TORCHRUN, "2"], settings=settings)
    _assert_equal_within_rounding(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_three_processes_and_a_last_batch_of_two(tmp_path: Path) -> None:
    settings = [*SETTINGS, "optim.batch_size=17"]  # 70 images: the last batch has 2, one process none
    _run(tmp_path / "one", [], settings=settings)
    _run(tmp_path / "three", [*TORCHRUN, "3"], settings=settings)
    _assert_equal_within_rounding(tmp_path / "three", tmp_path / "one")


@pytest.mark.slow
def test_accelerate_launches_it_and_another_number_of_processes_resumes(alone: Path, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    one_epoch = [*SETTINGS, "optim.epochs=1"]
    _run(tmp_path / "run", launch, settings=one_epoch)
    _run(tmp_path / "run", [], "--resume", "--allow-change", "optim.epochs")
    _assert_equal_within_rounding(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "cause", "resumed_by"),
    [
        pytest.param("raise RuntimeError('cosmic ray')", "cosmic ray", [*TORCHRUN, "3"], id="error"),
        pytest.param("os.kill(os.getpid(), 9)", "SIGKILL", [], id="kill"),
    ],
)
def test_a_process_that_dies_ends_the_job_and_another_number_of_them_resumes(
    alone: Path, tmp_path: Path, death: str, cause: str, resumed_by: list[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import ccf_plugin.training.loop as t\n"
        "    step = t.Loop._step\n"
        "    def dying(self, epoch, batch):\n"
        "        if epoch == 2 and self.state.step == 2:\n"
        "            open('died', 'w').close()\n"
        f"            {death}\n"
        "        step(self, epoch, batch)\n"
        "    t.Loop._step = dying\n"
    )
    out = tmp_path / "run"
    settings = [*SETTINGS, "checkpoint_minutes=1e-9"]  # a state after every step
    with ended(_start(out, [*TORCHRUN, "2"], found_in=[tmp_path], settings=settings)) as process:
        _, errors = process.communicate(timeout=240)
    assert time.time() - (tmp_path / "died").stat().st_mtime < 60
    assert process.returncode != 0
    assert cause in errors
    assert len(read_log(out)) == 1
    _run(out, resumed_by, "--resume", settings=settings)
    _assert_equal_within_rounding(out, alone)


@pytest.mark.slow
def test_probing_on_two_processes_gives_the_result_of_one(alone: Path, tmp_path: Path) -> None:
    model = ["python:processes_model:layer_norm_network", "--checkpoint", str(alone / "best.safetensors")]
    data = ["--data", "digits", "--limit", "41", "--clean", "--instances", "--batch-size", "8"]
    for launcher, name in (([], "one"), ([*TORCHRUN, "2"], "two")):
        options = ["probe", *model, *data, "--out", name]
        code, output, errors = run(*options, cwd=tmp_path, launcher=launcher, found_in=TESTS)
        assert code == 0, errors
        assert output.count("Wrote ") == 1
    one, two = (CrossClassResult.load(tmp_path / name) for name in ("one", "two"))
    assert one.counts.tolist() == two.counts.tolist()
    assert one.clean_accuracy == two.clean_accuracy
    assert two.cas == pytest.approx(one.cas, rel=1e-6)
    assert two.instance_cas == pytest.approx(one.instance_cas, rel=1e-6)
    assert two.data == one.data
