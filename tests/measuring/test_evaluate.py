"""Measuring finished models: against plain passes, on real images, and against the golden figures."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
from support.noise import start_at_own_noise
from support.precise import InFloat64
from support.tolerances import rounding, terms_of, undecided

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.evaluate import AttackSettings, MeasuredSplit, measure
from ccf_plugin.measuring.settings import ProbeOptions
from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.attacks import Attack
from ccf_plugin.zoo.datasets import ImageData, Split, load_data
from ccf_plugin.zoo.models import build_model, load_model

CLASSES = ("a", "b", "c")


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("narrow_preact_resnet18", num_classes=3, input_size=(1, 8, 8), options={"width": 4}).eval()


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(30) % 3)


def test_figures_equal_those_of_plain_separate_passes(model: torch.nn.Module, split: Split) -> None:
    head, model = model.linear, InFloat64(model)  # type: ignore[assignment]
    threat = threat_model(eps="16/255", steps=5)
    result = measure(model, MeasuredSplit(split, CLASSES), AttackSettings(threat, seed=3), batch_size=30)
    images, labels = split.images.float() / 255, split.labels
    with pytest.MonkeyPatch.context() as patch:
        start_at_own_noise(patch, 3)
        attacked = torchattacks.PGD(model, eps=16 / 255, alpha=4 / 255, steps=5)(images, labels)
    features: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _, args, __: features.append(args[0]))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        logits, clean_logits = model(attacked).double().numpy(), model(images).double().numpy()
    handle.remove()
    correct, clean = ((one.argmax(1) == labels.numpy()).mean() for one in (logits, clean_logits))
    losses = [np.log(np.exp(one).sum(1)) - one[np.arange(30), labels] for one in (clean_logits, logits)]
    assert [result.clean_loss, result.robust_loss] == pytest.approx([loss.mean() for loss in losses], rel=rounding(30))
    assert result.robust_accuracy == pytest.approx(float(correct))
    assert result.clean_accuracy == pytest.approx(float(clean))
    weight = head.weight.detach()  # type: ignore[union-attr]
    vectors = torch.stack([(features[0][labels == k] * weight[k]).double().mean(0) for k in range(3)])
    units = vectors / vectors.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(result.matrix, (units @ units.T).numpy(), atol=rounding(features[0].numel()))


def test_the_result_says_where_it_comes_from(model: torch.nn.Module, split: Split) -> None:
    threat = threat_model(norm="L2", eps=0.5, steps=2)
    data = MeasuredSplit(split, CLASSES, "npz:x")
    result = measure(model, data, AttackSettings(threat, seed=7), model_name="mine")
    assert result.threat == {
        "attack": "PGDL2",
        "norm": "L2",
        "eps": 0.5,
        "step_size": 0.0625,
        "steps": 2,
        "per_image_noise": True,
        "seed": 7,
        "precision": "float32",
    }
    assert result.data == {"name": "npz:x", "split": "test", "count": 30, "input_size": [1, 8, 8]}
    assert (result.model, result.class_names, result.model_mode) == ("mine", CLASSES, "eval")
    assert measure(model, data).threat is None


@pytest.mark.parametrize(("name", "norm"), [("PGD", "Linf"), ("PGD", "L2"), ("TPGD", "Linf"), ("DIFGSM", "Linf")])
def test_an_image_is_attacked_alike_in_any_batch_process_and_selection(
    name: str, norm: str, model: torch.nn.Module, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = InFloat64(model)
    settings = AttackSettings(threat_model(norm=norm, eps="16/255" if norm == "Linf" else 0.5, steps=3), name, seed=2)
    seen: dict[bytes, list[torch.Tensor]] = {}
    forward = Attack.__call__

    def recorded(self: Attack, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        adversarial = forward(self, images, labels)
        for image, found in zip(images, adversarial, strict=True):
            seen.setdefault(image.numpy().tobytes(), []).append(found)
        return adversarial

    monkeypatch.setattr(Attack, "__call__", recorded)
    parts = [split, split, split, split.part(0, 2), split.part(1, 2), split.subset(torch.arange(29, -1, -4))]
    for part, batch_size in zip(parts, (30, 7, 1, 30, 4, 5), strict=True):
        measure(model, MeasuredSplit(part, CLASSES), settings, batch_size=batch_size)
    assert [len(found) for found in seen.values()].count(4) + [len(found) for found in seen.values()].count(5) == 30
    for first, *others in seen.values():
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=1e-6)


def test_an_attack_whose_noise_is_the_batchs_says_so(model: torch.nn.Module, split: Split) -> None:
    result = measure(model, MeasuredSplit(split, CLASSES), AttackSettings(threat_model(steps=1), "APGD"))
    assert result.threat is not None
    assert result.threat["per_image_noise"] is False


def test_a_seed_repeats_the_figures_and_leaves_the_callers_random_state(model: torch.nn.Module, split: Split) -> None:
    threat = threat_model(steps=2)
    before = torch.get_rng_state()
    attack = AttackSettings(threat, seed=1)
    first, second = (measure(model, MeasuredSplit(split, CLASSES), attack) for _ in range(2))
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_modes_are_as_before(model: torch.nn.Module, split: Split) -> None:
    model.train()
    model.bn.eval()  # type: ignore[union-attr, operator]
    before = {name: module.training for name, module in model.named_modules()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    measure(model, MeasuredSplit(split, CLASSES), AttackSettings(threat_model(steps=1)))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("batch_size", [7, 30])
def test_another_number_of_classes_is_refused(model: torch.nn.Module, split: Split, batch_size: int) -> None:
    with pytest.raises(InputError, match="expected a model of 4 classes for this data, found a head of 3"):
        measure(model, MeasuredSplit(split, ("a", "b", "c", "d")), batch_size=batch_size)


def _trained_resnet18(outside_data: Path, **options: int) -> tuple[torch.nn.Module, ImageData]:
    checkpoint = Path(str(resources.files("pyautoattack"))) / "examples" / "model_test.pt"
    loaded = load_model("python:pyautoattack.examples.resnet:ResNet18", checkpoint=checkpoint)
    data = load_data(f"npz:{outside_data / 'cifar10_test1000.npz'}", splits=("test",), **options)  # type: ignore[arg-type]
    return loaded.model, data


def test_a_trained_network_on_real_images_gives_the_golden_features_figures(
    golden: dict[str, np.ndarray], outside_data: Path
) -> None:
    network, data = _trained_resnet18(outside_data, test_limit=100)
    assert data.test is not None
    result = measure(network, MeasuredSplit(data.test, data.classes), probe=ProbeOptions(instances=True))
    chosen = np.sort(np.concatenate([np.flatnonzero(golden["labels"] == k)[:10] for k in range(10)]))
    features, labels, weight = golden["features"][chosen].astype(float), golden["labels"][chosen], golden["weight"]
    vectors = np.stack([(features[labels == k] * weight[k]).mean(0) for k in range(10)])
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(result.matrix, units @ units.T, atol=1e-5)
    logits = golden["features"][chosen] @ weight.T + golden["bias"]
    expected = (logits.argmax(1) == labels).mean()
    assert result.clean_accuracy == pytest.approx(expected, abs=_leeway(network, logits))


def _leeway(network: torch.nn.Module, logits: np.ndarray) -> float:
    """Of an accuracy: the share of images of which rounding decides, 0 but for a rare image."""
    share = undecided(torch.from_numpy(logits), rounding(terms_of(network))) / len(logits)
    assert share <= 0.01
    return share + 1e-9


@pytest.mark.slow
def test_the_golden_figures_clean(golden: dict[str, np.ndarray], outside_data: Path) -> None:
    network, data = _trained_resnet18(outside_data)
    assert data.test is not None
    result = measure(network, MeasuredSplit(data.test, data.classes), probe=ProbeOptions(instances=True))
    logits = golden["features"] @ golden["weight"].T + golden["bias"]
    assert result.clean_accuracy == pytest.approx(0.937, abs=_leeway(network, logits))
    assert result.cas == pytest.approx(13.479, abs=1e-3)
    assert result.instance_cas == pytest.approx(18.810, abs=1e-3)


@pytest.mark.slow
def test_the_golden_figures_under_attack(outside_data: Path) -> None:
    network, data = _trained_resnet18(outside_data)
    assert data.test is not None
    attack = AttackSettings(threat_model(eps="1/255", steps=20))
    result = measure(network, MeasuredSplit(data.test, data.classes), attack, probe=ProbeOptions(instances=True))
    assert result.robust_accuracy == pytest.approx(0.407, abs=0.01)
    assert result.cas == pytest.approx(7.00, abs=0.1)
    assert result.instance_cas == pytest.approx(14.93, abs=0.1)
    assert result.average_instance_cas == pytest.approx(4.57, abs=0.1)  # over all pairs, Section 5.3
