"""Whole runs on tiny data: what the folder holds, that it repeats, that it resumes, that it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ccf_plugin.errors import CCFError, InputError, UnavailableError
from ccf_plugin.measure.evaluate import Batches
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.run_log import EpochRow, read_log
from ccf_plugin.training import loop
from ccf_plugin.training.interruption import Interrupted
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.run import Run, lock
from ccf_plugin.zoo.models import load_model

TINY = [
    "model.options.width=2",
    "model.options.blocks=[1,1,1,1]",
    "data.train_per_class=6",
    "data.test_limit=20",
    "attack.steps=2",
    "evaluate.steps=2",
    "optim.batch_size=16",
    "optim.epochs=3",
    "optim.decay_epochs=[1,2]",
    "probe.every=1",
    "probe.pictures=false",
    "checkpoints.every=2",
]


class Quiet:
    """A reporter that remembers epochs and shows nothing.

    It can stop a run after an epoch, as a kill would, or send a signal after a step or when an evaluation begins.
    """

    def __init__(
        self, stop_after: int | None = None, *, signal_at: tuple[int, int | str] | None = None, number: int = 0
    ) -> None:
        self.rows: list[EpochRow] = []
        self._stop_after = stop_after
        self._signal_at = signal_at
        self._number = number

    def started(self, run: Run) -> None: ...

    def step(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == self._signal_at:
            os.kill(os.getpid(), self._number)

    def evaluating(self, batches: Batches, total: int) -> Batches:
        if (len(self.rows) + 1, "evaluation") == self._signal_at:
            os.kill(os.getpid(), self._number)
        return batches

    def epoch_finished(self, row: EpochRow) -> None:
        self.rows.append(row)
        if row.epoch == self._stop_after:
            raise KeyboardInterrupt


class _Killed(Quiet):
    """Dies in the middle of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self._moment = (epoch, step)

    def step(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == self._moment:
            raise KeyboardInterrupt


def tiny(*more: str) -> Recipe:
    return load_recipe("digits", [*TINY, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny(), tmp_path_factory.mktemp("runs") / "tiny", Quiet())


def test_the_folder_holds_what_the_design_says(finished: Run) -> None:
    folder = finished.folder
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        ".lock",
        "recipe.toml",
        "environment.json",
        "log.csv",
        "best.safetensors",
        "last.safetensors",
        "epochs/002.safetensors",
        "state/003.safetensors",
        "state/last.json",
        *(f"probe/{epoch:03}.{suffix}" for epoch in (1, 2, 3) for suffix in ("npz", "json")),
    }
    assert load_recipe(str(folder / "recipe.toml")) == finished.recipe
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == metadata.version("torch")
    assert environment["threads"] == 1


def test_the_log_has_a_row_per_epoch_with_the_designs_columns(finished: Run) -> None:
    header, *lines = (finished.folder / "log.csv").read_text().splitlines()
    assert header == (
        "epoch,lr,train_loss,train_robust_accuracy,test_clean_accuracy,test_robust_accuracy,cas,instance_cas,"
        "seconds,images_per_second,alarm,selected_by"
    )
    assert len(lines) == 3
    rows = read_log(finished.folder)
    assert [row.epoch for row in rows] == [1, 2, 3]
    np.testing.assert_allclose([row.lr for row in rows], [0.1, 0.01, 0.001])  # decay at 1 shows in epoch 2
    for row in rows:
        result = CrossClassResult.load(finished.folder / "probe" / f"{row.epoch:03}")
        assert row.cas == pytest.approx(result.cas, rel=1e-5)
        assert row.test_robust_accuracy == pytest.approx(result.robust_accuracy)
        assert result.counts.tolist() == [2] * 10
        assert result.model_mode == "eval"
        assert result.threat is not None
        assert result.threat["steps"] == 2
        assert result.threat["eps"] == 20 / 255


def test_best_is_the_highest_test_robust_accuracy_and_the_first_of_equals(finished: Run) -> None:
    rows = read_log(finished.folder)
    best = max(row.test_robust_accuracy or 0 for row in rows)
    first = next(row for row in rows if row.test_robust_accuracy == best)
    assert finished.best is not None
    assert finished.best.epoch == first.epoch
    kept = finished.folder / "epochs" / "002.safetensors"
    if first.epoch == 2:
        assert (finished.folder / "best.safetensors").read_bytes() == kept.read_bytes()


def test_a_run_loads_as_a_model_and_its_weights_without_the_package(finished: Run) -> None:
    loaded = load_model(str(finished.folder))
    plain = load_file(finished.folder / "best.safetensors")
    assert plain.keys() == loaded.model.state_dict().keys()
    assert loaded.data == "digits"
    assert loaded.threat == {"norm": "Linf", "eps": 20 / 255, "step_size": 5 / 255, "steps": 2}
    assert loaded.test_limit == 20
    assert loaded.class_names == tuple("0123456789")
    assert loaded.model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_two_runs_of_one_recipe_are_bit_identical(finished: Run, tmp_path: Path) -> None:
    again = train(tiny(), tmp_path / "again", Quiet())
    _assert_same_run(again, finished)


def test_a_resumed_run_equals_an_uninterrupted_one(finished: Run, tmp_path: Path) -> None:
    for epoch in (1, 2):
        folder = tmp_path / f"stopped{epoch}"
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), folder, Quiet(stop_after=epoch))
        reporter = Quiet()
        resumed = train(tiny(), folder, reporter, resume=True)
        assert [row.epoch for row in reporter.rows] == list(range(epoch + 1, 4))
        (continued,) = json.loads((folder / "environment.json").read_text())["resumed"]
        assert continued["after_epoch"] == epoch
        _assert_same_run(resumed, finished)


def test_more_epochs_than_before_continue_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    train(tiny("optim.epochs=1"), folder, Quiet())
    with pytest.raises(InputError, match=r"optim\.epochs: 1 before, 2 now\); resume with --allow-change optim\.epochs"):
        train(tiny("optim.epochs=2"), folder, Quiet(), resume=True)
    resumed = train(tiny("optim.epochs=2"), folder, Quiet(), resume=True, allow_change=["optim.epochs"])
    assert [row.epoch for row in resumed.rows] == [1, 2]


def test_resuming_with_another_recipe_names_the_difference(finished: Run) -> None:
    with pytest.raises(InputError, match=r"optim\.lr: 0\.1 before, 0\.2 now"):
        train(tiny("optim.lr=0.2"), finished.folder, Quiet(), resume=True)


def test_an_existing_run_is_never_overwritten_by_accident(finished: Run) -> None:
    before = _bytes(finished.folder)
    with pytest.raises(InputError, match=r"--resume.*--force.*--out"):
        train(tiny(), finished.folder, Quiet())
    assert _bytes(finished.folder) == before


def test_force_replaces_a_run_and_touches_nothing_else(finished: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "recipe.toml").write_text("")
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"found other files \(thesis.txt\)"):
        train(tiny("optim.epochs=1"), folder, Quiet(), force=True)
    (folder / "thesis.txt").unlink()
    with pytest.raises(InputError, match=r"found other files \(recipe.toml\)"):  # somebody's recipe, not a run
        train(tiny("optim.epochs=1"), folder, Quiet(), force=True)
    assert (folder / "recipe.toml").read_text() == ""
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    train(tiny("optim.epochs=1", "checkpoints.every=0"), copy, Quiet(), force=True)
    assert not list((copy / "epochs").iterdir())
    assert len(read_log(copy)) == 1


def test_a_run_that_died_before_its_first_epoch_ended_starts_over(tmp_path: Path) -> None:
    for resume in (False, True):
        folder = tmp_path / f"run{resume}"
        with pytest.raises(CCFError):
            train(tiny("optim.lr=1e30"), folder, Quiet())
        assert train(tiny("optim.epochs=1"), folder, Quiet(), resume=resume).epoch == 1


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
    with pytest.raises(Interrupted, match=r"saved after step \d.*--resume") as caught:
        train(tiny(), folder, Quiet(signal_at=moment, number=number))
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    step = 4 if moment[1] == "evaluation" else moment[1]
    assert json.loads((folder / "state" / "last.json").read_text())["step"] == step
    _assert_same_run(train(tiny(), folder, Quiet(), resume=True), finished)


def test_the_state_is_saved_every_so_many_minutes(finished: Run, tmp_path: Path) -> None:
    hurried = tiny("checkpoint_minutes=1e-9")
    with pytest.raises(KeyboardInterrupt):
        train(hurried, tmp_path / "run", _Killed(2, 3))
    assert json.loads((tmp_path / "run" / "state" / "last.json").read_text())["step"] == 2
    _assert_same_run(train(hurried, tmp_path / "run", Quiet(), resume=True), finished)


def test_one_folder_has_one_writer(tmp_path: Path) -> None:
    with lock(tmp_path / "run"):
        # In a process of its own: the lock is the process's.
        code = "import sys; from ccf_plugin.cli import main; main()"
        command = [sys.executable, "-c", code, "train", "digits", "--out", str(tmp_path / "run"), "--set", "threads=1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "locked" in done.stderr
    assert done.stderr.count("\n") == 1
    train(tiny("optim.epochs=1"), tmp_path / "run", Quiet())


def test_resume_follows_the_state_and_not_an_edited_log(finished: Run, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), folder, Quiet(stop_after=2))
    (folder / "log.csv").write_text("hello")
    _assert_same_run(train(tiny(), folder, Quiet(), resume=True), finished)


@pytest.mark.parametrize("content", ["", "{}", '{"epoch": 1, "rows": [{"epoch": 2}]}', '{"epoch": 1, "rows": []}'])
def test_a_damaged_state_is_said(finished: Run, tmp_path: Path, content: str) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run" / "state" / "last.json").write_text(content)
    with pytest.raises(InputError, match=r"last\.json"):
        train(tiny(), tmp_path / "run", Quiet(), resume=True)


def test_a_tie_after_a_resume_keeps_the_first_best(tmp_path: Path) -> None:
    still = tiny("optim.lr=1e-12", "data.test_limit=95")  # RA is a fraction that six digits round
    with pytest.raises(KeyboardInterrupt):
        train(still, tmp_path / "run", Quiet(stop_after=1))
    resumed = train(still, tmp_path / "run", Quiet(), resume=True)
    accuracies = {row.test_robust_accuracy for row in resumed.rows}
    if len(accuracies) == 1:
        assert resumed.best is resumed.rows[0]
    whole = train(still, tmp_path / "whole", Quiet())
    assert resumed.best is not None
    assert whole.best is not None
    assert resumed.best.epoch == whole.best.epoch


def test_fewer_epochs_than_are_done_are_refused(finished: Run) -> None:
    before = _bytes(finished.folder)
    with pytest.raises(InputError, match="expected 3 epochs or more, which are done"):
        train(tiny("optim.epochs=2"), finished.folder, Quiet(), resume=True)
    assert _bytes(finished.folder) == before


def test_a_schedule_that_spans_the_run_cannot_be_stretched(tmp_path: Path) -> None:
    train(tiny("optim.schedule=cosine", "optim.epochs=1"), tmp_path / "run", Quiet())
    with pytest.raises(InputError, match=r"optim\.epochs: 1 before, 2 now"):
        train(tiny("optim.schedule=cosine", "optim.epochs=2"), tmp_path / "run", Quiet(), resume=True)


def test_standard_training_keeps_the_epoch_of_the_best_clean_accuracy(tmp_path: Path) -> None:
    run = train(tiny("objective.loss=standard"), tmp_path / "standard", Quiet())
    assert run.best is not None
    assert run.best.test_clean_accuracy == max(row.test_clean_accuracy or 0 for row in run.rows)


def test_standard_training_probes_clean_images_and_still_tells_ra(tmp_path: Path) -> None:
    run = train(tiny("objective.loss=standard", "probe.inputs=clean", "optim.epochs=1"), tmp_path / "standard", Quiet())
    (row,) = read_log(run.folder)
    assert row.train_robust_accuracy is None
    assert row.test_robust_accuracy is not None
    result = CrossClassResult.load(run.folder / "probe" / "001")
    assert result.threat is None
    assert result.clean_accuracy == pytest.approx(row.test_clean_accuracy)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "wild"
    with pytest.raises(CCFError, match=r"finite loss.*epoch 1.*learning rate 1e\+30"):
        train(tiny("optim.lr=1e30"), folder, Quiet())
    assert not (folder / "last.safetensors").exists()


def test_epochs_between_evaluations_leave_their_figures_empty(tmp_path: Path) -> None:
    run = train(tiny("evaluate.every=2", "probe.instances=true"), tmp_path / "sparse", Quiet())
    rows = read_log(run.folder)
    assert [row.cas is not None for row in rows] == [False, True, True]  # the last epoch is always evaluated
    assert rows[2].instance_cas is not None
    assert not (run.folder / "probe" / "001.npz").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=npz:{tmp}/absent.npz"], "absent.npz"),
        (["model.name=preact_resnet18", "model.options={{}}"], "takes 3×32×32 images, found 1×8×8"),
        (["model.options.depth=3"], "no option 'depth'"),
        (["model.mean=[0.5,0.5]", "model.std=[1,1]"], "expected 1 values, one per channel, found 2 values"),
        (["data.crop_padding=8"], "crop_padding"),
        (["device=cuda"], "cuda"),
        (["device=gpu"], "device"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    recipe = load_recipe("digits", [*TINY[2:], *(text.format(tmp=tmp_path) for text in overrides)])
    if "device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(CCFError, match=message):
        train(recipe, tmp_path / "run", Quiet())
    assert not (tmp_path / "run").exists()


COLUMNS = tuple(field.name for field in fields(EpochRow))


def _assert_same_run(one: Run, other: Run) -> None:
    for name in ("best", "last"):
        first, second = (load_file(run.folder / f"{name}.safetensors") for run in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    timed = ("seconds", "images_per_second")
    for row, twin in zip(read_log(one.folder), read_log(other.folder), strict=True):
        assert all(getattr(row, key) == getattr(twin, key) for key in COLUMNS if key not in timed)
    for epoch in (1, 2, 3):
        first, second = (CrossClassResult.load(run.folder / "probe" / f"{epoch:03}") for run in (one, other))
        np.testing.assert_array_equal(first.matrix, second.matrix)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_stop_ends_a_run_on_its_alarm_and_it_stays_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "alarms", lambda rows, row: ["CAS falling"] if row.epoch in (2, 4, 5) else [])
    recipe = tiny("optim.epochs=7", "stop={on=['CAS falling'], patience=2}")
    run = train(recipe, tmp_path / "run", Quiet())
    assert [row.alarm for row in read_log(run.folder)] == ["", "CAS falling", "", "CAS falling", "CAS falling"]
    reporter = Quiet()
    assert train(recipe, tmp_path / "run", reporter, resume=True).is_finished
    assert reporter.rows == []


def test_trackers_get_each_epochs_figures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tiny("optim.epochs=2"), tmp_path / "run", Quiet(), trackers=["tensorboard"])
    events = accumulator.EventAccumulator(str(run.folder / "trackers" / "ccf_plugin"))
    events.Reload()
    assert "cas" in events.Tags()["scalars"]
    assert [(event.step, event.value) for event in events.Scalars("cas")] == [
        (row.epoch, pytest.approx(row.cas)) for row in run.rows
    ]
    train(tiny("optim.epochs=1"), tmp_path / "run", Quiet(), force=True)
    assert not (run.folder / "trackers").exists()


def test_a_tracker_that_is_not_installed_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="tracker 'wonderboard': expected one that is installed"):
        train(tiny(), tmp_path / "run", Quiet(), trackers=["wonderboard"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_with_the_shells_code_for_the_signal(tmp_path: Path, number: int, code: int) -> None:
    command = [sys.executable, "-m", "ccf_plugin", "train", "digits", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "state").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # now it trains
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code
    assert errors.count("\n") == 1
    assert "--resume" in errors
    assert (tmp_path / "run" / "state" / "last.json").is_file()
