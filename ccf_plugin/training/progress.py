"""What a person sees while a run trains: a bar with the current figures and the remaining time, then a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text
from torch import Tensor

from ccf_plugin.engine.heartbeat import Heartbeat, in_words
from ccf_plugin.errors import counted
from ccf_plugin.measuring.evaluate import Batches
from ccf_plugin.runs.alarms import alarms_in_words
from ccf_plugin.runs.layout import AVERAGE
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.runs.metrics import Where, all_metrics
from ccf_plugin.runs.selection import selection_free_accuracy, selection_free_in_words
from ccf_plugin.tables import Cell, Table
from ccf_plugin.training.loop import Reporter
from ccf_plugin.training.recipe_notes import idle, unreached
from ccf_plugin.training.run import Run
from ccf_plugin.training.study import Study
from ccf_plugin.zoo.datasets import resolved


class ProgressReporter(Reporter):
    """Shows a run on a terminal; without one, prints a line per epoch, and one every half minute within an epoch."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._heartbeat = Heartbeat(self._say, clock)
        self._total_epochs, self._epoch, self._task = 0, 0, ""
        self._seconds: list[float] = []  # of the epochs that were watched
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
        if not self._console.is_terminal:
            self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._console.is_terminal:
            self._heartbeat.__exit__()
        self._progress.stop()

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def started(self, run: Run) -> None:
        """Announce the run."""
        total = run.recipe.optim.epochs
        self._say(
            f"{run.recipe.model.name} on {resolved(run.recipe.data.name)} → {run.folder}; "
            f"the best epoch is chosen by {run.selected_by.replace('_', ' ')}"
        )
        if late := unreached(run.recipe):
            self._note(f"not reached in {counted(total, 'epoch')}: {', '.join(late)}")
        if without := idle(run.recipe):
            self._note(f"without effect beside other settings: {', '.join(without)}")
        self._epochs = self._progress.add_task("epochs", total=total, completed=run.epoch)
        self._steps = self._progress.add_task("starting", total=None)
        self._total_epochs, self._epoch, self._seconds = total, run.epoch, []
        self._begin_epoch()

    def _note(self, text: str) -> None:
        self._console.print(text, style="yellow", highlight=False, soft_wrap=True)

    def step(self, epoch: int, done: int, total: int) -> None:
        """A training step is done."""
        self._beat(self._title("training"), done, total)
        if self._steps is not None:
            self._progress.update(self._steps, description=f"epoch {epoch}: train", completed=done, total=total)

    def evaluating(self, batches: Batches, total: int) -> Batches:
        """The batches, shown as they are measured."""
        if self._steps is None:
            return batches
        return self._counted(batches, total, self._steps)

    def _counted(self, batches: Batches, total: int, task: TaskID) -> Iterator[tuple[Tensor, Tensor]]:
        self._progress.update(task, description="test", completed=0, total=total)
        title = self._title("test")
        self._heartbeat.begin(title, total)
        self._task = title
        for done, batch in enumerate(batches, 1):
            yield batch
            self._progress.update(task, completed=done)
            self._beat(title, done, total)

    def _title(self, doing: str) -> str:
        return f"epoch {min(self._epoch + 1, self._total_epochs)} of {self._total_epochs}: {doing}"

    def _begin_epoch(self) -> None:
        """Training goes on from here. The time until its first step counts too: much may be compiled in it."""
        self._task = self._title("training")
        self._heartbeat.begin(self._task, unit="step")

    def _beat(self, task: str, done: int, total: int) -> None:
        """Print lines from time to time where there are no bars."""
        if task != self._task:
            self._begin_epoch()
        if not self._console.is_terminal:
            self._heartbeat.step(done, self._left(), total=total)

    def _left(self) -> str:
        """How long the epochs after the present one will take; "" before the first is done."""
        after = self._total_epochs - self._epoch - 1
        if not self._seconds or after < 1:
            return ""
        return f"then {counted(after, 'epoch')} of about {in_words(sum(self._seconds) / len(self._seconds))}"

    def epoch_finished(self, row: EpochRow) -> None:
        """An epoch's figures are known."""
        if self._epochs is not None:
            self._progress.update(self._epochs, completed=row.epoch, description=_line(row, "bar"))
        if self._console.is_terminal and row.alarm and row.alarm != self._alarm:  # it stays, above the bars
            self._console.print(f"epoch {row.epoch}: {row.alarm}", style="yellow", highlight=False)
        self._alarm, self._epoch = row.alarm, row.epoch
        self._seconds.append(row.seconds)
        self._begin_epoch()
        self._heartbeat.line_printed()
        if not self._console.is_terminal:
            alarm = f" · alarm {row.alarm}" if row.alarm else ""
            self._say(f"epoch {row.epoch} · {_line(row, 'line')}{alarm}")


def closing_table(run: Run) -> RichTable:
    """First, best and last epoch side by side, averaged weights' too.

    Beneath: every alarm and when it was raised, and the best epoch's RA on images that did not choose it.
    """
    duration = f"{counted(run.epoch, 'epoch')} in {sum(row.seconds for row in run.rows):.0f} s"
    ended = f", ended by {run.rows[-1].alarm}" if run.epoch < run.recipe.optim.epochs else ""
    table = RichTable(
        title=f"{run.folder}: {duration}{ended}; best by {run.selected_by.replace('_', ' ')}",
        caption=_caption(run),
        caption_justify="left",
    )
    last = run.rows[-1]
    shown = {"first": (run.rows[0], ""), "best": (run.best or last, ""), "last": (last, "")}
    if (averaged := run.best_of(AVERAGE)) is not None:
        shown |= {"best averaged": (averaged, AVERAGE), "last averaged": (last, AVERAGE)}
    figures = [_figures(row, "table", suffix) for row, suffix in shown.values()]
    columns = [name for name in figures[0] if any(row_figures[name] for row_figures in figures)]
    table.add_column("")
    for name in ("epoch", *columns):
        table.add_column(name, justify="right")
    for (name, (row, _)), row_figures in zip(shown.items(), figures, strict=True):
        table.add_row(name, str(row.epoch), *(row_figures[column] for column in columns))
    return table


def _caption(run: Run) -> Text | None:
    lines = [Text(sentence, style="yellow") for sentence in alarms_in_words(run.rows)]
    for suffix, weights in {"": "", AVERAGE: "averaged weights: "}.items():
        accuracy = selection_free_accuracy(run.folder, run.rows, run.selected_by, suffix)
        if accuracy is not None and (best := run.best_of(suffix)) is not None:
            lines.append(Text(weights + selection_free_in_words(accuracy, best, suffix)))
    return Text("\n").join(lines) if lines else None


def plan_table(study: Study) -> Table:
    """The runs of a study, their epochs, and how long they may take by finished epochs, or by the study's word."""
    done = {
        member.folder: member.reopen(study.allow_change).rows if member.has_begun else [] for member in study.members
    }
    measured: dict[str, list[float]] = {}
    for member in study.members:
        measured.setdefault(member.name, []).extend(row.seconds for row in done[member.folder])
    planned: list[list[Cell]] = []
    total, is_whole = 0.0, True
    for member in study.members:
        rows, epochs = done[member.folder], member.recipe.optim.epochs
        known = measured[member.name]
        each = sum(known) / len(known) if known else member.seconds_per_epoch
        left = None if each is None else each * (epochs - len(rows))
        total, is_whole = total + (left or 0.0), is_whole and left is not None
        teachers = ", ".join(teacher.name for teacher in member.teachers)
        about = "not known" if left is None else in_words(left)
        planned.append([member.label, teachers, epochs, len(rows), about])
    planned.append(["all", None, None, None, in_words(total) if is_whole else "not known"])
    return Table(("run", "after", "epochs", "done", "about"), planned)


def _line(row: EpochRow, where: Where) -> str:
    return " · ".join(f"{name} {value}" for name, value in _figures(row, where).items() if value)


def _figures(row: EpochRow, where: Where, suffix: str = "") -> dict[str, str]:
    """What a part of the terminal shows of an epoch's weights, by label; "" for what was not measured of them."""
    return {
        metric.short or metric.label: metric.on_terminal(getattr(row, metric.name + suffix, None))
        for metric in all_metrics()
        if where in metric.terminal
    }
