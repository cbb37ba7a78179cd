"""Runs that are stopped, killed and continued."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import ended, run, sets, start
from support.runs import SHORT, TINY, Quiet, assert_same_run, contents, interrupted, tiny
from torch import Tensor

from ccf_plugin.errors import CCFError, InputError
from ccf_plugin.runs.folder import lock
from ccf_plugin.training.interruption import Interrupted
from ccf_plugin.training.loop import Loop, train
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.run import Run
from ccf_plugin.training.setup import prepare
from ccf_plugin.zoo.datasets import load_data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny(), tmp_path_factory.mktemp("runs") / "tiny", Quiet())


class _Killed(Quiet):
    """Dies in the middle of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self._moment = (epoch, step)

    def step(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == self._moment:
            raise KeyboardInterrupt


def test_a_resumed_run_equals_an_uninterrupted_one(finished: Run, tmp_path: Path) -> None:
    for epoch in (1, 2):
        folder = tmp_path / f"stopped{epoch}"
        interrupted(tiny(), folder, epoch)
        reporter = Quiet()
        resumed = train(tiny(), folder, reporter, resume=True)
        assert [row.epoch for row in reporter.rows] == list(range(epoch + 1, 4))
        (continued,) = json.loads((folder / "environment.json").read_text())["resumed"]
        assert continued["after_epoch"] == epoch
        assert_same_run(resumed, finished)


def test_a_fused_optimizer_goes_on_with_its_parameters_strides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where the optimiser is fused: it refuses other strides there, and on a CPU mixes elements up."""
    plain, optimizers = torch.optim.SGD, []

    def fused(*args: Any, **options: Any) -> torch.optim.Optimizer:
        optimizers.append(plain(*args, **{**options, "fused": True}))
        return optimizers[-1]

    monkeypatch.setattr(torch.optim, "SGD", fused)

    def new_loop() -> Loop:
        parts = prepare(tiny(), torch.device("cpu"))
        return Loop(parts, Processes(parts.recipe.device, folder=tmp_path))

    def strides_and_kinds() -> list[list[Any]]:
        """Of each parameter and of its momentum."""
        optimizer = optimizers[-1]
        parameters = optimizer.param_groups[0]["params"]
        pairs = [(parameter, optimizer.state[parameter]["momentum_buffer"]) for parameter in parameters]
        return [[(one.stride(), one.dtype, one.device) for one in column] for column in zip(*pairs, strict=True)]

    def weights(of: Loop) -> list[Tensor]:
        return [value.clone() for value in of.state.model.state_dict().values()]

    run = Run.create(tmp_path / "run", tiny(), {})
    first = new_loop()
    steps = first.steps(1)
    next(steps), next(steps)
    run.save_state(first.state.tensors(), 2)
    after_two = weights(first)
    next(steps)
    second = new_loop()
    Run.read(run.folder, tiny()).restore(second.state.restore)
    of_parameters, of_momentum = strides_and_kinds()
    assert of_momentum == of_parameters
    kernels = [parameter for parameter in second.state.model.parameters() if parameter.ndim == 4]
    assert not all(kernel.is_contiguous() for kernel in kernels), "strides that a file would not keep by chance"
    assert all(torch.equal(one, other) for one, other in zip(weights(second), after_two, strict=True))
    next(second.steps(1))
    assert all(torch.equal(one, other) for one, other in zip(weights(second), weights(first), strict=True))


def test_more_epochs_than_before_continue_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    train(tiny("optim.epochs=1"), folder, Quiet())
    with pytest.raises(
        InputError, match=r"optim\.epochs: 1 before, 2 now\); resume with allow_change=\['optim\.epochs'\]"
    ):
        train(tiny("optim.epochs=2"), folder, Quiet(), resume=True)
    resumed = train(tiny("optim.epochs=2"), folder, Quiet(), resume=True, allow_change=["optim.epochs"])
    assert [row.epoch for row in resumed.rows] == [1, 2]


def test_resuming_with_another_recipe_names_the_difference(finished: Run) -> None:
    with pytest.raises(InputError, match=r"optim\.lr: 0\.1 before, 0\.2 now"):
        train(tiny("optim.lr=0.2"), finished.folder, Quiet(), resume=True)


def test_a_run_that_died_before_its_first_epoch_ended_starts_over(tmp_path: Path) -> None:
    for resume in (False, True):
        folder = tmp_path / f"run{resume}"
        with pytest.raises(CCFError):
            train(tiny("optim.lr=1e30"), folder, Quiet())
        (folder / ".recipe.toml.1.tmp").write_text("half")  # as a kill within its writing leaves it
        assert train(tiny("optim.epochs=1"), folder, Quiet(), resume=resume).epoch == 1
        assert not list(folder.rglob("*.tmp"))


def test_resuming_where_no_run_is_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run to resume in .*absent, found none"):
        train(tiny(), tmp_path / "absent", Quiet(), resume=True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("moment", [(1, 1), (2, 3), (2, 4), (3, "evaluation")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_within_the_epoch_and_the_resumed_run_equals_an_uninterrupted_one(
    finished: Run, tmp_path: Path, moment: tuple[int, int | str], number: int
) -> None:
    folder, handlers = tmp_path / "signalled", [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=r"saved after step \d.*resume=True") as caught:
        train(tiny(), folder, Quiet(signal_at=moment, number=number))
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    step = 4 if moment[1] == "evaluation" else moment[1]
    assert json.loads((folder / "state" / "last.json").read_text())["step"] == step
    assert_same_run(train(tiny(), folder, Quiet(), resume=True), finished)


def test_the_state_is_saved_every_so_many_minutes(finished: Run, tmp_path: Path) -> None:
    hurried = tiny("checkpoint_minutes=1e-9")
    with pytest.raises(KeyboardInterrupt):
        train(hurried, tmp_path / "run", _Killed(2, 3))
    assert json.loads((tmp_path / "run" / "state" / "last.json").read_text())["step"] == 2
    assert_same_run(train(hurried, tmp_path / "run", Quiet(), resume=True), finished)


@pytest.mark.slow
def test_one_folder_has_one_writer(tmp_path: Path) -> None:
    with lock(tmp_path / "run"):
        # In a process of its own: the lock is the process's.
        code, _, err = run("train", "digits", "--out", "run", "--set", "threads=1", cwd=tmp_path)
    assert code == 2
    assert "locked" in err
    assert err.count("\n") == 1
    train(tiny("optim.epochs=1"), tmp_path / "run", Quiet())


def test_a_lock_whose_holder_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    code = "import filelock, os, sys; held = filelock.FileLock(sys.argv[1]); held.acquire(); os.kill(os.getpid(), 9)"
    died = subprocess.run([sys.executable, "-c", code, str(folder / ".lock")], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (folder / ".lock").is_file()
    assert train(tiny("optim.epochs=1"), folder, Quiet()).epoch == 1


def test_resume_follows_the_state_and_not_an_edited_log(finished: Run, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    interrupted(tiny(), folder, 2)
    (folder / "log.csv").write_text("hello")
    assert_same_run(train(tiny(), folder, Quiet(), resume=True), finished)


@pytest.mark.parametrize("content", ["", "{}", '{"epoch": 1, "rows": [{"epoch": 2}]}', '{"epoch": 1, "rows": []}'])
def test_a_damaged_state_is_said(finished: Run, tmp_path: Path, content: str) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run" / "state" / "last.json").write_text(content)
    with pytest.raises(InputError, match=r"last\.json"):
        train(tiny(), tmp_path / "run", Quiet(), resume=True)


def test_a_tie_after_a_resume_keeps_the_first_best(tmp_path: Path) -> None:
    # A network that evaluation leaves as it began: no step moves it, and it has no BatchNorm.
    network = "model={name='python:training.processes_model:layer_norm_network'}"
    still = load_recipe("digits", [network, *SHORT, "optim.lr=1e-30", "data.test_limit=95"])
    interrupted(still, tmp_path / "run")
    resumed = train(still, tmp_path / "run", Quiet(), resume=True)
    (accuracy,) = {row.test_robust_accuracy for row in resumed.rows}
    assert accuracy is not None
    assert accuracy != round(accuracy, 6)  # a fraction that the log's digits round
    assert resumed.best is resumed.rows[0]
    whole = train(still, tmp_path / "whole", Quiet())
    assert resumed.best is not None
    assert whole.best is not None
    assert resumed.best.epoch == whole.best.epoch


def _digits(file: Path, *, changed: bool = False) -> Recipe:
    """The digits as a file; ``changed`` in one pixel of one training image."""
    digits = load_data("digits")
    assert digits.train is not None
    assert digits.test is not None
    arrays = {}
    for name, split in (("train", digits.train), ("test", digits.test)):
        arrays |= {f"x_{name}": split.images[:, 0].numpy().copy(), f"y_{name}": split.labels.numpy()}  # type: ignore[index]
    if changed:
        arrays["x_train"][0, 3, 3] ^= 1
    np.savez(file, **arrays)
    return tiny(f"data.name=npz:{file}")


def test_other_images_than_before_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(_digits(tmp_path / "digits.npz"), folder)
    before = contents(folder)
    with pytest.raises(
        InputError, match=r"expected the images that the run .* was trained with, found others \(train\)"
    ):
        train(_digits(tmp_path / "digits.npz", changed=True), folder, Quiet(), resume=True)
    assert contents(folder) == before
    assert train(_digits(tmp_path / "digits.npz"), folder, Quiet(), resume=True).epoch == 3


def test_other_names_of_the_classes_than_before_are_refused(tmp_path: Path) -> None:
    names, folder = tmp_path / "names.txt", tmp_path / "run"
    names.write_text("\n".join("abcdefghij"))
    named = tiny(f"data.classes={names}")
    interrupted(named, folder)
    names.write_text("\n".join("bacdefghij"))
    with pytest.raises(InputError, match=r"found others \(classes\)"):
        train(named, folder, Quiet(), resume=True)


def test_a_run_that_does_not_say_its_images_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(_digits(tmp_path / "digits.npz"), folder)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment.pop("images").keys() == {"train", "test", "classes"}
    (folder / "environment.json").write_text(json.dumps(environment))
    changed = _digits(tmp_path / "digits.npz", changed=True)
    interrupted(changed, folder, 2, resume=True)
    # and from then on it says them
    with pytest.raises(InputError, match="found others"):
        train(_digits(tmp_path / "digits.npz"), folder, Quiet(), resume=True)


def test_images_may_change_where_the_recipe_s_data_may(tmp_path: Path) -> None:
    interrupted(tiny(), tmp_path / "run")
    fewer = tiny("data.test_limit=10")
    resumed = train(fewer, tmp_path / "run", Quiet(), resume=True, allow_change=["data.test_limit"])
    assert resumed.epoch == 3


def test_fewer_epochs_than_are_done_are_refused(finished: Run) -> None:
    before = contents(finished.folder)
    with pytest.raises(InputError, match="expected 3 epochs or more, which are done"):
        train(tiny("optim.epochs=2"), finished.folder, Quiet(), resume=True)
    assert contents(finished.folder) == before


def test_a_schedule_that_spans_the_run_cannot_be_stretched(tmp_path: Path) -> None:
    train(tiny("optim.schedule=cosine", "optim.epochs=1"), tmp_path / "run", Quiet())
    with pytest.raises(InputError, match=r"optim\.epochs: 1 before, 2 now"):
        train(tiny("optim.schedule=cosine", "optim.epochs=2"), tmp_path / "run", Quiet(), resume=True)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_the_command_ends_with_the_shells_code_for_the_signal(tmp_path: Path, number: int, code: int) -> None:
    settings = [*TINY, "optim.epochs=100000"]
    with ended(start("train", "digits", "--out", "run", *sets(settings), cwd=tmp_path)) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch 1 ") for line in process.stdout)  # it trains
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == code
    assert errors.count("\n") == 1
    assert "--resume" in errors
    assert json.loads((tmp_path / "run" / "state" / "last.json").read_text())["step"] > 0  # within an epoch
