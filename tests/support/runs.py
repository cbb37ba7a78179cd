"""Whole runs: a recipe of seconds, a silent reporter, and what makes two runs the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from ccf_plugin.measuring.evaluate import Batches
from ccf_plugin.runs.log import EpochRow, read_log
from ccf_plugin.runs.metrics import column_names
from ccf_plugin.training.loop import Reporter, train
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.run import Run

NETWORK = ("model.options.width=2", "model.options.blocks=[1,1,1,1]")
# Of the digits, on that network: as little as a command can do.
SMALLEST = [*NETWORK, "data.train_per_class=4", "data.test_limit=20", "attack.steps=1", "evaluate.steps=1"]
# Three epochs of four steps, whatever the network.
SHORT = [
    "data.train_per_class=6",
    "data.test_limit=20",
    "attack.steps=2",
    "evaluate.steps=2",
    "optim.batch_size=16",
    "optim.epochs=3",
    "optim.decay_epochs=[1,2]",
    "probe.every=1",
    "probe.pictures=false",
    "checkpoints.every=2",
]
TINY = [*NETWORK, *SHORT]
# Of the data and the network that support/plugin.py adds: two batches.
PLUGIN = """
[model]
name = "mine:small"

[data]
name = "dots:12"

[attack]
steps = 1

[evaluate]
steps = 1

[optim]
batch_size = 6
epochs = 1

[probe]
every = 1
pictures = false
"""


class Quiet(Reporter):
    """A reporter that remembers epochs and shows nothing.

    It can stop a run after an epoch, as a kill would, or send a signal after a step or when an evaluation begins.
    """

    def __init__(
        self, stop_after: int | None = None, *, signal_at: tuple[int, int | str] | None = None, number: int = 0
    ) -> None:
        self.rows: list[EpochRow] = []
        self._stop_after = stop_after
        self._signal_at = signal_at
        self._number = number

    def step(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == self._signal_at:
            os.kill(os.getpid(), self._number)

    def evaluating(self, batches: Batches, total: int) -> Batches:
        if (len(self.rows) + 1, "evaluation") == self._signal_at:
            os.kill(os.getpid(), self._number)
        return batches

    def epoch_finished(self, row: EpochRow) -> None:
        self.rows.append(row)
        if row.epoch == self._stop_after:
            raise KeyboardInterrupt


def interrupted(recipe: Recipe, folder: Path, epochs: int = 1, *, resume: bool = False) -> Path:
    """The folder of a run that was ended after so many epochs."""
    with pytest.raises(KeyboardInterrupt):
        train(recipe, folder, Quiet(stop_after=epochs), resume=resume)
    return folder


def tiny(*more: str) -> Recipe:
    return load_recipe("digits", [*TINY, *more])


COLUMNS = tuple(column_names())


def assert_same_run(one: Run, other: Run) -> None:
    """Of the same weights, figures and results, bit for bit; only the times may differ."""
    files = [sorted(path.relative_to(run.folder) for path in _weights_and_results(run)) for run in (one, other)]
    assert files[0] == files[1]
    for file in files[0]:
        first, second = (_tensors(run.folder / file) for run in (one, other))
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], err_msg=f"{file}: {key}")
    timed = ("seconds", "images_per_second")
    for row, twin in zip(read_log(one.folder), read_log(other.folder), strict=True):
        assert all(getattr(row, key) == getattr(twin, key) for key in COLUMNS if key not in timed)


def _weights_and_results(run: Run) -> list[Path]:
    found = [*run.folder.glob("*.safetensors"), *run.folder.glob("probe/*.npz")]
    assert {path.stem for path in found} >= {"best", "last", "001"}
    return found


def _tensors(file: Path) -> dict[str, np.ndarray]:
    if file.suffix == ".npz":
        with np.load(file) as archive:
            return dict(archive)
    return {key: value.numpy() for key, value in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
