from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import save_checkpoint

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.models import build_model, load_model
from ccf_plugin.zoo.normalize import Normalize
from ccf_plugin.zoo.preact import NarrowPreActResNet


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 32, 32), (3, 17, 40), (4, 64, 64)])
@pytest.mark.parametrize("width", [1, 16])
def test_narrow_network_takes_any_size(size: tuple[int, int, int], width: int) -> None:
    model = build_model("narrow_preact_resnet18", num_classes=7, input_size=size, options={"width": width})
    assert model(torch.rand(2, *size)).shape == (2, 7)
    assert model.get_submodule("linear").in_features == 8 * width


def test_narrow_network_of_width_64_is_the_papers_network() -> None:
    torch.manual_seed(0)
    paper = build_model("preact_resnet18", num_classes=10, input_size=(3, 32, 32)).eval()
    narrow = NarrowPreActResNet(num_classes=10, width=64).eval()
    narrow.load_state_dict(paper.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert type(paper).__module__ == "robustbench.model_zoo.architectures.resnet"
    assert sum(parameter.numel() for parameter in paper.parameters()) == 11_172_170
    torch.testing.assert_close(narrow(images), paper(images))


def test_blocks_set_the_depth() -> None:
    model = build_model("narrow_preact_resnet18", num_classes=2, input_size=(1, 8, 8), options={"blocks": [1, 1, 1, 1]})
    assert len(model.get_submodule("layer1")) == 1


def test_normalisation_is_a_layer() -> None:
    arguments: dict[str, Any] = {"num_classes": 2, "input_size": (1, 8, 8), "options": {"width": 2}}
    model = build_model("narrow_preact_resnet18", **arguments, mean=[0.25], std=[0.5]).eval()
    images = torch.rand(2, 1, 8, 8)
    assert [name for name, _ in model.named_children()] == ["normalize", "model"]
    assert torch.equal(model.get_submodule("normalize")(images), (images - 0.25) / 0.5)
    assert torch.equal(model(images), model.get_submodule("model")((images - 0.25) / 0.5))
    assert {"normalize.mean", "normalize.std"} <= set(model.state_dict())
    assert Normalize([0.1] * 5, [1.0] * 5)(torch.rand(1, 5, 2, 2)).shape == (1, 5, 2, 2)
    with pytest.raises(ValueError, match="expected images of 3 channels, found 1"):  # broadcasting would give 3
        Normalize([0.1] * 3, [1.0] * 3)(torch.rand(1, 1, 2, 2))


def test_timm_takes_the_data_s_channels_size_and_options() -> None:
    vit = build_model("timm:vit_tiny_patch16_224", num_classes=4, input_size=(3, 32, 32), options={"depth": 1})
    assert vit(torch.rand(1, 3, 32, 32)).shape == (1, 4)
    assert build_model("timm:resnet18", num_classes=4, input_size=(1, 32, 32))(torch.rand(2, 1, 32, 32)).shape == (2, 4)


def test_robustbench_architecture_for_a_recipe() -> None:
    model = build_model("robustbench:Rade2021Helper_R18_extra", num_classes=10, input_size=(3, 32, 32))
    assert model.training
    with pytest.raises(InputError, match="has 10 classes, the data has 7"):
        build_model("robustbench:Rade2021Helper_R18_extra", num_classes=7, input_size=(3, 32, 32))


def test_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from torch import nn\ndef net(num_classes, hidden=3):\n    return nn.Linear(hidden, num_classes)\n"
    (tmp_path / "own_network.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    model = build_model("python:own_network:net", num_classes=6, input_size=(1, 8, 8), options={"hidden": 4})
    assert (model.in_features, model.out_features) == (4, 6)


NARROW = "narrow_preact_resnet18"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_narrow_network_has_the_sizes_of_its_file(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = NarrowPreActResNet(num_classes=7, channels=2, width=3, blocks=(1, 2, 1, 1)).eval()
    torch.save({"net": {prefix + key: value for key, value in theirs.state_dict().items()}}, tmp_path / "net.pth")
    ours = load_model(NARROW, checkpoint=tmp_path / "net.pth").model
    images = torch.rand(2, 2, 8, 8)
    torch.testing.assert_close(ours(images), theirs(images))
    with pytest.raises(InputError, match="another architecture"):
        load_model(NARROW, checkpoint=tmp_path / "net.pth", options={"width": 4})


def test_an_option_may_be_code_but_not_that_of_a_file(tmp_path: Path) -> None:
    spec, options = "python:zoo.own_networks:Activated", {"activation": "python:torch.nn:Tanh", "n_classes": 3}
    network = build_model(spec, num_classes=3, input_size=(1, 4, 4), options=options)
    assert isinstance(network.get_submodule("activation"), torch.nn.Tanh)
    described = {"model": {"name": spec, "options": options}, "classes": ["a", "b", "c"], "input_size": [1, 4, 4]}
    save_checkpoint(tmp_path / "w.safetensors", network, described)
    with pytest.raises(InputError, match=r"name it: options=\{'activation': 'python:torch\.nn:Tanh'\}"):
        load_model(spec, checkpoint=tmp_path / "w.safetensors")
    given = {"activation": "python:torch.nn:Tanh"}
    loaded = load_model(spec, checkpoint=tmp_path / "w.safetensors", options=given, num_classes=3).model
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("narrow_preact", {}, "did you mean 'narrow_preact_resnet18'"),
        ("preact_resnet18", {"input_size": (3, 64, 64)}, "3×64×64; use narrow_preact_resnet18"),
        ("preact_resnet18", {"options": {"width": 8}}, "no option 'width'"),
        (NARROW, {"options": {"widht": 8}}, "its options: width, blocks; did you mean 'width'"),
        (NARROW, {"options": {"width": 0}}, "width: expected a whole number"),
        (NARROW, {"options": {"blocks": [2, 2]}}, "four counts"),
        (NARROW, {"mean": [0.5], "std": [0.5]}, "mean: expected 3 values, one per channel, found 1 values"),
        (NARROW, {"mean": [0.5] * 3}, "std: expected 3 values, one per channel, found nothing"),
        (NARROW, {"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, "positive"),
        ("timm:resne18", {}, "did you mean 'resnet18'"),
        ("timm:resnet18", {"options": {"widht": 8}}, "refuses its options: .*widht"),
        ("timm:vit_tiny_patch16_224", {"options": {"widht": 8}}, "refuses its options: .*widht"),
        ("python:torch.nn:Linear", {}, "calling it with {} failed"),
        ("python:torch.nn", {}, "expected python:package.module:name"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_model(name, **{"num_classes": 10, "input_size": (3, 32, 32), **arguments})
    assert "\n" not in str(caught.value)
