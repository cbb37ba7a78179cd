"""Every snippet of the README runs, complete and as it stands: each loop in a process of its own, the recipe as one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import run, sets

from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.zoo.checkpoints import save_checkpoint
from ccf_plugin.zoo.models import build_model

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
SECTION = re.search(r"^## Drop it into your loop$(.*?)(?=^## |\Z)", README, re.M | re.S)
SNIPPETS = re.findall(r"^\*\*(.+?)\*\*.*?```python\n(.*?)```", SECTION[1] if SECTION else "", re.M | re.S)
BELOW = re.findall(r"```python\n(.*?)```", README[SECTION.end() :] if SECTION else "", re.S)
OF_A_RUN = [code for code in BELOW if 'load_model("runs/' in code]
OWN_CODE = [code for code in BELOW if code not in OF_A_RUN]

# RobustBench's snippet downloads weights and images: random ones stand in, behind the same two functions.
OFFLINE = """
import torch
from ccf_plugin.zoo.robustbench_models import import_robustbench
import_robustbench()
import robustbench.data, robustbench.utils
from robustbench.model_zoo import model_dicts
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
def load_model(name, *, dataset, threat_model):
    torch.manual_seed(0)
    return model_dicts[BenchmarkDataset(dataset)][ThreatModel(threat_model)][name]["model"]().eval()
robustbench.utils.load_model = load_model
robustbench.data.load_cifar10 = lambda n_examples: (torch.rand(n_examples, 3, 32, 32), torch.arange(n_examples) % 10)
"""


def test_the_five_kinds_of_loop_are_there_and_no_other_snippet() -> None:
    assert len(SNIPPETS) + len(BELOW) == README.count("```python")
    names = " ".join(name for name, _ in SNIPPETS)
    for kind in ("Plain PyTorch", "accelerate", "Lightning", "timm", "RobustBench"):
        assert kind in names


def test_the_loss_and_the_attack_of_ones_own_are_what_the_package_takes() -> None:
    found: dict[str, Any] = {}
    for code in OWN_CODE:
        exec(code, found)
    images, labels = torch.rand(4, 3, 2, 2), torch.arange(4) % 3
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    output = found["margin"](network, images, images, labels, gap=0.5)
    assert output.loss.requires_grad
    assert torch.equal(output.logits, network(images))
    adversarial = found["reflected"](network, 0.1)(images, labels)
    torch.testing.assert_close((adversarial - images).abs(), torch.full_like(images, 0.1))


def test_the_data_in_the_readme_train(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(import numpy as np.*?)```", README, re.S)
    (tmp_path / "mydata.py").write_text(code)
    settings = ["data.name=python:mydata:noise", "optim.epochs=1", "evaluate.steps=1", "attack.steps=1"]
    code, _, err = run("train", "digits", "--out", "run", *sets(settings), cwd=tmp_path)
    assert code == 0, err
    with np.load(tmp_path / "run" / "probe" / "001.npz") as result:
        assert result["matrix"].shape == (3, 3)


@pytest.mark.parametrize(("name", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_snippet_runs(name: str, code: str, tmp_path: Path) -> None:
    if "import lightning" in code and importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    prelude = "import torch; torch.set_num_threads(1)\n" + (OFFLINE if "robustbench" in code else "")
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout)  # each prints what it measured
    says_robust = re.search(r"\bRA( \(\S+\))? = ", done.stdout) is not None
    assert says_robust == ("attack(images" in code or "run(" in code)


def test_the_recipe_in_the_readme_is_one(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^```toml\n(.*?)^```", README, re.M | re.S)
    (tmp_path / "mine.toml").write_text(recipe)
    assert load_recipe(str(tmp_path / "mine.toml")).distill[0].weight == 0.5


def test_the_loss_in_the_readme_trains(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(import torch\.nn\.functional as F.*?)```", README, re.S)
    (tmp_path / "mylosses.py").write_text(code)
    settings = ["objective.loss=python:mylosses:margin", "objective.options.gap=2.0", "optim.epochs=1"]
    settings += ["data.train_per_class=5", "data.test_limit=20", "evaluate.steps=1"]
    code, _, err = run("train", "digits", "--out", "run", *sets(settings), cwd=tmp_path)
    assert code == 0, err


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A network as a run of preact_linf saves it, and what RobustBench's ``load_model`` makes of the README's entry."""
    (code,) = OF_A_RUN
    recipe = load_recipe("preact_linf").model
    torch.manual_seed(0)
    model = build_model(recipe.name, num_classes=10, input_size=(3, 32, 32), mean=recipe.mean, std=recipe.std)
    model(torch.rand(8, 3, 32, 32))  # moves BatchNorm's statistics
    description = {"model": recipe.model_dump(), "classes": list("0123456789"), "input_size": [3, 32, 32]}
    save_checkpoint(tmp_path / "runs/preact_linf/best.safetensors", model.eval(), description)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)

    import robustbench
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    entries = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
    monkeypatch.setitem(entries, "Mine", {"model": names["Mine"], "gdrive_id": "none"})
    return model, robustbench.load_model("Mine", dataset="cifar10", threat_model="Linf")


def test_a_run_becomes_an_entry_of_robustbench(entry: tuple[torch.nn.Module, torch.nn.Module]) -> None:
    model, loaded = entry
    images = torch.rand(4, 3, 32, 32)
    assert not loaded.training
    torch.testing.assert_close(loaded(images), model(images))


@pytest.mark.slow
def test_robustbench_s_benchmark_takes_it(
    entry: tuple[torch.nn.Module, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    import robustbench

    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        labels = entry[0](images).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % 10
    monkeypatch.setattr("robustbench.eval.load_clean_dataset", lambda *_: (images, labels))
    for network in entry:
        figures = robustbench.benchmark(network, n_examples=4, dataset="cifar10", threat_model="Linf", eps=0.1)
        assert figures == (0.5, 0.0)
