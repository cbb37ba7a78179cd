"""Several passes between two updates: which one counts is told where it may be doubted."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, InputError


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()


IMAGES = torch.rand(10, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(10) % 5


def _trades(model: nn.Module, adversarial: Tensor) -> None:
    """The passes of TRADES' own loss: clean, adversarial, and clean again as the target."""
    logits = model(IMAGES)
    divergence = F.kl_div(model(adversarial).log_softmax(1), model(IMAGES).softmax(1), reduction="batchmean")
    (F.cross_entropy(logits, LABELS) + divergence).backward()


@pytest.mark.parametrize("training", [True, False])
def test_the_last_of_several_is_told_once(training: bool) -> None:
    model = _model().train(training)
    probe = CrossClassProbe(model)
    for step in range(3):
        _trades(model, IMAGES + 0.1)
        if step == 0:
            mode = "train" if training else "eval"
            with pytest.warns(UserWarning, match=f"3 passes in {mode} mode on images without a gradient .*capture"):
                probe.update(LABELS)
        else:
            with warnings.catch_warnings(action="error"):
                probe.update(LABELS)


def test_the_captured_pass_counts_and_nothing_is_told() -> None:
    model = _model()
    probe, alone = CrossClassProbe(model, inputs="adversarial"), CrossClassProbe(_model(), inputs="adversarial")
    with warnings.catch_warnings(action="error"):
        with probe.capture():
            model(IMAGES)
            model(IMAGES + 0.1)
        model(IMAGES)
        probe.update(LABELS)
        alone.model(IMAGES + 0.1)
        alone.update(LABELS)
    torch.testing.assert_close(probe.compute().matrix, alone.compute().matrix, rtol=0, atol=0)


@pytest.mark.parametrize("attack", ["PGD", "FGSM", "PGDL2", "MIFGSM"])
def test_passes_inside_an_attack_are_no_doubt(attack: str) -> None:
    model = _model().float()
    probe = CrossClassProbe(model)
    with warnings.catch_warnings(action="error", category=UserWarning):
        for _ in range(2):
            adversarial = getattr(torchattacks, attack)(model)(IMAGES.float(), LABELS)
            F.cross_entropy(model(adversarial), LABELS).backward()
            probe.update(LABELS)


def test_a_run_of_clean_and_adversarial_passes_knows_by_itself() -> None:
    model = _model().float()
    with CrossClassProbe(model) as probe, warnings.catch_warnings(action="error", category=UserWarning):
        result = probe.run([(IMAGES.float(), LABELS)] * 2, torchattacks.PGD(model))
    assert result.robust_accuracy is not None


def test_a_pass_of_another_thread_after_this_one_s_is_refused() -> None:
    model = _model()
    with CrossClassProbe(model) as probe:
        model(IMAGES)
        _in_a_thread(lambda: model(IMAGES.flip(0)))
        with pytest.raises(InputError, match="found one of another thread after it"):
            probe.update(LABELS)
        _in_a_thread(lambda: model(IMAGES))  # this thread made none since: the last pass counts
        probe.update(LABELS)
        assert probe.compute().counts.sum() == len(LABELS)


def _in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_capture_that_fails_does_not_leave_the_pass_of_an_earlier_one() -> None:
    model = _model()
    with CrossClassProbe(model) as probe:
        with probe.capture():
            model(IMAGES)
        with pytest.raises(KeyError), probe.capture():
            raise KeyError
        with pytest.raises(InputError, match="found none"):
            probe.update(LABELS)


def test_update_inside_capture_counts_in_each_step() -> None:
    model = _model()
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            with probe.capture():
                model(IMAGES)
                probe.update(LABELS)
        assert probe.compute().counts.sum() == 2 * len(LABELS)


def test_reset_finds_a_head_that_was_replaced_since() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    with CrossClassProbe(model) as probe:
        model(IMAGES)
        probe.update(LABELS)
        model[1] = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6)).double()
        probe.reset()
        model(IMAGES)
        probe.update(LABELS)
        with pytest.warns(UserWarning, match="no samples of 5"):
            assert probe.compute().class_attribution.shape == (6, 8)


def test_a_copy_of_a_probe_has_the_same_result() -> None:
    model = _model()
    with CrossClassProbe(model) as probe:
        model(IMAGES)
        probe.update(LABELS)
        assert copy.deepcopy(probe).compute() == probe.compute()
