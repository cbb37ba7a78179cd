"""`bench` on a tiny recipe: what it counts is right, and what it times adds up. Speed itself is not tested here."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.runs import Quiet, tiny
from torch import nn

from ccf_plugin.bench.speed import bench
from ccf_plugin.training.setup import prepare

STEPS, IMAGES = 4, 60  # of 16 images, ten classes of six


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return bench(tiny("precision=float32"), Quiet(), epochs=2, reference_steps=1)


@pytest.mark.slow
def test_shares_add_up_to_the_epoch(figures: dict[str, Any]) -> None:
    shares = figures["shares"]
    assert shares.keys() == {"data", "attack", "weights' pass", "optimizer", "evaluation", "writing", "other"}
    assert all(share > 0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)
    assert figures["seconds_per_step"] * STEPS < figures["seconds_per_epoch"]
    assert figures["images_per_second"] * figures["seconds_per_step"] * STEPS == pytest.approx(IMAGES)
    assert len(figures["epoch_seconds"]) == 2


@pytest.mark.slow
def test_the_plain_loop_stands_beside_it(figures: dict[str, Any]) -> None:
    plain = figures["reference"]
    assert len(plain["step_seconds"]) == 2
    assert plain["step_ratio"] == pytest.approx(plain["seconds_per_step"] / figures["seconds_per_step"])
    assert plain["extrapolated"] is True


@pytest.mark.slow
def test_it_says_on_what_and_is_plain_json(figures: dict[str, Any]) -> None:
    read = json.loads(json.dumps(figures, allow_nan=False))
    assert read["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"device", "threads", "precision", "recipe", "platform"} <= read.keys()
    assert read["run"] == {"epochs": 3, "seconds": pytest.approx(3 * read["seconds_per_epoch"]), "extrapolated": True}


@pytest.mark.slow
def test_flops_are_those_of_the_networks_layers(figures: dict[str, Any]) -> None:
    """Counted by hand: 2 per multiplication of a layer and pass; a pass back to the images is as much again."""
    model = prepare(tiny(), torch.device("cpu")).model
    per_layer: list[int] = []

    def count(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        per_layer.append(2 * output.numel() * weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)  # type: ignore[arg-type]
    model.eval()(torch.rand(1, 1, 8, 8))
    forward, first = sum(per_layer), per_layer[0]
    attack_steps = 2
    # The pass for the weights needs no gradient of the first layer's input.
    training = attack_steps * 2 * forward + 3 * forward - first
    evaluation = forward + attack_steps * 2 * forward + forward
    assert figures["flops_per_image"]["training"] == training
    assert figures["flops_per_image"]["evaluation"] == pytest.approx(evaluation, rel=0.2)  # and the head is looked for


@pytest.mark.slow
def test_quick_is_a_few_steps_and_an_attack_that_the_plain_loop_lacks_is_measured_alone() -> None:
    figures = bench(tiny("optim.batch_size=8", "attack.norm=L2"), Quiet(), epochs=1, reference_steps=1, quick=True)
    assert figures["train_images"] == 30
    assert figures["run"] is None
    assert "Linf alone" in figures["reference"]["not_measured"]
