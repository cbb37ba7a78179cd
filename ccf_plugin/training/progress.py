"""What a person sees while a run trains: a bar with the current figures and the remaining time, then a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from torch import Tensor

from ccf_plugin.measure.evaluate import Batches
from ccf_plugin.runs.alarms import alarms_in_words
from ccf_plugin.runs.layout import AVERAGE
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.training.loop import Reporter
from ccf_plugin.training.run import Run
from ccf_plugin.zoo.datasets import resolved

_SHORT = ("loss", "test RA", "CAS")  # fits 80 columns beside the bar


class ProgressReporter(Reporter):
    """Shows a run on a terminal; without one, prints one line per epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._epochs: TaskID | None = None
        self._steps: TaskID | None = None
        self._alarm = ""

    def __enter__(self) -> ProgressReporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, run: Run) -> None:
        """Announce the run."""
        total = run.recipe.optim.epochs
        self._console.print(
            f"{run.recipe.model.name} on {resolved(run.recipe.data.name)} → {run.folder}; "
            f"the best epoch is chosen by {run.selected_by.replace('_', ' ')}",
            highlight=False,
            soft_wrap=True,
        )
        if unreached := run.recipe.unreached():
            told = f"not reached in {_epochs(total)}: {', '.join(unreached)}"
            self._console.print(told, style="yellow", highlight=False, soft_wrap=True)
        self._epochs = self._progress.add_task("epochs", total=total, completed=run.epoch)
        self._steps = self._progress.add_task("starting", total=None)

    def step(self, epoch: int, done: int, total: int) -> None:
        """A training step is done."""
        if self._steps is not None:
            self._progress.update(self._steps, description=f"epoch {epoch}: train", completed=done, total=total)

    def evaluating(self, batches: Batches, total: int) -> Batches:
        """The batches, shown as they are measured."""
        if self._steps is None:
            return batches
        return self._counted(batches, total, self._steps)

    def _counted(self, batches: Batches, total: int, task: TaskID) -> Iterator[tuple[Tensor, Tensor]]:
        self._progress.update(task, description="test", completed=0, total=total)
        for done, batch in enumerate(batches, 1):
            yield batch
            self._progress.update(task, completed=done)

    def epoch_finished(self, row: EpochRow) -> None:
        """An epoch's figures are known."""
        known = {name: value for name, value in _figures(row).items() if value}
        if self._epochs is not None:
            short = [f"{name} {known[name]}" for name in _SHORT if name in known]
            self._progress.update(self._epochs, completed=row.epoch, description=" · ".join(short))
        if self._console.is_terminal and row.alarm and row.alarm != self._alarm:  # it stays, above the bars
            self._console.print(f"epoch {row.epoch}: {row.alarm}", style="yellow", highlight=False)
        self._alarm = row.alarm
        if not self._console.is_terminal:
            line = " · ".join(f"{name} {value}" for name, value in known.items())
            self._console.print(line, highlight=False, soft_wrap=True)


def closing_table(run: Run) -> Table:
    """First, best and last epoch side by side, averaged weights' too; beneath, every alarm and when it was raised."""
    took = f"{_epochs(run.epoch)} in {sum(row.seconds for row in run.rows):.0f} s"
    ended = f", ended by {run.rows[-1].alarm}" if run.epoch < run.recipe.optim.epochs else ""
    table = Table(
        title=f"{run.folder}: {took}{ended}; best by {run.selected_by.replace('_', ' ')}",
        caption="\n".join(alarms_in_words(run.rows)) or None,
        caption_justify="left",
        caption_style="yellow",
    )
    rows = {"first": run.rows[0], "best": run.best or run.rows[-1], "last": run.rows[-1]}
    shown = {name: _figures(row) for name, row in rows.items()}
    if (averaged := run.best_of(AVERAGE)) is not None:
        shown |= {"best averaged": _averaged_figures(averaged), "last averaged": _averaged_figures(run.rows[-1])}
    columns = [name for name in shown["first"] if any(figures.get(name) for figures in shown.values())]
    columns = [name for name in columns if name not in ("alarm", "seconds")]
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for name, figures in shown.items():
        table.add_row(name, *(figures.get(column, "") for column in columns))
    return table


def sweep_table(runs: Mapping[str, Run | None]) -> Table:
    """Best and last RA and CAS of several runs, by name: of the averaged weights where a run averages.

    None is a run that diverged.
    """
    table = Table(Column("run", overflow="fold"), "best epoch", "best RA", "best CAS", "last RA", "last CAS")
    for name, run in runs.items():
        if run is None:
            table.add_row(name, "diverged")
            continue
        averaged = run.best_of(AVERAGE)
        best, last = averaged or run.best or run.rows[-1], run.rows[-1]
        known = [_figures(row) if averaged is None else _averaged_figures(row) for row in (best, last)]
        figures = [one[key] for one in known for key in ("test RA", "CAS")]
        table.add_row(name if averaged is None else f"{name}, averaged weights", str(best.epoch), *figures)
    return table


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _averaged_figures(row: EpochRow) -> dict[str, str]:
    averaged = replace(
        row,
        test_clean_accuracy=row.test_clean_accuracy_average,
        test_robust_accuracy=row.test_robust_accuracy_average,
        cas=row.cas_average,
    )
    return {key: value for key, value in _figures(averaged).items() if key in ("epoch", "test clean", "test RA", "CAS")}


def _figures(row: EpochRow) -> dict[str, str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    figures = {
        "epoch": str(row.epoch),
        "loss": f"{row.train_loss:.3f}",
        "train RA": percent(row.train_robust_accuracy),
        "test clean": percent(row.test_clean_accuracy),
        "test RA": percent(row.test_robust_accuracy),
        "val RA": percent(row.validation_robust_accuracy),
        "CAS": "" if row.cas is None else f"{row.cas:.2f}",
    }
    if row.instance_cas is not None:
        figures["I-CAS"] = f"{row.instance_cas:.2f}"
    return figures | {"seconds": f"{row.seconds:.1f}", "alarm": row.alarm}
