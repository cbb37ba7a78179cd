"""Every shipped recipe takes its first steps: two tiny ones, on made images of its shape, through the one loop."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccf_plugin.cli import main
from ccf_plugin.errors import InputError
from ccf_plugin.run_log import read_log
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import load_recipe, shipped_recipes
from ccf_plugin.zoo.attacks import attack_names

from .tiny import TINY

SMALL = [text for text in TINY if not text.startswith(("model.", "optim.epochs"))]
SIZES = {"digits": (8, 8, 1), "tinyimagenet": (64, 64, 3)}
CLASSES = {"cifar100": 100, "tinyimagenet": 200}


def _shrunk(recipe: Recipe) -> list[str]:
    """The settings that make its network a small one of its kind."""
    if recipe.model.name.startswith("timm:"):
        return ["model.options.depth=2"]
    # Not narrower than 16: the oneDNN of torch 2.15 writes out of bounds on AVX-512 in the input gradient of a strided
    # 1×1 convolution of fewer channels and 64 or more columns.
    return ["model.name=narrow_preact_resnet18", "model.options={width=16}"]


def _at_once(recipe: Recipe) -> list[str]:
    """The settings by which whatever it begins after some epochs is in full force in the first."""
    settings = []
    if recipe.average is not None:
        settings += ["average.start_epoch=0", "average.stop_epoch=1"]
    if recipe.ensembling is not None:
        settings += ["ensembling.ramp=[0, 1]"]
    if any(section.ramp for section in recipe.distill):
        (section,) = recipe.distill
        settings += [f"distill=[{{teacher='average', weight={section.weight}, ramp=[0, 1], weight_after=1.0}}]"]
    return settings


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_recipe_takes_its_first_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, settings = load_recipe(name), _made_small(name, monkeypatch)
    run = Path("runs") / "student"
    _ccf_train(name, str(run), settings, monkeypatch)
    (row,) = read_log(run)
    assert np.isfinite(row.train_loss)
    assert row.cas is not None
    assert (run / "best.safetensors").is_file()
    assert (run / "best_average.safetensors").is_file() == (recipe.average is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_two_processes_run_a_recipe_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [part for setting in _made_small(name, monkeypatch) for part in ("--set", setting)]
    for folder in ("one", "two"):
        command = [sys.executable, "-m", "ccf_plugin", "train", name, "--out", folder, *sets, "--set", "threads=2"]
        subprocess.run(command, check=True, capture_output=True)
    files = [path.relative_to("one") for path in Path("one").rglob("*") if path.suffix in (".safetensors", ".npz")]
    assert len(files) >= 4
    for file in files:
        assert (Path("one") / file).read_bytes() == (Path("two") / file).read_bytes(), file
    logs = [read_log(Path(folder)) for folder in ("one", "two")]
    first, second = ([replace(row, seconds=0.0, images_per_second=0.0) for row in rows] for rows in logs)
    assert first == second


def _made_small(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The settings by which a recipe runs for two steps, with its images and its teachers made in this folder."""
    recipe = load_recipe(name)
    size, classes = SIZES.get(recipe.data.name, (32, 32, 3)), CLASSES.get(recipe.data.name, 10)
    generator = np.random.default_rng(0)
    arrays = {f"x_{split}": generator.integers(0, 256, (20, *size), dtype=np.uint8) for split in ("train", "test")}
    labels = np.arange(20) * classes // 20
    np.savez("made.npz", **arrays, y_train=labels, y_test=labels, classes=np.arange(classes).astype(str))
    short = [*SMALL, "data.name=npz:made.npz", "data.train_per_class=2", "optim.epochs=1", "precision=float32"]
    for section in recipe.distill:  # first the teachers, from the recipes that their specs name
        if section.teacher != "average" and not Path(section.teacher).exists():
            _ccf_train(Path(section.teacher).name, section.teacher, [*short, *_shrunk(recipe)], monkeypatch)
    return [*short, *_at_once(recipe), *_shrunk(recipe)]


def _ccf_train(recipe: str, out: str, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``ccf train`` as a shell would call it, in this process."""
    sets = [part for setting in settings for part in ("--set", setting)]
    monkeypatch.setattr("sys.argv", ["ccf", "train", recipe, "--out", out, *sets])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


# What keeps the slow ones short.
SHORTENED = {
    "JSMA": {"gamma": 0.01},
    "Square": {"n_queries": 20},
    "AutoAttack": {"version": "rand"},
    "Pixle": {"restarts": 1, "max_iterations": 2},
    "OnePixel": {"popsize": 2},
    "SPSA": {"nb_sample": 4},
    "EADL1": {"max_iterations": 10, "binary_search_steps": 1},
    "EADEN": {"max_iterations": 10, "binary_search_steps": 1},
}


@pytest.mark.parametrize("name", attack_names())
def test_any_attack_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the mode that the paper's code attacks in, or, where that is refused, in the other."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    arrays = {f"x_{split}": generator.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez("made.npz", **arrays, y_train=np.arange(10), y_test=np.arange(10))
    norm = "L2" if name.endswith("L2") or name in ("CW", "DeepFool") else "Linf"
    settings = [*SMALL, "data.name=npz:made.npz", "data.train_per_class=1", "optim.epochs=1", "optim.batch_size=5"]
    settings += ["model.options={width=16}", "data.augmentation=none", "evaluate.norm=Linf"]
    settings += [f"attack.name={name}", f"attack.norm={norm}", f"attack.eps={'1/255' if norm == 'Linf' else 0.1}"]
    settings += [f"attack.options.{key}={value}" for key, value in SHORTENED.get(name, {}).items()]
    _ccf_train("digits", "run", [*settings, f"attack.batchnorm={_mode(settings)}"], monkeypatch)
    (row,) = read_log(Path("run"))
    assert np.isfinite(row.train_loss)


def _mode(settings: list[str]) -> str:
    try:
        return load_recipe("digits", [*settings, "attack.batchnorm=train"]).attack.batchnorm
    except InputError:
        return load_recipe("digits", [*settings, "attack.batchnorm=eval"]).attack.batchnorm
