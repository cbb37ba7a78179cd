"""The run folder: what training writes and everything else reads (recipe, environment, log, checkpoints, results)."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ccf_plugin.errors import InputError, one_line
from ccf_plugin.files import is_aside, write_atomically
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.alarms import should_stop
from ccf_plugin.runs.environment import read_environment
from ccf_plugin.runs.folder import check_is_free
from ccf_plugin.runs.layout import AVERAGE, RUN_FILES
from ccf_plugin.runs.log import EpochRow, best_row, log_text, selecting_figure
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.writing import Writer
from ccf_plugin.zoo.checkpoints import load_state, on_host, write_checkpoint

_STATE_FORMAT = 1


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
        self.step = 0  # steps done of the epoch after those
        self._writer: Writer | None = None

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, environment: dict[str, Any], *, force: bool = False) -> Run:
        """A new run folder, in place of the one that ``check_is_free`` allows to replace; raises as that does."""
        check_is_free(folder, force=force)
        for name in RUN_FILES if folder.exists() else ():
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        run = cls(folder, recipe)
        folder.mkdir(parents=True, exist_ok=True)
        run._remove_asides()
        run._write_json("environment.json", environment)  # first: by it the folder is known as a run's
        for part in ("probe", "epochs", "state"):
            (folder / part).mkdir(exist_ok=True)
        write_atomically(folder / "recipe.toml", recipe.as_toml().encode())
        run._write_log()
        return run

    @classmethod
    def read(cls, folder: Path, recipe: Recipe) -> Run:
        """The run of a recipe as its state has it; nothing is written. InputError where that is damaged."""
        run = cls(folder, recipe)
        run._read_state()
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
                f"expected {run.epoch} epochs or more, which are done in {folder}, found {recipe.optim.epochs}"
            )
        _check_changes(folder, recipe, allow_change)
        run._read_environment()
        return run

    def write_again(self, environment: dict[str, Any]) -> None:
        """Bring a reopened run's files to its state, and remove those half-written; the environment joins the first."""
        first = self._read_environment()
        resumed = [*first.get("resumed", []), {"after_epoch": self.epoch, "after_step": self.step, **environment}]
        self._write_json("environment.json", {**first, "resumed": resumed})
        self._write_log()
        write_atomically(self.folder / "recipe.toml", self.recipe.as_toml().encode())
        self._remove_asides()

    @contextlib.contextmanager
    def written_beside(self) -> Iterator[None]:
        """Inside, epochs and states are written by a thread while the caller goes on; at the end all of them are.

        What fails is raised when the next epoch is finished, or at the end; nothing after it is written.
        """
        try:
            with Writer() as self._writer:
                yield
        finally:
            self._writer = None

    def wait(self) -> None:
        """Until all that was to be written is; raises what failed."""
        if self._writer is not None:
            self._writer.wait()

    def _write(self, job: Callable[[], None]) -> None:
        if self._writer is None:
            job()
        else:
            self._writer.add(job)

    def _remove_asides(self) -> None:
        """What a process left that was killed while it wrote."""
        for path in filter(is_aside, list(self.folder.rglob(".*"))):
            path.unlink(missing_ok=True)

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
        return selecting_figure(self.recipe.objective.loss, self.recipe.evaluate.select)

    @property
    def best(self) -> EpochRow | None:
        """The row whose checkpoint is best.safetensors."""
        return self.best_of("")

    def best_of(self, suffix: str) -> EpochRow | None:
        """That of the raw ("") or the averaged weights."""
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
        self.wait()  # for the epoch before, whose copies of weights are held until then
        described = {**describe, "epoch": row.epoch}
        for suffix, snapshot in snapshots.items():
            self._write(self._epoch_job(row, suffix, snapshot, described))
        self._write_log()
        return row

    def _epoch_job(
        self, row: EpochRow, suffix: str, snapshot: Snapshot, described: Mapping[str, Any]
    ) -> Callable[[], None]:
        """What writes a snapshot's files, the weights being those of now."""
        is_best, every = self.best_of(suffix) is row, self.recipe.checkpoints.every
        names = [f"{row.epoch:03}"] * snapshot.is_kept + ["best"] * is_best
        paths = [self.folder / f"best{suffix}.safetensors"] * is_best
        if every and row.epoch % every == 0:
            paths.append(self.folder / "epochs" / f"{row.epoch:03}{suffix}.safetensors")
        paths.append(self.folder / f"last{suffix}.safetensors")
        tensors = on_host(snapshot.model.state_dict())

        def write() -> None:
            if snapshot.result is not None:
                self._save_result([f"{name}{suffix}" for name in names], row.epoch, snapshot.result)
            write_checkpoint(paths, tensors, described)

        return write

    def save_state(self, states: Mapping[str, Mapping[str, Tensor]], step: int = 0) -> None:
        """Write what ``restore`` gives back: after the finished epochs, or ``step`` steps into the next."""
        from safetensors.torch import save

        self.step = step
        tensors = {name: on_host(state) for name, state in states.items()}
        file = f"{self.epoch:03}-{step}.safetensors" if step else f"{self.epoch:03}.safetensors"
        rows = [asdict(row) for row in self.rows]
        last = {"format": _STATE_FORMAT, "epoch": self.epoch, "step": step, "file": file, "rows": rows}

        def write() -> None:
            folder = self.folder / "state"
            named = {
                f"{name}.{key}": value.contiguous() for name, state in tensors.items() for key, value in state.items()
            }
            write_atomically(folder / file, save(named))
            # last.json names the state that counts; only then may the one before it go.
            self._write_json("state/last.json", last)
            for old in folder.glob("*.safetensors"):
                if old.name != file:
                    old.unlink()

        self._write(write)

    def restore(self, take: Callable[[dict[str, dict[str, Any]]], None]) -> None:
        """Hand over the states as ``save_state`` was given them last.

        Raises:
            InputError: the file is damaged, or ``take`` refuses what it holds.
        """
        path = self.folder / "state" / self._read_state()
        states: dict[str, dict[str, Any]] = {}
        for key, tensor in load_state(path).items():
            name, _, rest = key.partition(".")
            states.setdefault(name, {})[rest] = tensor
        try:
            take(states)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: expected the state of this run, found another or a damaged one ({one_line(error, 200)}); "
                "start anew with --force"
            ) from error

    def _read_environment(self) -> dict[str, Any]:
        return read_environment(self.folder, listed="resumed", remedy="; write {} into it")

    def _read_state(self) -> str:
        """Take over the finished epochs as the state has them (the log rounds); its file's name."""
        path = self.folder / "state" / "last.json"
        if not path.is_file():
            raise InputError(f"expected a run to resume in {self.folder}, found none with a saved state")
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            if (found := state.get("format", _STATE_FORMAT)) > _STATE_FORMAT:
                raise InputError(
                    f"{path}: written in format {found}, this version reads up to {_STATE_FORMAT}; update ccf_plugin"
                )
            self.rows, self.step = [EpochRow(**row) for row in state["rows"]], int(state["step"])
            file = Path(state["file"]).name
            if [row.epoch for row in self.rows] != list(range(1, state["epoch"] + 1)) or self.step < 0:
                raise ValueError(f"epochs {[row.epoch for row in self.rows]}, step {self.step}")
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(
                f"expected the state of a run in {path}, found a damaged file ({one_line(error, 120)}); "
                "start anew with --force"
            ) from None
        return file

    def _save_result(self, names: Sequence[str], epoch: int, result: CrossClassResult) -> None:
        """Under each name, the picture being drawn once."""
        drawn: Path | None = None
        for name in names:
            stem = self.folder / "probe" / name
            result.save(stem)
            if self.recipe.probe.pictures:
                what = "averaged, epoch" if name.endswith(AVERAGE) else "epoch"
                picture = stem.with_suffix(".png")
                if drawn is None:
                    drawn = result.save_picture(picture, title=f"{what} {epoch}: {result.title()}")
                else:
                    write_atomically(picture, drawn.read_bytes())

    def _write_log(self) -> None:
        averaged, validated = self.recipe.average is not None, self.recipe.data.validation is not None
        text = log_text(self.rows, averaged=averaged, validated=validated)
        self._write(lambda: write_atomically(self.folder / "log.csv", text.encode()))

    def _write_json(self, name: str, content: object) -> None:
        write_atomically(self.folder / name, (json.dumps(content, indent=1) + "\n").encode())


def _check_changes(folder: Path, recipe: Recipe, allow_change: Collection[str]) -> None:
    from ccf_plugin.training.recipe_files import read_recipe

    before = read_recipe(folder / "recipe.toml")
    flat_before, flat_now = (one.flat() for one in (before, recipe))
    keys = sorted(flat_before.keys() | flat_now.keys())
    changed = [key for key in keys if flat_before.get(key) != flat_now.get(key)]
    forbidden = [key for key in changed if key not in allow_change]
    if forbidden:
        differences = ", ".join(f"{key}: {flat_before.get(key)!r} before, {flat_now.get(key)!r} now" for key in changed)
        allowed = " ".join(f"--allow-change {key}" for key in forbidden)
        raise InputError(
            f"expected the recipe of the run in {folder}, found changes ({differences}); resume with {allowed}, or use "
            "another --out"
        )
