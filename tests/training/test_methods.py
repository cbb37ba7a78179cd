"""Every shipped recipe takes its first steps: two tiny ones, on made images of its shape, through the one loop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.commands import run, run_here, sets
from support.runs import SHORT

from ccf_plugin.errors import InputError
from ccf_plugin.runs.log import read_log
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import load_recipe, shipped_recipes
from ccf_plugin.zoo.attack_names import attack_names

SMALL = [*SHORT, "optim.epochs=1"]
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


# Each part of theirs is in a recipe of the others.
COMBINED = {
    *("deit_ti_kdswa", "deit_ti_wake", "preact_l2_kdswa", "preact_l2_wake", "preact_trades_kdswa"),
    *(
        "preact_trades_wake",
        "digits_fast",
        "digits_kd",
        "digits_wake",
        "overfit_small_fast",
        "overfit_small_kd",
        "preact_linf_kd",
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in COMBINED)) for name in sorted(shipped_recipes())],
)
def test_a_recipe_takes_its_first_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, settings = load_recipe(name), _made_small(name)
    out = Path("runs") / "student"
    _ccf_train(name, str(out), settings)
    (row,) = read_log(out)
    assert np.isfinite(row.train_loss)
    assert row.cas is not None
    assert (out / "best.safetensors").is_file()
    assert (out / "best_average.safetensors").is_file() == (recipe.average is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_two_processes_run_a_recipe_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*_made_small(name), "threads=2"]
    for folder in ("one", "two"):
        code, _, err = run("train", name, "--out", folder, *sets(settings), cwd=tmp_path)
        assert code == 0, err
    files = [path.relative_to("one") for path in Path("one").rglob("*") if path.suffix in (".safetensors", ".npz")]
    assert len(files) >= 4
    for file in files:
        assert _content(Path("one") / file) == _content(Path("two") / file), file
    logs = [read_log(Path(folder)) for folder in ("one", "two")]
    first, second = ([replace(row, seconds=0.0, images_per_second=0.0) for row in rows] for rows in logs)
    assert first == second


def _content(path: Path) -> tuple[object, bytes]:
    """A file's header and the bytes after it; safetensors writes the keys of the header's metadata in any order."""
    content = path.read_bytes()
    if path.suffix != ".safetensors":
        return None, content
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _made_small(name: str) -> list[str]:
    """The settings by which a recipe runs for two steps, with its images and its teachers made in this folder."""
    recipe = load_recipe(name)
    size, classes = SIZES.get(recipe.data.name, (32, 32, 3)), CLASSES.get(recipe.data.name, 10)
    generator = np.random.default_rng(0)
    arrays = {f"x_{split}": generator.integers(0, 256, (20, *size), dtype=np.uint8) for split in ("train", "test")}
    labels = np.arange(20) * classes // 20
    np.savez("made.npz", **arrays, y_train=labels, y_test=labels, classes=np.arange(classes).astype(str))
    short = [*SMALL, "data.name=npz:made.npz", "data.train_per_class=2", "precision=float32"]
    for section in recipe.distill:  # first the teachers, from the recipes that their specs name
        if section.teacher != "average" and not Path(section.teacher).exists():
            teacher = Path(section.teacher).name
            _ccf_train(teacher, section.teacher, [*short, *_shrunk(load_recipe(teacher))])
    return [*short, *_at_once(recipe), *_shrunk(recipe)]


def _ccf_train(recipe: str, out: str, settings: list[str]) -> None:
    assert run_here("train", recipe, "--out", out, *sets(settings)) == 0


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
@pytest.mark.slow
def test_any_attack_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the mode that the paper's code attacks in, or, where that is refused, in the other."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    arrays = {f"x_{split}": generator.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez("made.npz", **arrays, y_train=np.arange(10), y_test=np.arange(10))
    norm = "L2" if name.endswith("L2") or name in ("CW", "DeepFool") else "Linf"
    settings = [*SMALL, "data.name=npz:made.npz", "data.train_per_class=1", "optim.batch_size=5"]
    settings += ["model.options={width=16}", "data.augmentation=none", "evaluate.norm=Linf"]
    settings += [f"attack.name={name}", f"attack.norm={norm}", f"attack.eps={'1/255' if norm == 'Linf' else 0.1}"]
    settings += [f"attack.options.{key}={value}" for key, value in SHORTENED.get(name, {}).items()]
    _ccf_train("digits", "run", [*settings, f"attack.batchnorm={_mode(settings)}"])
    (row,) = read_log(Path("run"))
    assert np.isfinite(row.train_loss)


def _mode(settings: list[str]) -> str:
    try:
        return load_recipe("digits", [*settings, "attack.batchnorm=train"]).attack.batchnorm
    except InputError:
        return load_recipe("digits", [*settings, "attack.batchnorm=eval"]).attack.batchnorm
