"""Training that starts from weights, and teachers with weights of one's own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import Quiet, contents, tiny
from torch import nn

from ccf_plugin.errors import InputError
from ccf_plugin.runs.layout import checkpoint_of
from ccf_plugin.training.distillation import check_teachers, load_teacher
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe import DistillSection
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.setup import prepare
from ccf_plugin.zoo.models import build_model, load_model
from ccf_plugin.zoo.preact import NarrowPreActResNet

CPU = torch.device("cpu")


def network(channels: int = 1) -> nn.Module:
    torch.manual_seed(3)
    model = NarrowPreActResNet(num_classes=10, channels=channels, width=2, blocks=[1, 1, 1, 1])
    model(torch.rand(4, channels, 8, 8))
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny("optim.epochs=1"), tmp_path_factory.mktemp("run") / "first", Quiet()).folder


def test_training_starts_from_a_run_and_says_so_in_its_recipe(run: Path, tmp_path: Path) -> None:
    recipe = tiny("optim.epochs=1", "optim.lr=0.01", f"model.weights={run}")
    weights = load_file(checkpoint_of(run, "best"))
    with torch.random.fork_rng():
        state = prepare(recipe, CPU).model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in state.items())
    second = train(recipe, tmp_path / "second", Quiet()).folder
    assert load_recipe(str(second / "recipe.toml")).model.weights == str(run)
    moved = load_file(checkpoint_of(second, "best"))
    assert not torch.equal(moved["linear.weight"], weights["linear.weight"])
    loaded = load_model(str(second)).model
    assert all(torch.equal(value, moved[key]) for key, value in loaded.state_dict().items())


def other() -> nn.Module:
    options = {"width": 2, "blocks": [1, 1, 1, 1]}
    return build_model("narrow_preact_resnet18", num_classes=10, input_size=(1, 8, 8), options=options)


SWA = {"state_dict": other().state_dict(), "swa_state_dict": network().state_dict()}


@pytest.mark.parametrize(
    ("content", "more", "note"),
    [
        (network().state_dict(), [], ""),
        ({"net": nn.DataParallel(network()).state_dict(), "epoch": 100}, [], "prefix `module.` removed"),
        (SWA, ["model.checkpoint_key=swa_state_dict"], "`swa_state_dict` of the file"),
        (network().state_dict(), ["model.mean=[0.5]", "model.std=[0.2]"], "prefix `model.` added"),
    ],
    ids=["plain", "DataParallel", "one of two", "behind a normalisation"],
)
def test_it_starts_from_files_of_any_code(content: object, more: list[str], note: str, tmp_path: Path) -> None:
    torch.save(content, path := tmp_path / "model_100.pth")
    with pytest.warns(UserWarning, match=note) if note else nullcontext():
        model = prepare(tiny(f"model.weights={path}", *more), CPU).model.eval()
    images = torch.rand(2, 1, 8, 8)
    normalized = (images - 0.5) / 0.2 if len(more) == 2 else images
    torch.testing.assert_close(model(images), network()(normalized))


def test_weights_that_cannot_be_started_from(run: Path, tmp_path: Path) -> None:
    state = network().state_dict() | {"normalize.mean": torch.tensor([0.25]), "normalize.std": torch.tensor([0.5])}
    torch.save(state, path := tmp_path / "a.pth")
    expected = rf"model\.mean: expected that of {path}, mean = \[0\.25\] and std = \[0\.5\], found none"
    with pytest.warns(UserWarning, match="normalisation"), pytest.raises(InputError, match=expected):
        prepare(tiny(f"model.weights={path}"), CPU)
    with pytest.raises(InputError, match=r"model\.weights: expected a checkpoint or a run, found none at gone"):
        train(tiny("model.weights=gone"), tmp_path / "new", Quiet())
    before = contents(run)
    with pytest.raises(InputError, match=r"model\.weights: expected weights outside the run's own folder"):
        train(tiny(f"model.weights={run}"), run, Quiet(), force=True)
    assert contents(run) == before
    with pytest.raises(InputError, match=r"model\.checkpoint_key: expected model\.weights that it is a key of"):
        tiny("model.checkpoint_key=net")


def test_a_teacher_takes_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"net": network(3).state_dict()}, path := tmp_path / "teacher.pth")
    section = DistillSection(
        teacher="narrow_preact_resnet18",
        checkpoint=str(path),
        options={"width": 2, "blocks": [1, 1, 1, 1]},
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.2, 0.1],
        weight=0.5,
    )
    check_teachers([section], tmp_path / "out")
    with pytest.warns(UserWarning, match="`net` of the file"):
        teacher = load_teacher(
            section, classes=[str(k) for k in range(10)], input_size=(3, 8, 8), device=CPU, precision="float32"
        )
    images = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor(section.mean).view(3, 1, 1), torch.tensor(section.std).view(3, 1, 1)
    torch.testing.assert_close(teacher.forward(images), network(3)((images - mean) / std))
    with pytest.raises(InputError, match="expected a teacher outside the run's own folder"):
        check_teachers([section], tmp_path)
    with pytest.raises(InputError, match=r"expected the teacher's checkpoint at gone\.pth, found none"):
        check_teachers([section.model_copy(update={"checkpoint": "gone.pth"})], tmp_path / "out")
