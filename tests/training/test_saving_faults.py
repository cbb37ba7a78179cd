"""A full disk at every system call of an epoch's save: what is on the disk resumes to the uninterrupted run."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs import Quiet, assert_same_run, interrupted, tiny

from ccf_plugin.training.loop import train
from ccf_plugin.training.run import Run

RECIPE = ("optim.epochs=2", "average={kind='ema', decay=0.9}")
CALLS = ("open", "write", "fsync", "replace")
QUICK = ("write", "replace")


class _Disk(Quiet):
    """From the first step of epoch 2 on, counts the calls that write files; one of them finds the disk full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_at: tuple[str, int] | None = None) -> None:
        super().__init__()
        self.count = dict.fromkeys(CALLS, 0)
        self._monkeypatch, self._full_at = monkeypatch, full_at

    def step(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) != (2, 1):
            return
        plain, counted = Path.open, self._counted("open", Path.open)

        def open_file(path: Path, *arguments: Any, **options: Any) -> Any:
            if path.suffix != ".tmp":
                return plain(path, *arguments, **options)
            return _File(counted(path, *arguments, **options), self)

        flush, counted_flush = os.fsync, self._counted("fsync", os.fsync)

        def fsync(number: int) -> None:  # a folder's flush that fails is no fault: its files are whole
            (flush if stat.S_ISDIR(os.fstat(number).st_mode) else counted_flush)(number)

        self._monkeypatch.setattr(Path, "open", open_file)
        self._monkeypatch.setattr(os, "fsync", fsync)
        self._monkeypatch.setattr(os, "replace", self._counted("replace", os.replace))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count[name] += 1
            if (name, self.count[name]) == self._full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return counted


class _File:
    """A file whose writes are counted; one that fails has written half."""

    def __init__(self, file: Any, disk: _Disk) -> None:
        self._file, self.flush, self.fileno = file, file.flush, file.fileno
        self._write = disk._counted("write", file.write)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: bytes) -> int:
        try:
            return int(self._write(content))
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny(*RECIPE), tmp_path_factory.mktemp("whole") / "run", Quiet())


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    interrupted(tiny(*RECIPE), folder)
    return folder


@pytest.mark.parametrize(
    "call", ["write", *(pytest.param(name, marks=pytest.mark.slow) for name in ("replace", "open", "fsync"))]
)
def test_a_disk_that_is_full_at_any_call_of_a_save_costs_that_epoch_at_most(
    call: str, whole: Run, one_epoch: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shutil.copytree(one_epoch, tmp_path / "counted")
        disk = _Disk(monkeypatch)
        train(tiny(*RECIPE), tmp_path / "counted", disk, resume=True)
    assert disk.count[call] >= 9  # two results of two files, best, last and their averages, epochs, log, state
    for number in range(1, disk.count[call] + 1):
        folder = tmp_path / f"full{number}"
        shutil.copytree(one_epoch, folder)
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(OSError, match="No space left") as caught:
            train(tiny(*RECIPE), folder, _Disk(monkeypatch, (call, number)), resume=True)
        assert Path(caught.value.filename).is_relative_to(folder)
        assert not list(folder.rglob("*.tmp"))
        assert_same_run(train(tiny(*RECIPE), folder, Quiet(), resume=True), whole)
