"""Temporal ensembling against its recursion in float64, and inside the loop."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.runs import Quiet, assert_same_run, interrupted, tiny

from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe import EnsemblingSection
from ccf_plugin.training.temporal_ensembling import TemporalEnsemble

CPU = torch.device("cpu")


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_targets_and_loss_equal_the_formula() -> None:
    generator = np.random.default_rng(0)
    section = EnsemblingSection(weight=7.0, decay=0.6, ramp=[2, 6])
    ensemble = TemporalEnsemble(section, 5, 4, CPU)
    running = np.zeros((5, 4))
    for epoch in range(2, 6):
        rows = generator.permutation(5)[:3]
        clean, adversarial = generator.normal(size=(2, 3, 4))
        running[rows] = 0.6 * running[rows] + 0.4 * _softmax(clean)
        targets = running[rows] / running[rows].sum(1, keepdims=True)
        weight = 7.0 * math.exp(-5 * (1 - (epoch - 2) / 4) ** 2)
        expected = weight * ((_softmax(adversarial) - targets) ** 2).mean()
        ensemble.update(torch.from_numpy(rows), torch.from_numpy(clean).float())
        loss = ensemble.loss(epoch, torch.from_numpy(rows), torch.from_numpy(adversarial).float())
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_weight_begins_with_the_ramp_and_is_full_at_its_end() -> None:
    ensemble = TemporalEnsemble(EnsemblingSection(weight=30.0, ramp=[90, 150]), 1, 2, CPU)
    assert ensemble.weight(89) == 0
    assert ensemble.weight(90) == pytest.approx(30 * math.exp(-5))
    assert ensemble.weight(120) == pytest.approx(30 * math.exp(-1.25))
    assert ensemble.weight(150) == ensemble.weight(200) == 30


def test_its_gradient_reaches_the_adversarial_logits_alone() -> None:
    ensemble = TemporalEnsemble(EnsemblingSection(ramp=[1, 2]), 3, 4, CPU)
    ensemble.predictions = ensemble.predictions.double()
    clean = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    ensemble.update(torch.arange(3), clean)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: ensemble.loss(2, torch.arange(3), z), logits)
    ensemble.loss(2, torch.arange(3), logits).backward()
    assert clean.grad is None


ENSEMBLING = "ensembling={weight=5.0, decay=0.5, ramp=[1, 2]}"


def test_before_its_ramp_it_changes_no_bit_and_with_weight_it_does(tmp_path: Path) -> None:
    plain = train(tiny(), tmp_path / "plain", Quiet())
    before = train(tiny("ensembling={ramp=[4, 5]}"), tmp_path / "before", Quiet())
    assert_same_run(plain, before)
    during = train(tiny(ENSEMBLING), tmp_path / "during", Quiet())
    assert during.rows[0].train_loss != plain.rows[0].train_loss


def test_its_predictions_are_part_of_the_state(tmp_path: Path) -> None:
    whole = train(tiny(ENSEMBLING), tmp_path / "whole", Quiet())
    predictions = load_file(whole.folder / "state" / "003.safetensors")["ensemble.predictions"]
    assert predictions.shape == (60, 10)
    torch.testing.assert_close(predictions.sum(1), torch.full((60,), 1 - 0.5**3))  # each image three times
    interrupted(tiny(ENSEMBLING), tmp_path / "stopped")
    assert_same_run(train(tiny(ENSEMBLING), tmp_path / "stopped", Quiet(), resume=True), whole)
