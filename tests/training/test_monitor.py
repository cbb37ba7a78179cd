"""What would fail at the first evaluated epoch fails before the first step, and the look changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import SHORT, Quiet, assert_same_run, contents, interrupted, tiny

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.measuring.subject import load_subject
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.training import loop
from ccf_plugin.training.loop import train
from ccf_plugin.training.monitor import check_measurable
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.setup import prepare


def own(name: str, *more: str) -> Recipe:
    """A recipe of seconds of a network in ``own_models``."""
    model = f"model={{name='python:training.own_models:{name}'}}"
    return load_recipe("digits", [model, *SHORT, *more])


SQUARE = ("evaluate.name=Square", "evaluate.options={n_queries=5}", "objective.loss=standard")
FAILING: dict[str, tuple[tuple[str, ...], str]] = {
    "no head": (("Headless",), r"^probe: .*probabilities, not logits"),
    "a head that is no layer": (("Small", "probe.head=hed"), r"^probe: .*did you mean 'head'"),
    "an entry that is not there": (("Named", "probe.output=three"), r"output='three', found type dict of 'one': shape"),
    "no gradient": (
        ("Constant",),
        r"^evaluate: expected a model that passes a gradient.*none.*evaluate.name = 'Square'",
    ),
    "no gradient for training": (
        ("Constant", "evaluate.name=Square", "evaluate.options={n_queries=5}"),
        r"^attack: .*none reaches them.*attack.name = 'Square', which needs none, or objective.loss = 'standard'$",
    ),
    "no gradient to measure": (
        ("Constant", *SQUARE, "probe.gradients=true"),
        r"^probe.gradients: expected a model that passes a gradient.*none reaches them.*; set probe.gradients = false$",
    ),
    "gradients that fail": (
        ("WithoutBackward", *SQUARE, "probe.gradients=true"),
        r"^probe.gradients: expected a model whose gradients can .*NotImpl.*; set probe.gradients = false",
    ),
    "two entries": (("Pair",), r"^probe: expected one entry of the output.*, found 2: .*output=0 or output=1"),
    "an attack on three channels": (("Small", "evaluate.name=TIFGSM"), r"^evaluate: .*images of 3 channels"),
}


@pytest.mark.parametrize(("changes", "message"), FAILING.values(), ids=FAILING)
def test_what_cannot_be_measured_is_told_before_anything_is_written(
    changes: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Loop", lambda *_: pytest.fail("training had begun"))
    with pytest.raises(InputError, match=message) as caught:
        train(own(*changes), tmp_path / "run", Quiet())
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_resumed_is_looked_at_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(tiny(), folder)
    before = contents(folder)
    with pytest.raises(InputError, match="did you mean 'linear'"):
        train(tiny("probe.head=linea"), folder, Quiet(), resume=True, allow_change=["probe.head"])
    assert contents(folder) == before
    assert train(tiny(), folder, Quiet(), resume=True).is_finished


@pytest.mark.parametrize("noise", ["", "evaluate.name=APGD"])
def test_the_look_leaves_model_and_random_state_as_they_were(noise: str) -> None:
    parts = prepare(own("Noisy", *[noise] * bool(noise)), torch.device("cpu"))
    model = parts.model.train()
    model.body[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    check_measurable(parts)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_look_changes_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = train(tiny(), tmp_path / "looked", Quiet())
    monkeypatch.setattr(loop, "check_measurable", lambda _: None)
    assert_same_run(train(tiny(), tmp_path / "blind", Quiet()), looked)


def test_the_recipes_head_is_measured_and_is_the_runs_own(tmp_path: Path) -> None:
    run = train(own("Headless", "probe.head=gradient", "optim.epochs=1"), tmp_path / "run", Quiet())
    head = CrossClassResult.load(run.folder / "probe" / "001").head
    assert head is not None
    assert (head.name, head.classes, head.features) == ("head", 10, 6)

    spec, file = "python:training.own_models:Headless", run.folder / "best.safetensors"
    for wanted, found in ((None, "gradient"), ("second", "second")):
        subject = load_subject(spec, Settings.of(checkpoint=file, head=wanted))
        assert (subject.probe.head, subject.probe.output) == (found, None)
