"""What a person sees of a run: figures and alarms in the progress line and in the closing table, 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from support.runs import tiny

from ccf_plugin.probe import CrossClassResult
from ccf_plugin.runs.layout import result_of
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.runs.selection import selection_free_accuracy
from ccf_plugin.training.progress import ProgressReporter, closing_table
from ccf_plugin.training.run import Run

FIRST = EpochRow(
    epoch=1,
    lr=0.1,
    train_loss=1.5,
    train_robust_accuracy=0.4,
    test_clean_accuracy=0.8,
    test_robust_accuracy=0.5,
    cas=10.0,
    seconds=1.0,
    images_per_second=1.0,
)
FALLING = replace(FIRST, test_robust_accuracy=0.2, cas=3.0, alarm="catastrophic overfitting; CAS falling")
ROWS = [FIRST, replace(FALLING, epoch=2), replace(FALLING, epoch=3), replace(FIRST, epoch=4, test_robust_accuracy=0.45)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "runs" / "digits", tiny("optim.epochs=4"))
    run.folder = Path("runs/digits")
    run.rows = list(ROWS)
    return run


def _shown(*things: object, terminal: bool = False) -> str:
    console = Console(file=StringIO(), width=80, force_terminal=terminal)
    console.print(*things)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_closing_table_names_every_alarm_whole(run: Run) -> None:
    shown = _shown(closing_table(run))
    assert "runs/digits: 4 epochs in 4 s; best by test robust accuracy" in " ".join(shown.split())
    assert "catastrophic overfitting at epochs 2 to 3" in shown
    assert "CAS falling at epochs 2 to 3" in shown
    best = next(line for line in shown.splitlines() if line.startswith("│ best"))
    assert [cell.strip() for cell in best.split("│")[2:8]] == ["1", "1.500", "40.0%", "80.0%", "50.0%", "10.00"]


def test_the_closing_table_gives_the_best_epochs_ra_on_images_that_did_not_choose_it(run: Run) -> None:
    assert "chosen on one half" not in _shown(closing_table(run))
    (run.folder / "probe").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for place, row in enumerate(run.rows):
        correct = rng.permutation(np.arange(40) < round(40 * (row.test_robust_accuracy or 0)))
        run.rows[place] = replace(row, figures={**row.figures, "test_robust_accuracy": correct.mean()})
        CrossClassResult(np.eye(2), np.ones((2, 2)), np.full(2, 20), correct=correct).save(
            result_of(run.folder, row.epoch)
        )
    accuracy = selection_free_accuracy(run.folder, run.rows, run.selected_by)
    assert accuracy is not None
    told = " ".join(_shown(closing_table(run)).split())
    assert f"both ways: {100 * accuracy:.1f} % (on the images that chose it: 50.0 %)" in told


def test_an_epochs_line_names_its_alarm(run: Run) -> None:
    console = Console(file=StringIO(), width=80)
    with ProgressReporter(console) as reporter:
        reporter.started(run)
        reporter.epoch_finished(ROWS[1])
    assert isinstance(console.file, StringIO)
    line = console.file.getvalue().splitlines()[-1]
    assert line.startswith("epoch 2 · loss 1.500 · train RA 40.0%")
    assert line.endswith("alarm catastrophic overfitting; CAS falling")


class _Timed(StringIO):
    """What is printed, and when by a clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self.moments: list[float] = []

    def write(self, text: str) -> int:
        self.moments.append(self._clock())
        return super().write(text)


def test_where_nobody_watches_an_epoch_has_a_line_every_half_minute(run: Run) -> None:
    now = [0.0]
    printed = _Timed(lambda: now[0])
    reporter = ProgressReporter(Console(file=printed, width=200), clock=lambda: now[0])

    def passes(seconds: int) -> None:
        for _ in range(seconds):
            now[0] += 1
            reporter._heartbeat.look()  # as its thread does

    run.rows = []
    reporter.started(run)
    passes(100)  # compiling
    for step in range(1, 101):
        passes(4)
        reporter.step(1, step, 100)
    for _ in reporter.evaluating([(torch.zeros(1), torch.zeros(1))] * 10, 10):
        passes(8)
    assert max(after - before for before, after in pairwise([0.0, *printed.moments, now[0]])) <= 30
    said = printed.getvalue().splitlines()
    assert "epoch 1 of 4: training, 30 s so far" in said
    assert "epoch 1 of 4: training, step 12 of 100 done, 2 min so far, about 18 min to go" in said  # 150 s for 12
    assert "epoch 1 of 4: test, batch 4 of 10 done, 40 s so far, about 60 s to go" in said
    reporter.epoch_finished(replace(FIRST, seconds=580.0))
    passes(29)
    reporter.step(2, 10, 100)
    passes(1)
    assert printed.getvalue().splitlines()[-1] == (
        "epoch 2 of 4: training, step 10 of 100 done, 30 s so far, about 4 min to go, then 2 epochs of about 10 min"
    )  # 30 s for 10, so 270 s for 90


def test_a_terminal_names_it_once_above_the_bars(run: Run) -> None:
    console = Console(file=StringIO(), width=80, force_terminal=True, color_system=None)
    with ProgressReporter(console) as reporter:
        reporter.started(run)
        for row in ROWS:
            reporter.epoch_finished(row)
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert shown.count("epoch 2: catastrophic overfitting; CAS falling\n") == 1
    assert shown.count("falling") == 1
    assert "loss 1.500 · test RA 45.0% · CAS 10.00 ━" in shown
