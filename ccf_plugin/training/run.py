"""The run folder: what training writes and everything else reads (recipe, environment, log, checkpoints, results)."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.files import write_atomically
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.zoo.checkpoints import load_state, save_checkpoint

_VERSIONS_OF = ("ccf_plugin", "torch", "torchvision", "torchattacks", "robustbench", "timm", "numpy", "accelerate")


@dataclass(frozen=True)
class EpochRow:
    """One row of log.csv. Accuracies are fractions; None (an empty cell) is what was not measured that epoch."""

    epoch: int
    lr: float
    train_loss: float
    train_robust_accuracy: float | None
    test_clean_accuracy: float | None
    test_robust_accuracy: float | None
    cas: float | None
    instance_cas: float | None
    seconds: float
    images_per_second: float
    alarm: str = ""
    test_clean_accuracy_average: float | None = None
    test_robust_accuracy_average: float | None = None
    cas_average: float | None = None


AVERAGE = "_average"  # marks what belongs to the averaged weights, in the log's columns and in file names


@dataclass(frozen=True)
class Snapshot:
    """A model at an epoch's end, and the result to keep of it."""

    model: nn.Module
    result: CrossClassResult | None


class Run:
    """A run folder. ``rows`` are the epochs so far."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.rows: list[EpochRow] = []

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, environment: dict[str, Any], *, force: bool = False) -> Run:
        """A new run folder, in place of the one that ``check_is_free`` allows to replace; raises as that does."""
        check_is_free(folder, force=force)
        if folder.exists():
            shutil.rmtree(folder)
        for part in (folder, folder / "probe", folder / "epochs", folder / "state"):
            part.mkdir(parents=True, exist_ok=True)
        run = cls(folder, recipe)
        write_atomically(folder / "recipe.toml", recipe.as_toml().encode())
        write_atomically(folder / "environment.json", (json.dumps(environment, indent=1) + "\n").encode())
        run._write_log()
        return run

    @classmethod
    def reopen(cls, folder: Path, recipe: Recipe) -> Run:
        """The run to continue; its recipe must be the same, but for more epochs.

        Raises:
            InputError: there is no run in the folder, or the recipe differs (the differing keys are named).
        """
        from ccf_plugin.training.recipe_files import load_recipe

        if not (folder / "state" / "last.json").is_file():
            raise InputError(
                f"expected a run to resume in {folder}, found no finished epoch; start it without --resume"
            )
        before = _flat(load_recipe(str(folder / "recipe.toml")).model_dump(exclude_none=True))
        now = _flat(recipe.model_dump(exclude_none=True))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if [key for key in changed if key != "optim.epochs"]:
            differences = ", ".join(f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed)
            raise InputError(
                f"expected the recipe of the run in {folder}, found changes ({differences}); use another --out"
            )
        run = cls(folder, recipe)
        run.rows = read_log(folder)[: json.loads((folder / "state" / "last.json").read_text())["epoch"]]
        run._write_log()
        write_atomically(folder / "recipe.toml", recipe.as_toml().encode())
        return run

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """log.csv's columns: those of averaged weights only where the recipe averages."""
        names = (field.name for field in fields(EpochRow))
        return tuple(name for name in names if self.recipe.average is not None or not name.endswith(AVERAGE))

    @property
    def best(self) -> EpochRow | None:
        """The row whose checkpoint is best.safetensors."""
        return self.best_of("")

    def best_of(self, suffix: str) -> EpochRow | None:
        """The evaluated epoch of the highest test RA of the raw ("") or averaged weights (the first of equals)."""
        figures = [(getattr(row, f"test_robust_accuracy{suffix}"), row) for row in self.rows]
        evaluated = [(accuracy, row) for accuracy, row in figures if accuracy is not None]
        return max(evaluated, key=lambda pair: (pair[0], -pair[1].epoch))[1] if evaluated else None

    def finish_epoch(
        self,
        row: EpochRow,
        snapshots: Mapping[str, Snapshot],
        states: Mapping[str, Mapping[str, Any]],
        describe: Mapping[str, Any],
    ) -> None:
        """Write an epoch: results, checkpoints, the log's row, and last of all the state that makes it count.

        Args:
            row: the epoch's figures.
            snapshots: by suffix, "" for the raw weights and ``AVERAGE`` for the averaged ones.
            states: state dicts by name, for ``restore``.
            describe: what checkpoints say of themselves.
        """
        self.rows.append(row)
        described = {**describe, "epoch": row.epoch}
        every = self.recipe.checkpoints.every
        for suffix, snapshot in snapshots.items():
            if snapshot.result is not None:
                self._save_result(f"{row.epoch:03}{suffix}", snapshot.result)
            if self.best_of(suffix) is row:
                save_checkpoint(self.folder / f"best{suffix}.safetensors", snapshot.model, described)
            if every and row.epoch % every == 0:
                save_checkpoint(
                    self.folder / "epochs" / f"{row.epoch:03}{suffix}.safetensors", snapshot.model, described
                )
            save_checkpoint(self.folder / f"last{suffix}.safetensors", snapshot.model, described)
        self._write_log()
        self._save_state(row.epoch, states)

    def restore(self) -> dict[str, dict[str, Any]]:
        """The state dicts of the last finished epoch, as ``finish_epoch`` was given them."""
        state = self.folder / "state"
        described = json.loads((state / "last.json").read_text(encoding="utf-8"))
        states: dict[str, dict[str, Any]] = {}
        for key, tensor in load_state(state / f"{described['epoch']:03}.safetensors").items():
            name, rest = key.split(".", 1)
            states.setdefault(name, {})[rest] = tensor
        return states

    def _save_result(self, name: str, result: CrossClassResult) -> None:
        stem = self.folder / "probe" / name
        result.save(stem)
        if self.recipe.probe.pictures:
            what = "averaged, epoch" if name.endswith(AVERAGE) else "epoch"
            title = f"{what} {int(name.removesuffix(AVERAGE))}: {result.title()}"
            result.save_picture(stem.with_suffix(".png"), title=title)

    def _save_state(self, epoch: int, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        from safetensors.torch import save

        tensors = {
            f"{name}.{key}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, state in states.items()
            for key, value in state.items()
        }
        folder = self.folder / "state"
        write_atomically(folder / f"{epoch:03}.safetensors", save(tensors))
        # last.json names the state that counts; only then may the one before it go.
        write_atomically(folder / "last.json", (json.dumps({"epoch": epoch}) + "\n").encode())
        for old in folder.glob("*.safetensors"):
            if old.stem != f"{epoch:03}":
                old.unlink()

    def _write_log(self) -> None:
        buffer = StringIO()
        writer = csv.DictWriter(buffer, self.columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            figures = asdict(row)
            writer.writerow({key: _cell(figures[key]) for key in self.columns})
        write_atomically(self.folder / "log.csv", buffer.getvalue().encode())


def check_is_free(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that exists and is not empty; with ``force``, one that holds something else than a run.

    Raises:
        InputError: the message names the ways out.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not force:
        raise InputError(
            f"expected no run at {folder} yet, found one; continue it with --resume, replace it with --force, "
            "or choose another folder with --out"
        )
    if not (folder / "recipe.toml").is_file():
        raise InputError(f"expected --force to replace a run, found other files in {folder}; choose another --out")


def read_log(folder: Path) -> list[EpochRow]:
    """The rows of a run's log.csv."""

    def value(key: str, cell: str) -> object:
        return cell if key == "alarm" else int(cell) if key == "epoch" else float(cell) if cell else None

    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return [EpochRow(**{key: value(key, cell) for key, cell in row.items()}) for row in csv.DictReader(file)]  # type: ignore[arg-type]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's tensors by "index.name", for a file; its groups follow from the recipe."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def describe_environment(device: torch.device, precision: str, command: list[str] | None = None) -> dict[str, Any]:
    """What a run ran on: versions, hardware, threads, and the command."""
    versions = {}
    for name in _VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return {
        "command": sys.argv if command is None else command,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _cell(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
