"""[crossclass]: CAS of the step as a term of the loss; and losses of one's own that read the head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import Quiet, assert_same_run, interrupted, tiny

from ccf_plugin import CrossClassProbe
from ccf_plugin.errors import InputError
from ccf_plugin.probe.null import expected_cas
from ccf_plugin.training.batches import Batch
from ccf_plugin.training.loop import Loop, train
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import CrossClassSection, Recipe
from ccf_plugin.training.setup import prepare

TERM = "crossclass={weight=4.0, ramp=[1, 3]}"
OWN = "objective.loss=python:training.own_losses:keeping_cross_class_features"


def _loop(recipe: Recipe, out: Path) -> tuple[Loop, Batch]:
    processes = Processes(recipe.device, folder=out)
    loop = Loop(prepare(recipe, processes.device), processes)
    return loop, next(iter(loop.method.batches.epoch(1)))


@pytest.mark.parametrize("loss", ["madry", "trades"])
@pytest.mark.parametrize("term", ["cas", "excess"])
def test_the_loss_falls_by_the_weight_times_the_probes_cas(term: str, loss: str, tmp_path: Path) -> None:
    loop, batch = _loop(tiny(f"objective.loss={loss}", f"crossclass={{weight=4.0, term='{term}'}}"), tmp_path)
    adversarial, model = (batch.images + 0.1).clamp(0, 1), loop.state.model.eval()

    def whole_loss() -> float:
        return loop._loss(loop.method.trained_forward, 1, batch, adversarial).loss.item()

    with CrossClassProbe(model) as probe:
        with probe.capture():
            found = whole_loss()  # TRADES' last pass is the adversarial one too
        probe.update(batch.labels)
        with pytest.warns(UserWarning, match="no samples of"):
            result = probe.compute()
    by_chance = float(expected_cas(torch.from_numpy(result.class_attribution))) if term == "excess" else 0.0
    loop.method.term = None
    assert whole_loss() - found == pytest.approx(4 * (result.cas - by_chance) / 90, abs=1e-5)


def test_without_weight_it_changes_no_bit_and_in_its_ramp_it_does_and_resumes(tmp_path: Path) -> None:
    plain = train(tiny(), tmp_path / "plain", Quiet())
    assert_same_run(train(tiny("crossclass={weight=0.0}"), tmp_path / "zero", Quiet()), plain)
    whole = train(tiny(TERM), tmp_path / "whole", Quiet())
    assert whole.rows[0].train_loss == plain.rows[0].train_loss  # before the ramp
    assert whole.rows[1].train_loss != plain.rows[1].train_loss
    interrupted(tiny(TERM), tmp_path / "stopped", 2)
    assert_same_run(train(tiny(TERM), tmp_path / "stopped", Quiet(), resume=True), whole)


@pytest.mark.slow
def test_it_goes_with_the_other_parts_of_a_loss(tmp_path: Path) -> None:
    for number, others in enumerate(
        (
            ["objective.loss=trades"],
            ["objective.loss=mart"],
            ["objective.loss=standard"],
            ["awp={gamma=0.01}"],
            ["average={kind='ema'}", "distill=[{teacher='average', weight=0.5}]"],
            ["ensembling={ramp=[1, 2]}", "precision=bf16"],
        )
    ):
        plain = train(tiny(*others), tmp_path / f"plain{number}", Quiet())
        found = train(tiny("crossclass={weight=4.0}", *others), tmp_path / f"with{number}", Quiet())
        assert found.rows[-1].train_loss < plain.rows[-1].train_loss


def test_a_loss_of_ones_own_has_features_and_head(tmp_path: Path) -> None:
    """The built-in term written by hand gives the same run, to rounding."""
    built_in = train(tiny("crossclass={weight=4.0}", "optim.epochs=1"), tmp_path / "term", Quiet())
    own = train(tiny(OWN, "objective.options.weight=4.0", "optim.epochs=1"), tmp_path / "own", Quiet())
    assert own.rows[0].train_loss == pytest.approx(built_in.rows[0].train_loss, rel=1e-5)


@pytest.mark.parametrize(("ramp", "weights"), [(None, [2, 2, 2, 2]), ([1, 3], [0, 1, 2, 2])])
def test_the_ramp(ramp: list[int] | None, weights: list[float]) -> None:
    section = CrossClassSection(weight=2.0, ramp=ramp)
    assert [section.weight_at(epoch) for epoch in (1, 2, 3, 4)] == weights


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["crossclass={}"], r"crossclass.weight: expected a value, found none"),
        (["crossclass={weight=1.0, term='icas'}"], r"crossclass.term: expected 'cas' or 'excess', found 'icas'"),
        (["crossclass={weight=1.0, ramp=[3, 2]}"], r"crossclass.ramp: expected a ramp that ends after it starts"),
        (["crossclass={weight=1.0, wieght=2}"], "did you mean 'weight'"),
    ],
)
def test_faults(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(*settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["crossclass={weight=1.0}", "compile=true"], "^compile: expected false or 'auto' with crossclass"),
        ([OWN, "compile=true"], "^compile: expected false or 'auto' with objective.loss"),
        (["crossclass={weight=1.0}", "probe.head=gradient"], "^crossclass: expected a head that is one linear layer"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_line_before_anything_is_written(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(tiny(*settings), tmp_path / "run", Quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "log.csv").exists()


def test_a_loss_whose_logits_are_no_passes_is_told(tmp_path: Path) -> None:
    recipe = tiny("crossclass={weight=1.0}", "objective.loss=python:training.own_losses:scaled")
    with pytest.raises(InputError, match="what forward returned, unchanged"):
        train(recipe, tmp_path / "run", Quiet())
