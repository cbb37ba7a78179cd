"""A loss is added by one entry of OBJECTIVES: adversarial logit pairing, as CONTRIBUTING.md tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.runs import Quiet, tiny
from torch import Tensor

from ccf_plugin import OBJECTIVES, InputError, Objective, StepOutput, train
from ccf_plugin.report.page import build_report
from ccf_plugin.training.objectives import Forward, build_objective


def alp(forward: Forward, images: Tensor, adversarial: Tensor, labels: Tensor, *, beta: float = 0.5) -> StepOutput:
    """CE(f(x'), y) + β · mean of ‖f(x) − f(x')‖² over samples (Kannan et al. 2018, Section 3.2)."""
    clean, logits = forward(images), forward(adversarial)
    pairing = (clean - logits).square().sum(1).mean()
    return StepOutput(F.cross_entropy(logits, labels) + beta * pairing, logits)


ALP = Objective(alp, "adversarial logit pairing", beta=0.5, takes_smoothing=False, why_not="which has no such term")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "alp", ALP)


def test_its_formula() -> None:
    weight = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    images = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    # f(x) = (-1, 4.5), f(x') = (0, 3) for x' = (1.2, 1.2): the pairing is 1 + 2.25, the cross-entropy log(1 + e^-3).
    adversarial = torch.tensor([[1.2, 1.2]], dtype=torch.float64)
    loss = build_objective("alp", beta=2.0)
    output = loss(lambda x: x @ weight.T, images, adversarial, torch.tensor([1]))
    expected = torch.tensor(3.0, dtype=torch.float64).neg().exp().log1p() + 2 * 3.25
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)


def test_recipes_know_it_and_a_run_trains_by_it(tmp_path: Path) -> None:
    recipe = tiny("objective.loss=alp", "optim.epochs=1")
    assert recipe.attack.name == "PGD"
    run = train(recipe, tmp_path / "run", Quiet())
    assert run.rows[0].train_robust_accuracy is not None
    assert "loss = &#34;alp&#34;" in build_report([run.folder])


def test_its_faults_follow_from_its_entry() -> None:
    with pytest.raises(InputError, match=r"'mart', 'alp' or 'python:package.module:function', found 'alpp'"):
        tiny("objective.loss=alpp")
    with pytest.raises(InputError, match="label_smoothing: expected 0 with loss 'alp', which has no such term"):
        tiny("objective.loss=alp", "objective.label_smoothing=0.1")
