"""Averages of the weights: against plain arithmetic, in a run, and through a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.runs import SHORT, Quiet, assert_same_run, interrupted, tiny
from torch import Tensor, nn

from ccf_plugin.runs.layout import checkpoint_of
from ccf_plugin.runs.log import read_log
from ccf_plugin.training.averaging import WeightAverage
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe import AverageSection
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.zoo.models import load_model


def _moves(section: AverageSection, epochs: int, steps: int = 2) -> tuple[list[float], float]:
    """The weight after each step, 1, 2, 3, …, and the average's at the end."""
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, section)
    weights = []
    for epoch in range(1, epochs + 1):
        for step in range(1, steps + 1):
            with torch.no_grad():
                model.weight.fill_(len(weights) + 1.0)
            weights.append(model.weight.item())
            average.after_step(model, epoch, is_last=step == steps)
    return weights, average.averaged.module.weight.item()


def test_ema_is_its_recursion() -> None:
    weights, found = _moves(AverageSection(kind="ema", decay=0.8), epochs=3)
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.8 * expected + 0.2 * weight
    assert found == pytest.approx(expected, rel=1e-6)


def test_ema_without_decay_is_the_model_itself() -> None:
    weights, found = _moves(AverageSection(kind="ema", decay=0.0), epochs=2)
    assert found == weights[-1]


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_batchnorm_s_statistics_are_averaged_as_the_weights_are(kind: Any) -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, AverageSection(kind=kind, decay=0.75))
    with torch.no_grad():
        for value in (1.0, 2.0, 4.0):
            for one in (model.weight, model.running_mean, model.running_var):
                assert one is not None
                one.fill_(value)
            average.after_step(model, 1, is_last=False)
    expected = 0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 4 if kind == "ema" else 7 / 3
    averaged = average.averaged.module
    assert [float(averaged.weight), float(averaged.running_mean), float(averaged.running_var)] == pytest.approx(
        [expected] * 3
    )


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_other_buffers_are_the_models_own(kind: Any) -> None:
    """Indices of windows, masks of -inf: an average of these would be another network."""
    model = nn.Linear(1, 1)
    model.register_buffer("index", torch.arange(500))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = WeightAverage(model, AverageSection(kind=kind, decay=0.9))
    for _ in range(5):
        average.after_step(model, 1, is_last=False)
    averaged: Any = average.averaged.module
    assert torch.equal(averaged.index, model.index)
    assert torch.equal(averaged.mask, model.mask)


def _weight_norm(parts: dict[str, Tensor]) -> Tensor:
    v, g = parts["v"], parts["g"]
    return v * (g / v.norm(dim=1, keepdim=True))


def _spectral_norm(parts: dict[str, Tensor]) -> Tensor:
    weight, u, v = parts["original"], parts["u"], parts["v"]
    return weight / (u @ weight @ v)


# What makes a layer's weight in every pass: the function, its tensors by their names in the state dict, the formula.
REPARAMETRIZED: dict[str, tuple[Any, dict[str, str], Any]] = {
    "weight_norm": (nn.utils.weight_norm, {"g": "weight_g", "v": "weight_v"}, _weight_norm),
    "spectral_norm": (
        nn.utils.spectral_norm,
        {"original": "weight_orig", "u": "weight_u", "v": "weight_v"},
        _spectral_norm,
    ),
    "weight_norm, a parametrization": (
        nn.utils.parametrizations.weight_norm,
        {"g": "parametrizations.weight.original0", "v": "parametrizations.weight.original1"},
        _weight_norm,
    ),
    "spectral_norm, a parametrization": (
        nn.utils.parametrizations.spectral_norm,
        {
            "original": "parametrizations.weight.original",
            "u": "parametrizations.weight.0._u",
            "v": "parametrizations.weight.0._v",
        },
        _spectral_norm,
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize(("normalise", "names", "formula"), REPARAMETRIZED.values(), ids=REPARAMETRIZED)
def test_what_a_weight_is_computed_from_is_averaged(
    kind: Any, normalise: Any, names: dict[str, str], formula: Any
) -> None:
    torch.manual_seed(0)
    model, images = normalise(nn.Linear(4, 3, bias=False)).double(), torch.rand(5, 4, dtype=torch.float64)
    before = model(images).sum()  # leaves a weight with a graph behind
    average = WeightAverage(model, AverageSection(kind=kind, decay=0.75))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    before.backward()
    seen: list[dict[str, Tensor]] = []
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
        state = model.state_dict()
        seen.append({part: state[name].clone() for part, name in names.items()})
        average.after_step(model, 1, is_last=False)
    trained = {name for name, _ in model.named_parameters()}
    parts = {}
    for part, name in names.items():
        first, second, third = (state[part] for state in seen)
        mean = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third if kind == "ema" else (first + second + third) / 3
        parts[part] = mean if name in trained else third  # of a buffer the last
    expected = images @ formula(parts).T
    torch.testing.assert_close(average.averaged(images), expected)
    torch.testing.assert_close(average.for_evaluation([])(images), expected)
    assert not torch.allclose(model.eval()(images), expected)


@pytest.mark.parametrize("name", ["WeightNormed", "SpectralNormed"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_run_averages_torchs_older_normalisations_and_resumes(name: str, tmp_path: Path) -> None:
    recipe = load_recipe("digits", [f"model={{name='python:training.own_models:{name}'}}", *SHORT, *WAKE])
    whole = train(recipe, tmp_path / "whole", Quiet())
    interrupted(recipe, tmp_path / "stopped", 2)
    assert_same_run(train(recipe, tmp_path / "stopped", Quiet(), resume=True), whole)


def test_swa_is_the_mean_of_the_epochs_ends_between_start_and_stop() -> None:
    _, found = _moves(AverageSection(kind="swa", every="epoch", start_epoch=1, stop_epoch=3), epochs=5)
    assert found == pytest.approx((4 + 6) / 2)  # the weights at the ends of epochs 2 and 3


def test_evaluation_gets_batchnorm_statistics_of_its_own_and_leaves_the_average_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    average = WeightAverage(model, AverageSection(kind="ema"))
    average.after_step(model, 1, is_last=False)
    images = torch.rand(40, 3)
    evaluated: Any = average.for_evaluation(images.split(10))
    torch.testing.assert_close(evaluated[0].running_mean, images.mean(0))
    assert not evaluated.training
    kept: Any = average.averaged.module
    assert torch.equal(kept[0].running_mean, torch.zeros(3))


WAKE = ["average={kind='ema', decay=0.5}", "distill=[{teacher='average', weight=0.5, ramp=[2, 3], weight_after=1.0}]"]


def test_averaged_weights_are_evaluated_probed_and_saved_beside_the_raw_ones(tmp_path: Path) -> None:
    run = train(tiny(*WAKE), tmp_path / "wake", Quiet())
    for name in ("best_average", "last_average", "epochs/002_average"):
        assert load_file(run.folder / f"{name}.safetensors").keys() == load_file(run.folder / "last.safetensors").keys()
    assert (run.folder / "probe" / "003_average.npz").is_file()
    rows = read_log(run.folder)
    assert all(row.cas_average is not None and row.test_robust_accuracy_average is not None for row in rows)
    best = run.best_of("_average")
    assert best is not None
    assert best.test_robust_accuracy_average == max(row.test_robust_accuracy_average or 0 for row in rows)


def test_a_run_that_averages_stands_for_its_averaged_weights(tmp_path: Path) -> None:
    run = train(tiny(*WAKE), tmp_path / "wake", Quiet())
    named = {spec: load_model(str(run.folder / spec)) for spec in ("", "best_average.safetensors", "best.safetensors")}
    states = {spec: loaded.model.state_dict() for spec, loaded in named.items()}
    assert all(torch.equal(value, states["best_average.safetensors"][key]) for key, value in states[""].items())
    assert any(not torch.equal(value, states["best.safetensors"][key]) for key, value in states[""].items())
    assert [loaded.name for loaded in named.values()] == ["wake", "wake", "wake-best-raw"]
    assert load_model(str(run.folder / "last_average.safetensors")).name == "wake-last"
    assert load_model(str(run.folder / "epochs" / "002_average.safetensors")).name == "wake-002_average"
    assert named[""].spec == str(run.folder / "best_average.safetensors")


def test_wake_before_its_ramp_is_madry_bit_for_bit(tmp_path: Path) -> None:
    wake = train(tiny(*WAKE, "optim.epochs=2"), tmp_path / "wake", Quiet())
    madry = train(tiny("optim.epochs=2"), tmp_path / "madry", Quiet())
    first, second = (load_file(run.folder / "last.safetensors") for run in (wake, madry))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_resumed_run_with_an_average_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(tiny(*WAKE), tmp_path / "whole", Quiet())
    for epoch in (1, 2):
        folder = tmp_path / f"stopped{epoch}"
        interrupted(tiny(*WAKE), folder, epoch)
        resumed = train(tiny(*WAKE), folder, Quiet(), resume=True)
        assert_same_run(resumed, whole)
        first, second = (load_file(run.folder / "last_average.safetensors") for run in (resumed, whole))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_stopped_before_its_average_was_evaluated_is_its_raw_weights(tmp_path: Path) -> None:
    late = tiny("average={kind='ema', start_epoch=2}", "evaluate.every=2", "optim.epochs=4")
    interrupted(late, tmp_path / "run", 3)
    assert (tmp_path / "run" / "last_average.safetensors").is_file()
    assert checkpoint_of(tmp_path / "run", "last").name == "last.safetensors"
    assert checkpoint_of(tmp_path / "run", "best").name == "best.safetensors"
