"""Grad-CAM against the formula by hand and by autograd, on CNNs and ViTs; which images; features that classes share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.tolerances import rounding, terms_of
from torch import Tensor, nn
from torch.nn import functional as F

from ccf_plugin.engine.forward import Forward
from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.measuring.compare import name_sides
from ccf_plugin.measuring.evaluate import MeasuredSplit
from ccf_plugin.measuring.gradcam import find_layer, grad_cam
from ccf_plugin.measuring.pictures import draw_saliency
from ccf_plugin.measuring.saliency import Example, Saliency, View, saliency, shared_features
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.measuring.subject import Subject, load_subject
from ccf_plugin.zoo.datasets import Split
from ccf_plugin.zoo.models import build_model
from ccf_plugin.zoo.sources import LoadedModel


class SmallCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.relu(self.conv(images)).mean((2, 3)))
        return logits


def _scaled(maps: Tensor, size: int) -> Tensor:
    maps = F.interpolate(maps.clamp(min=0).unsqueeze(1), (size, size), mode="bilinear", align_corners=False).squeeze(1)
    largest = maps.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest, 0.0)


def test_the_map_of_a_convolution_is_the_formula() -> None:
    """After average pooling, ∂logit_y/∂A_c is W[y, c] / (H W) everywhere: the map is relu(Σ_c W[y, c] A_c)."""
    torch.manual_seed(0)
    model, images, labels = SmallCNN(), torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 3])
    layer = find_layer(Forward(model), images)
    assert (layer.name, layer.form, layer.height, layer.width) == ("relu", "channels first", 6, 6)
    maps = F.relu(model.conv(images)).detach()
    expected = torch.einsum("nchw,nc->nhw", maps, model.head.weight[labels].detach())
    torch.testing.assert_close(grad_cam(Forward(model), images, labels, layer), _scaled(expected, 6))


def _vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    known = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    model: nn.Module = timm.models.VisionTransformer(**(known | options))
    nn.init.normal_(model.head.weight)  # type: ignore[union-attr, arg-type]
    return model.eval()


@pytest.mark.parametrize(
    ("options", "layer_name", "prefix"),
    [
        ({}, "blocks.1.norm1", 1),
        ({"qk_norm": True, "num_heads": 4}, "blocks.1.norm1", 1),
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, "norm", 0),
    ],
    ids=["class token", "normalised queries", "averaged tokens"],
)
def test_the_map_of_a_transformer_is_the_formula_on_its_grid(
    options: dict[str, Any], layer_name: str, prefix: int
) -> None:
    model, images, labels = _vit(**options), torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 4])
    layer = find_layer(Forward(model), images)
    assert (layer.name, layer.prefix, layer.height, layer.width) == (layer_name, prefix, 4, 4)
    kept: list[Tensor] = []
    handle = model.get_submodule(layer_name).register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(images)
    handle.remove()
    slopes = torch.autograd.grad(logits.gather(1, labels.unsqueeze(1)).sum(), kept[0])[0][:, prefix:]
    expected = torch.stack(
        [sum(slopes[n, :, c].mean() * kept[0][n, prefix:, c] for c in range(24)).reshape(4, 4) for n in range(3)]  # type: ignore
    )
    torch.testing.assert_close(grad_cam(Forward(model), images, labels, layer), _scaled(expected.detach(), 16))


@pytest.mark.parametrize(
    "name", ["test_vit", "test_efficientnet", "test_byobnet", "resnet10t", "convnext_atto", "xcit_nano_12_p16_224"]
)
def test_families_of_models_have_a_layer(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4).eval()
    size = 224 if name.startswith("xcit") else 160
    images = torch.rand(1, 3, size, size)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layer = find_layer(Forward(model), images)
    assert layer.height * layer.width >= 25
    assert grad_cam(Forward(model.train()), images, torch.tensor([1]), layer).shape == (1, size, size)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_swin_s_channels_stand_last() -> None:
    torch.manual_seed(0)
    options = {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 12,
        "depths": (1, 1),
        "num_heads": (2, 2),
    }
    model = timm.models.SwinTransformer(**options, num_classes=4).eval()
    layer = find_layer(Forward(model), torch.rand(2, 3, 32, 32))
    assert (layer.name, layer.form, layer.height, layer.width) == ("norm", "channels last", 8, 8)
    assert grad_cam(Forward(model), torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), layer).amax() <= 1


def test_a_layer_can_be_named() -> None:
    model = build_model("narrow_preact_resnet18", num_classes=3, input_size=(3, 32, 32), options={"width": 4}).eval()
    images = torch.rand(2, 3, 32, 32)
    assert find_layer(Forward(model), images).height == 4
    assert find_layer(Forward(model), images, "layer4").name == "layer4"
    with pytest.raises(InputError, match=r"layer: expected a layer .* did you mean 'layer4'"):
        find_layer(Forward(model), images, "layer44")


def test_models_without_convolution_or_tokens_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    late = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))  # an output of four dimensions that is no map
    for model in (flat, late):
        with pytest.raises(InputError, match="expected a model with a convolution or a grid of tokens") as caught:
            find_layer(Forward(model), torch.rand(2, 1, 8, 8))
        assert "\n" not in str(caught.value)


def test_captum_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model, images = SmallCNN(), torch.rand(1, 1, 6, 6)
    with pytest.raises(UnavailableError, match=r"captum.* in a clone of ccf_plugin: pip install '\.\[saliency\]'"):
        grad_cam(Forward(model), images, torch.tensor([0]), find_layer(Forward(model), images))


@pytest.fixture(scope="module")
def both(digits_run: Path) -> tuple[Subject, Subject]:
    settings = Settings.of(eps="20/255", steps=3)
    best, last = (load_subject(name, settings) for name in name_sides(str(digits_run), None))
    return best, last


def test_the_examples_are_those_that_only_the_best_gets_right(both: tuple[Subject, Subject]) -> None:
    found = saliency(*both, count=5).examples
    assert len(found) == 5
    assert len({example.label for example in found}) > 1
    for example in found:
        assert example.label == int(both[0].data.split.labels[example.index])
        assert example.best.predicted == example.label != example.last.predicted
        assert torch.equal(example.image, both[0].data.split.images[example.index].float() / 255)
        for subject, view in zip(both, (example.best, example.last), strict=True):
            terms = terms_of(subject.loaded.model)
            assert 0 < (view.image - example.image).abs().max() <= 20 / 255 + 1e-6
            with torch.no_grad():
                (logits,) = subject.loaded.model(view.image.unsqueeze(0))  # alone, where it was one of a batch before
                assert logits[view.predicted] >= logits.max() - rounding(terms, scale=float(logits.abs().max()))
            assert view.saliency.shape == (8, 8)
            assert 0 <= view.saliency.min() <= view.saliency.max() <= 1 + 1e-6
    again = saliency(*both, count=5).examples
    assert [example.index for example in again] == [example.index for example in found]
    assert all(torch.equal(a.best.saliency, b.best.saliency) for a, b in zip(again, found, strict=True))


def test_images_by_class_and_by_number(both: tuple[Subject, Subject]) -> None:
    label = saliency(*both, count=1).examples[0].label  # of which there is such an image, whatever the processor
    assert {example.label for example in saliency(*both, class_name=str(label)).examples} == {label}
    named = saliency(*both, indices=[7, 3]).examples
    assert [example.index for example in named] == [7, 3]
    for indices, text in (([450], "from 0 to 449"), ([-1], "found -1")):
        with pytest.raises(InputError, match=text):
            saliency(*both, indices=indices)
    with pytest.raises(UnavailableError, match="found no test image of class '3' among 45"):
        saliency(both[0], both[0], class_name=3)
    with pytest.raises(InputError, match="count: expected at least 1"):
        saliency(*both, count=0)
    with pytest.raises(InputError, match="expected a class's name or its index below 10"):
        saliency(*both, class_name="ten")


def test_the_picture_names_attack_class_image_and_colours() -> None:
    view = View(torch.rand(3, 8, 8), 1, torch.rand(8, 8))
    examples = tuple(Example(index, 0, torch.rand(3, 8, 8), view, view) for index in (7, 12))
    threat = {"attack": "PGD", "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20}
    figure = draw_saliency(Saliency(examples, ("a", "b"), ("cat", "dog"), "pets", threat), ("best", "last"))
    assert (
        figure.get_suptitle().replace("\n", " ") == "attack: PGD-20, Linf, eps 8/255, step 2/255, on each model itself"
    )
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["class cat\nimage 7", "class cat\nimage 12"]
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()][:3] == ["test image", "best says", "last says"]
    assert figure.axes[-1].get_ylabel().startswith("Grad-CAM of the true class")
    assert figure.axes[-1].get_ylim() == (0, 1)
    clean = Saliency(examples, ("a", "b"), ("cat", "dog"), "pets", None)
    assert draw_saliency(clean, ("best", "last")).get_suptitle() == "clean images"


def test_shared_features_and_the_images_that_excite_them() -> None:
    """A linear model: its features are the pixels, so that the images can be told by looking."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 3, 3), dtype=torch.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    classes = ("ant", "bee", "cow", "doe")
    data = MeasuredSplit(Split(images, torch.arange(40) % 4), classes)
    subject = Subject(LoadedModel(model, "m", "m"), data, None, torch.device("cpu"), batch_size=7)
    shared = shared_features(subject, ("ant", "cow"), count=9, images=6)
    assert shared.correlation == subject.measure().matrix[0, 2]
    assert sum(entry.share for entry in shared.features) == pytest.approx(shared.correlation)
    pixels = images.flatten(1).float() / 255
    for entry in shared.features:
        column = pixels[:, entry.feature]
        assert entry.activations == tuple(column.sort(descending=True).values[:6].tolist())
        assert [float(column[index]) for index in entry.images] == list(entry.activations)
