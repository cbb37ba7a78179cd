"""The run folder: what training writes and everything else reads (recipe, environment, log, checkpoints, results)."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.files import write_atomically
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.training.log import AVERAGE, EpochRow, log_text
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.zoo.checkpoints import load_state, save_checkpoint

# All that a run writes into its folder, and all that --force removes from it.
_NAMES = (
    *("recipe.toml", "environment.json", "log.csv", "probe", "epochs", "state"),
    *(f"{name}{suffix}.safetensors" for name in ("best", "last") for suffix in ("", AVERAGE)),
)
_VERSIONS_OF = ("ccf_plugin", "torch", "torchvision", "torchattacks", "robustbench", "timm", "numpy", "accelerate")


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
        for name in _NAMES if folder.exists() else ():
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        for part in (folder, folder / "probe", folder / "epochs", folder / "state"):
            part.mkdir(parents=True, exist_ok=True)
        run = cls(folder, recipe)
        write_atomically(folder / "recipe.toml", recipe.as_toml().encode())
        run._write_json("environment.json", environment)
        run._write_log()
        return run

    @classmethod
    def read(cls, folder: Path, recipe: Recipe) -> Run:
        """The run of a recipe with its finished epochs; nothing is written. InputError where its state is damaged."""
        run = cls(folder, recipe)
        run.rows = run._read_rows()
        return run

    @classmethod
    def reopen(cls, folder: Path, recipe: Recipe, environment: dict[str, Any]) -> Run:
        """The run to continue; its recipe must be the same, but for more epochs. The new environment joins the first.

        Raises:
            InputError: there is no run in the folder, its files are damaged, the recipe differs (the differing keys
                are named), or it has fewer epochs than are done.
        """
        from ccf_plugin.training.recipe_files import load_recipe

        if not (folder / "state" / "last.json").is_file():
            raise InputError(
                f"expected a run to resume in {folder}, found no finished epoch; start it without --resume"
            )
        before = load_recipe(str(folder / "recipe.toml"))
        flat_before, flat_now = (_flat(one.model_dump(exclude_none=True)) for one in (before, recipe))
        keys = sorted(flat_before.keys() | flat_now.keys())
        changed = [key for key in keys if flat_before.get(key) != flat_now.get(key)]
        may_change = {"optim.epochs"} if recipe.optim.schedule in ("multistep", "constant") else set()
        if set(changed) - may_change:
            differences = ", ".join(
                f"{key}: {flat_before.get(key)!r} before, {flat_now.get(key)!r} now" for key in changed
            )
            raise InputError(
                f"expected the recipe of the run in {folder}, found changes ({differences}); use another --out"
            )
        run = cls.read(folder, recipe)
        if run.epoch > recipe.optim.epochs:
            raise InputError(
                f"expected {run.epoch} epochs or more, which are done in {folder}, found {recipe.optim.epochs}"
            )
        first = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        resumed = [*first.get("resumed", []), {"after_epoch": run.epoch, **environment}]
        run._write_json("environment.json", {**first, "resumed": resumed})
        run._write_log()
        write_atomically(folder / "recipe.toml", recipe.as_toml().encode())
        return run

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.rows)

    @property
    def best(self) -> EpochRow | None:
        """The row whose checkpoint is best.safetensors."""
        return self.best_of("")

    def best_of(self, suffix: str) -> EpochRow | None:
        """The evaluated epoch of the highest test RA of the raw ("") or averaged weights (the first of equals).

        After standard training, whose RA says nothing, the one of the highest clean accuracy.
        """
        measure = "test_clean_accuracy" if self.recipe.objective.loss == "standard" else "test_robust_accuracy"
        figures = [(getattr(row, f"{measure}{suffix}"), row) for row in self.rows]
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
        states: dict[str, dict[str, Any]] = {}
        for key, tensor in load_state(self.folder / "state" / f"{self.epoch:03}.safetensors").items():
            name, rest = key.split(".", 1)
            states.setdefault(name, {})[rest] = tensor
        return states

    def _read_rows(self) -> list[EpochRow]:
        """The finished epochs as the state has them: the log rounds, and may have been edited."""
        path = self.folder / "state" / "last.json"
        try:
            rows = [EpochRow(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"expected the state of a run in {path}, found a damaged file ({error})") from None
        if not rows or [row.epoch for row in rows] != list(range(1, len(rows) + 1)):
            raise InputError(f"expected the epochs of a run in {path}, found {[row.epoch for row in rows]}")
        return rows

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
        self._write_json("state/last.json", {"epoch": epoch, "rows": [asdict(row) for row in self.rows]})
        for old in folder.glob("*.safetensors"):
            if old.stem != f"{epoch:03}":
                old.unlink()

    def _write_log(self) -> None:
        text = log_text(self.rows, averaged=self.recipe.average is not None)
        write_atomically(self.folder / "log.csv", text.encode())

    def _write_json(self, name: str, content: object) -> None:
        write_atomically(self.folder / name, (json.dumps(content, indent=1) + "\n").encode())


def check_is_free(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that holds a run with finished epochs, unless ``force``; refuse one with other files always.

    Raises:
        InputError: the message names the ways out.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"expected a folder for the run, found the file {folder}; choose another --out")
    found = {entry.name for entry in folder.iterdir()}
    others = sorted(found - set(_NAMES))
    if others or (found and "environment.json" not in found):
        named = ", ".join((others or sorted(found))[:3])
        raise InputError(
            f"expected an empty folder or a run in {folder}, found other files ({named}); choose another --out"
        )
    if (folder / "state" / "last.json").is_file() and not force:
        raise InputError(
            f"expected no run at {folder} yet, found one; continue it with --resume, replace it with --force, "
            "or choose another folder with --out"
        )


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


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
