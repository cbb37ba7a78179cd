"""SIGKILL at random moments, within the writing of files too: nothing is lost, and the end is the same bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from support.runs import Quiet, assert_same_run, tiny

from ccf_plugin import files
from ccf_plugin.runs.state import read_state
from ccf_plugin.training.loop import train
from ccf_plugin.training.run import Run

# Processes are forked from one that has imported everything and trained nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ccf_plugin.training.loop", "support.runs"])

# State is saved after every step, so that a kill is often in the middle of it. One epoch's weights are averaged.
RECIPE = ["checkpoint_minutes=1e-9", "optim.epochs=3", "average={kind='ema', decay=0.9}", "threads=1"]


def _train(folder: Path, seconds: float, write: int, part: str) -> None:
    """Train or resume; die after so many seconds, or at the so-manieth file: before, within or after its rename."""
    torch.set_num_threads(1)
    written = 0

    def counted(name: str) -> None:
        nonlocal written
        original = getattr(os, name)

        def call(*arguments: object) -> object:
            nonlocal written
            written += 1
            if written == write:
                if name == "fsync":
                    os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)  # half a file is on disk
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        setattr(files.os, name, call)

    if write:
        counted(part)
    else:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, seconds)
    train(tiny(*RECIPE), folder, Quiet(), resume=folder.is_dir())


def _survive(kills: int, seed: int, tmp_path: Path) -> dict[str, int]:
    """Kill and resume until so many kills are done, run after run; each that ends is compared with the whole one."""
    generator = random.Random(seed)
    started = time.monotonic()
    whole = train(tiny(*RECIPE), tmp_path / "whole", Quiet())
    duration = time.monotonic() - started
    done = {"kills": 0, "at a write": 0, "within an epoch": 0, "finished runs": 0}

    def attempt() -> int | None:
        """Train until the end or the next kill; returns the exit code."""
        by_write = generator.random() < 0.5
        write, part = generator.randint(1, 40), generator.choice(["fsync", "replace"])
        is_last = done["kills"] >= kills
        seconds = 3600.0 if is_last else generator.uniform(0, duration)
        process = CONTEXT.Process(target=_train, args=(folder, seconds, write * by_write * (not is_last), part))
        process.start()
        process.join()
        was_killed = process.exitcode == -signal.SIGKILL
        done["kills"] += was_killed
        done["at a write"] += was_killed and by_write
        if was_killed and (folder / "state" / "last.json").is_file():
            done["within an epoch"] += read_state(folder).step > 0
        return process.exitcode

    while done["kills"] < kills or not done["finished runs"]:
        folder = tmp_path / f"run{done['finished runs']}"
        while (code := attempt()) != 0:
            assert code == -signal.SIGKILL
        assert_same_run(Run.read(folder, tiny(*RECIPE)), whole)
        assert not list(folder.rglob(".*.tmp"))
        done["finished runs"] += 1
    return done


def test_a_run_survives_five_kills(tmp_path: Path) -> None:
    done = _survive(5, 25, tmp_path)
    assert done["kills"] >= 5
    assert done["at a write"] >= 1


@pytest.mark.slow
def test_a_run_survives_twenty_kills(tmp_path: Path) -> None:
    done = _survive(20, 0, tmp_path)
    assert done["kills"] >= 20
    assert done["at a write"] >= 5
    assert done["within an epoch"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_survives_a_hundred_kills(seed: int, tmp_path: Path) -> None:
    done = _survive(100, seed, tmp_path)
    print(done)
    assert done["kills"] >= 100
