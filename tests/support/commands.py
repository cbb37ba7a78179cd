"""Running ``ccf``: in this process, or in processes that import the same package as this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

import ccf_plugin
from ccf_plugin.cli import main

Ccf = Callable[..., tuple[int, str, str]]
"""Run ``ccf`` with these arguments: exit code, standard output, standard error."""

# What is noted, behind its spec, of a model of one's own code whose weights come from nowhere else.
RANDOM_WEIGHTS = "without a checkpoint has the weights that its code makes: random ones, unless it loads some"


def run_here(*arguments: object) -> int:
    """``ccf`` as a shell would call it, in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["ccf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def sets(settings: Iterable[str]) -> list[str]:
    """Settings of a recipe as options."""
    return [word for setting in settings for word in ("--set", setting)]


def environment(*found_in: Path) -> dict[str, str]:
    """This process's, in which Python looks for modules in these folders and where this process found the package."""
    folders = [*found_in, Path(ccf_plugin.__file__).parents[1], os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(one) for one in folders if one), "OMP_NUM_THREADS": "1"}


def start(
    *arguments: object, cwd: Path, launcher: Sequence[str] = (), found_in: Sequence[Path] = ()
) -> subprocess.Popen[str]:
    """``ccf`` in a process of its own, by ``python`` or by ``python`` with a launcher's arguments."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "ccf_plugin", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(*found_in),
    )


def run(
    *arguments: object, cwd: Path, launcher: Sequence[str] = (), found_in: Sequence[Path] = (), seconds: float = 240
) -> tuple[int, str, str]:
    """``start`` and wait: exit code, standard output, standard error."""
    with ended(start(*arguments, cwd=cwd, launcher=launcher, found_in=found_in)) as process:
        out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill the process at the block's end if it still runs, as after a failure."""
    try:
        yield process
    finally:
        process.kill()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait for what a process does; fail where it ends or the time is over without it."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds:g} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            _, err = process.communicate()
            pytest.fail(f"the process ended with {process.returncode} before it happened: {err}")
