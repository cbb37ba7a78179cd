"""Every shipped recipe takes its first steps: two tiny ones, on made images of its shape, through the one loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccf_plugin.run_log import read_log
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe_files import load_recipe, shipped_recipes

from .test_run import TINY, Quiet

SMALL = [text for text in TINY if not text.startswith(("model.", "optim.epochs"))]
# a recipe that begins something after an epoch begins it at once
SOON = ["average.start_epoch=0", "average.stop_epoch=1"]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_recipe_takes_its_first_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    size = (8, 8, 1) if recipe.data.name == "digits" else (32, 32, 3)
    generator = np.random.default_rng(0)
    arrays = {f"x_{split}": generator.integers(0, 256, (20, *size), dtype=np.uint8) for split in ("train", "test")}
    np.savez("made.npz", **arrays, y_train=np.arange(20) % 10, y_test=np.arange(20) % 10)
    short = [*SMALL, "data.name=npz:made.npz", "data.train_per_class=2", "optim.epochs=1", "precision=float32"]
    for section in recipe.distill:
        if (
            section.teacher != "average" and not Path(section.teacher).exists()
        ):  # first the teachers, from the recipes that their specs name
            teacher = load_recipe(Path(section.teacher).name, [*short, "model.name=narrow_preact_resnet18"])
            train(teacher, Path(section.teacher), Quiet())
    soon = SOON if recipe.average is not None else []
    student = load_recipe(name, [*short, *soon, "model.name=narrow_preact_resnet18"])
    run = train(student, Path("runs") / "student", Quiet())
    (row,) = read_log(run.folder)
    assert np.isfinite(row.train_loss)
    assert row.cas is not None
    assert (run.folder / "best.safetensors").is_file()
    assert (run.folder / "best_average.safetensors").is_file() == (recipe.average is not None)
