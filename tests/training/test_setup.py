"""Holding images out, and choosing the best epoch by them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support.runs import Quiet, tiny

from ccf_plugin.errors import InputError
from ccf_plugin.runs.log import read_log
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.setup import hold_out, prepare
from ccf_plugin.zoo.datasets import Split


def _split(labels: list[int]) -> Split:
    return Split(torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1), torch.tensor(labels))


def test_the_last_of_each_class_are_held_out_evenly_and_the_order_stays() -> None:
    train_part, validation = hold_out(_split([0, 1, 0, 1, 2, 0, 2, 1, 2]), 4)
    assert validation.images.flatten().tolist() == [2, 5, 7, 8]  # one of each class, and a second of the first class
    assert train_part.images.flatten().tolist() == [0, 1, 3, 4, 6]
    assert train_part.labels.tolist() == [0, 1, 1, 2, 2]


def test_a_class_must_keep_an_image() -> None:
    with pytest.raises(InputError, match="every class to remain for training, found 5 of 6"):
        hold_out(_split([0, 0, 1, 1, 2, 2]), 5)


def test_the_validation_split_selects_the_best_epoch_and_is_not_trained_on(tmp_path: Path) -> None:
    recipe = tiny("data.validation=20", "evaluate.select=validation", "optim.batch_size=10", "average.kind=ema")
    run = train(recipe, tmp_path / "run", Quiet())
    rows = read_log(run.folder)
    assert all(row.validation_robust_accuracy is not None for row in rows)
    assert all(row.validation_robust_accuracy_average is not None for row in rows)
    figures = [row.validation_robust_accuracy for row in rows]
    assert run.best is not None
    assert run.best.epoch == figures.index(max(figures)) + 1  # type: ignore[type-var]
    assert [bool(row.selected_by) for row in rows] == [
        value is not None and value > max([-1, *filter(None, figures[:i])]) for i, value in enumerate(figures)
    ]
    assert {row.selected_by for row in rows} <= {"", "validation_robust_accuracy"}
    header = (run.folder / "log.csv").read_text().splitlines()[0]
    assert "validation_robust_accuracy" in header


def test_selecting_by_validation_needs_a_split() -> None:
    with pytest.raises(InputError, match=r"evaluate.select: expected data.validation images to select by, found none"):
        load_recipe("digits", ["evaluate.select=validation"])


@pytest.mark.parametrize(
    ("batch_size", "processes", "works"), [(20, 1, True), (59, 1, False), (58, 1, True), (58, 2, False), (1, 1, False)]
)
def test_batchnorm_gets_no_single_image(batch_size: int, processes: int, works: bool) -> None:
    """60 images; 60 = 59 + 1 = 58 + 2, and two processes get one each of the latter."""
    recipe = tiny(f"optim.batch_size={batch_size}")
    with nullcontext() if works else pytest.raises(InputError, match="leaves no batch of a single image"):
        prepare(recipe, torch.device("cpu"), processes=processes)
