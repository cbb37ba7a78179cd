"""Files that are written while training goes on: in order, nothing after a fault, nothing lost at the end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from support.runs import Quiet, assert_same_run, tiny

from ccf_plugin.errors import InputError
from ccf_plugin.runs.log import EpochRow, read_log
from ccf_plugin.training import run as runs
from ccf_plugin.training.loop import train
from ccf_plugin.training.writing import Writer


def test_jobs_are_done_in_order_while_the_caller_goes_on() -> None:
    may_go_on, done = threading.Event(), []

    def slow() -> None:
        assert may_go_on.wait(10)
        done.append("slow")

    with Writer() as writer:
        writer.add(slow)
        writer.add(lambda: done.append("quick"))
        assert done == []  # the caller is here before them
        may_go_on.set()
        writer.wait()
        assert done == ["slow", "quick"]
        writer.add(lambda: done.append("last"))
    assert done == ["slow", "quick", "last"]


def test_a_fault_is_raised_and_nothing_is_done_after_it() -> None:
    done: list[int] = []

    def full() -> None:
        raise OSError("No space left")

    with pytest.raises(OSError, match="No space left"), Writer() as writer:
        writer.add(full)
        writer.add(lambda: done.append(1))
    assert done == []
    with pytest.raises(OSError, match="No space left"), Writer() as writer:
        writer.add(full)
        raise KeyboardInterrupt  # what ends the block does not hide it
    with pytest.raises(KeyboardInterrupt), Writer() as writer:
        writer.add(lambda: done.append(2))
        raise KeyboardInterrupt
    assert done == [2], "what was to be written is, however the block ends"


class _Slow(Quiet):
    """Lets nothing of an epoch be written before the next one's first step, and remembers what stood then."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.may_write = threading.Event()
        self.seen: list[int] = []
        self._folder = folder

    def step(self, epoch: int, done: int, total: int) -> None:
        if done == 1:
            self.seen.append(len(read_log(self._folder)))
        if done == 1 and epoch > 1:
            self.may_write.set()

    def epoch_finished(self, row: EpochRow) -> None:
        super().epoch_finished(row)
        if row.epoch == 3:
            self.may_write.set()


def test_training_goes_on_while_an_epoch_is_written_and_writes_what_the_epoch_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the weights at the epoch's end, though the next step has changed them by then."""
    whole = train(tiny(), tmp_path / "whole", Quiet())
    reporter, plain = _Slow(tmp_path / "slow"), runs.write_checkpoint

    def late(*arguments: Any) -> None:
        assert reporter.may_write.wait(60)
        reporter.may_write.clear()
        plain(*arguments)

    monkeypatch.setattr(runs, "write_checkpoint", late)
    run = train(tiny(), tmp_path / "slow", reporter)
    assert reporter.seen == [0, 0, 1], "each epoch began before the one before it was on the disk"
    assert_same_run(run, whole)
    assert len(list((run.folder / "state").glob("*.safetensors"))) == 1


def test_what_cannot_be_written_ends_the_run_before_it_trains_on_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise InputError("cannot write")

    monkeypatch.setattr(runs, "write_checkpoint", refuses)
    reporter = Quiet()
    with pytest.raises(InputError, match="cannot write"):
        train(tiny(), tmp_path / "run", reporter)
    assert len(reporter.rows) == 1
    assert not (tmp_path / "run" / "state" / "last.json").exists()
