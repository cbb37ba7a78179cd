"""A run while it trains: its epochs so far, and the files that its folder gets at each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ccf_plugin.drawing import drop_figure, figure_bytes, figure_of
from ccf_plugin.errors import Fault, InputError, counted, one_line
from ccf_plugin.files import write_atomically, write_together
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.alarms import should_stop
from ccf_plugin.runs.environment import add_resumption, read_environment
from ccf_plugin.runs.folder import begin, check_is_free, make_parts, remove_asides
from ccf_plugin.runs.layout import LOG, RECIPE, result_of, weights_of
from ccf_plugin.runs.log import EpochRow, best_row, log_bytes, read_log, selecting_figure, with_unknown_columns
from ccf_plugin.runs.selection import save_records
from ccf_plugin.runs.state import read_state, write_state
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.writing import Writer
from ccf_plugin.zoo.checkpoints import load_state, on_host, write_checkpoint


@dataclass(frozen=True)
class Snapshot:
    """A model at an epoch's end, its result where it was evaluated, and whether the recipe keeps that epoch's."""

    model: nn.Module
    result: CrossClassResult | None
    is_kept: bool


class Run:
    """A run folder. ``rows`` are the epochs so far."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.rows: list[EpochRow] = []
        self._writer: Writer | None = None

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, environment: dict[str, Any], *, force: bool = False) -> Run:
        """A new run folder, in place of the one that ``check_is_free`` allows to replace; raises as that does."""
        check_is_free(folder, force=force)
        begin(folder, environment, recipe.as_toml())
        run = cls(folder, recipe)
        run._write_log()
        return run

    @classmethod
    def read(cls, folder: Path, recipe: Recipe) -> Run:
        """The run of a recipe as its state has it; nothing is written. InputError where that is damaged."""
        run = cls(folder, recipe)
        run.rows = read_state(folder).rows
        return run

    @classmethod
    def reopen(cls, folder: Path, recipe: Recipe, *, allow_change: Collection[str] = ()) -> Run:
        """The run to continue; nothing is written.

        Args:
            allow_change: keys whose values may differ from the run's recipe, such as "optim.epochs".

        Raises:
            InputError: there is no run in the folder, its files are damaged, the recipe differs (the differing keys
                are named), or it has fewer epochs than are done.
        """
        run = cls.read(folder, recipe)
        if run.epoch > recipe.optim.epochs:
            raise InputError(
                f"expected {counted(run.epoch, 'epoch')} or more, which are done in {folder}, "
                f"found {recipe.optim.epochs}"
            )
        _check_changes(folder, recipe, allow_change)
        read_environment(folder, remedy="; write {} into it")
        return run

    def write_again(self, environment: dict[str, Any]) -> None:
        """Bring a reopened run's files to its state, and remove those half-written; the environment joins the first."""
        make_parts(self.folder)
        add_resumption(self.folder, environment, epoch=self.epoch, step=read_state(self.folder).step)
        with contextlib.suppress(InputError):  # a log that was damaged or removed is written anew
            self.rows = with_unknown_columns(self.rows, read_log(self.folder))
        self._write_log()
        write_atomically(self.folder / RECIPE, self.recipe.as_toml().encode())
        remove_asides(self.folder)

    @contextlib.contextmanager
    def written_beside(self) -> Iterator[None]:
        """Inside, a thread writes epochs and states while the caller goes on; the block ends when all are written.

        A failure is raised when the next epoch is finished, or at the end; nothing after it is written.
        """
        try:
            with Writer() as self._writer:
                yield
        finally:
            self._writer = None

    def wait(self) -> None:
        """Wait until everything is written; raises what failed."""
        if self._writer is not None:
            self._writer.wait()

    def _write(self, job: Callable[[], None]) -> None:
        if self._writer is None:
            job()
        else:
            self._writer.add(job)

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.rows)

    @property
    def is_finished(self) -> bool:
        """Whether its epochs are done, or its alarms ended it."""
        stop = self.recipe.stop
        is_stopped = stop is not None and should_stop(self.rows, stop.on, stop.patience)
        return is_stopped or self.epoch >= self.recipe.optim.epochs

    @property
    def selected_by(self) -> str:
        """The figure of log.csv that chooses the best epoch."""
        return selecting_figure(self.recipe.evaluate.select, is_adversarial=self.recipe.objective.is_adversarial)

    @property
    def best(self) -> EpochRow | None:
        """The row whose checkpoint is best.safetensors."""
        return self.best_of("")

    def best_of(self, suffix: str) -> EpochRow | None:
        """The best row of the raw ("") or the averaged weights."""
        return best_row(self.rows, f"{self.selected_by}{suffix}")

    def finish_epoch(
        self, row: EpochRow, snapshots: Mapping[str, Snapshot], describe: Mapping[str, Any], *, write: bool = True
    ) -> EpochRow:
        """Write an epoch: results, checkpoints, the log's row. It counts once ``save_state`` has followed.

        Args:
            row: the epoch's figures.
            snapshots: by suffix, "" for the raw weights and ``AVERAGE`` for the averaged ones.
            describe: what checkpoints say of themselves.
            write: False in a process that only keeps count.

        Returns:
            The row as it is logged, with ``selected_by`` filled in.
        """
        self.rows.append(row)
        if self.best is row:
            self.rows[-1] = row = replace(row, selected_by=self.selected_by)
        if not write:
            return row
        self.wait()  # for the epoch before: until then its copies of weights stay in memory
        described = {**describe, "epoch": row.epoch}
        for suffix, snapshot in snapshots.items():
            self._write(self._epoch_job(row, suffix, snapshot, described))
        self._write_log()
        return row

    def _epoch_job(
        self, row: EpochRow, suffix: str, snapshot: Snapshot, described: Mapping[str, Any]
    ) -> Callable[[], None]:
        """The job that writes a snapshot's files, with the weights as they are now."""
        epoch, interval, is_best = row.epoch, self.recipe.checkpoints.every, self.best_of(suffix) is row
        paths = [weights_of(self.folder, "best", suffix)] if is_best else []
        if interval and epoch % interval == 0:
            paths.append(weights_of(self.folder, epoch, suffix))
        paths.append(weights_of(self.folder, "last", suffix))
        results = [result_of(self.folder, epoch, suffix)] if snapshot.is_kept else []
        results += [result_of(self.folder, "best", suffix)] if is_best else []
        tensors = on_host(snapshot.model.state_dict())

        def write() -> None:
            if snapshot.result is not None:
                self._save_result(results, f"{'averaged, ' if suffix else ''}epoch {epoch}", snapshot.result)
                if not snapshot.is_kept:
                    save_records(self.folder, epoch, suffix, snapshot.result)
            write_checkpoint(paths, tensors, described)

        return write

    def save_state(self, states: Mapping[str, Mapping[str, Tensor]], step: int = 0) -> None:
        """Write what ``restore`` gives back: after the finished epochs, or ``step`` steps into the next."""
        from safetensors.torch import save

        rows, tensors = list(self.rows), {name: on_host(state) for name, state in states.items()}

        def write() -> None:
            named = {
                f"{name}.{key}": value.contiguous() for name, state in tensors.items() for key, value in state.items()
            }
            write_state(self.folder, rows, step, save(named))

        self._write(write)

    def restore(self, take: Callable[[dict[str, dict[str, Any]], int], None]) -> None:
        """Call ``take`` with the states and the step that ``save_state`` saved last.

        Raises:
            InputError: the file is damaged, or ``take`` refuses what it holds.
        """
        saved = read_state(self.folder)
        path = saved.tensors
        states: dict[str, dict[str, Any]] = {}
        for key, tensor in load_state(path).items():
            name, _, rest = key.partition(".")
            states.setdefault(name, {})[rest] = tensor
        try:
            take(states, saved.step)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            found = f"another or a damaged one ({one_line(error, 200)})"
            fault = Fault(str(path), "the state of this run", found, "start anew with {force=True}")
            raise InputError(fault) from error

    def _save_result(self, stems: Sequence[Path], weights: str, result: CrossClassResult) -> None:
        """Save a result under each name; its picture, whose title names the ``weights``, is drawn once."""
        contents = result.contents()
        if endings := self.recipe.probe.picture_endings:
            figure = figure_of(result.plot(title=f"{weights}: {result.title()}"))
            contents |= {ending: figure_bytes(figure, ending) for ending in endings}
            drop_figure(figure)
        for stem in stems:
            write_together({stem.with_suffix(ending): content for ending, content in contents.items()})

    def _write_log(self) -> None:
        averaged, validated = self.recipe.average is not None, self.recipe.data.validation is not None
        content = log_bytes(self.rows, averaged=averaged, validated=validated)
        self._write(lambda: write_atomically(self.folder / LOG, content))


def _check_changes(folder: Path, recipe: Recipe, allow_change: Collection[str]) -> None:
    from ccf_plugin.training.recipe_files import read_recipe

    before = read_recipe(folder / RECIPE)
    flat_before, flat_now = before.flat(), recipe.flat()
    if flat_before["precision"] == "auto":  # an earlier version recorded elsewhere what "auto" was
        flat_before["precision"] = read_environment(folder).get("precision", "auto")
    if flat_now["precision"] == "auto":  # the machine has not settled it yet; training asks again once it has
        flat_now["precision"] = flat_before["precision"]
    keys = sorted(flat_before.keys() | flat_now.keys())
    moved = {"data.root"}  # where data lie is no part of what the run is
    changed = [key for key in keys if key not in moved and flat_before.get(key) != flat_now.get(key)]
    forbidden = [key for key in changed if key not in allow_change]
    if forbidden:
        differences = ", ".join(f"{key}: {flat_before.get(key)!r} before, {flat_now.get(key)!r} now" for key in changed)
        remedy = f"resume with {{allow_change={forbidden}}}, or use another {{out}}"
        raise InputError(Fault("", f"the recipe of the run in {folder}", f"changes ({differences})", remedy))
