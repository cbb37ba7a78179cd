"""Clean accuracy, PGD and AutoAttack: against plain passes, interrupted and resumed, and with hidden gradients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchattacks
from support.noise import start_at_own_noise
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.evaluate import AttackSettings, MeasuredSplit
from ccf_plugin.measuring.robustness import AUTOATTACK, CLEAN, MASKING_MARGIN, Evaluation, evaluate
from ccf_plugin.measuring.subject import Subject
from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.auto_attack import build_autoattack
from ccf_plugin.zoo.datasets import load_data
from ccf_plugin.zoo.sources import LoadedModel


class Prototypes(nn.Module):
    """Logits: minus the distance to one fixed image of each class; ``hidden``: they move in steps, without slope."""

    def __init__(self, images: Tensor, *, hidden: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(images[0].numel(), len(images))
        self.hidden = hidden
        with torch.no_grad():
            self.head.weight.copy_(2 * images.flatten(1))
            self.head.bias.copy_(-images.flatten(1).square().sum(1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return (logits * 50).round() / 50 if self.hidden else logits


def subject_of(
    model_of: Callable[[Tensor], nn.Module], *, eps: float, count: int = 20, seed: int = 0, batch_size: int = 8
) -> Subject:
    """Prototypes of the digits as the subject, ``count`` of their test images as the data."""
    digits = load_data("digits", test_limit=count)
    means = torch.stack([(digits.train.images[digits.train.labels == k].float() / 255).mean(0) for k in range(10)])
    loaded = LoadedModel(model=model_of(means).eval(), spec="prototypes", name="prototypes")
    return Subject(
        loaded=loaded,
        data=MeasuredSplit(digits.test, digits.classes, "digits"),
        attack=AttackSettings(threat_model(eps=eps, steps=20), seed=seed),
        device=torch.device("cpu"),
        batch_size=batch_size,
    )


def test_the_figures_are_those_of_plain_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(Prototypes, eps=0.1, count=30, seed=3)
    found = evaluate(subject, tmp_path / "e.json", steps=(4, 2))
    model, correct = subject.loaded.model, {CLEAN: 0, "PGD-2": 0, "PGD-4": 0}
    start_at_own_noise(monkeypatch, 3)
    for images, labels in subject.data.split.batches(8, subject.device):
        correct[CLEAN] += int((model(images).argmax(1) == labels).sum())
        for steps in (2, 4):
            attacked = torchattacks.PGD(model, eps=0.1, alpha=0.025, steps=steps)(images, labels)
            correct[f"PGD-{steps}"] += int((model(attacked).argmax(1) == labels).sum())
    assert found.accuracies == {name: count / 30 for name, count in correct.items()}
    assert list(found.accuracies) == [CLEAN, "PGD-2", "PGD-4"]
    assert found.accuracies["PGD-4"] < found.accuracies[CLEAN]
    assert (found.masking_gap, found.may_mask_gradients) == (None, False)
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["accuracies"] == found.accuracies
    assert (written["images"], written["threat"]["eps"]) == (30, 0.1)


def test_restarts_count_what_withstands_all_and_further_attacks_stand_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(Prototypes, eps=0.1, count=30, seed=3, batch_size=30)
    found = evaluate(subject, steps=(2,), restarts=3, attacks=["fgsm", "FGSM"])
    model, (images, labels) = subject.loaded.model, next(subject.data.split.batches(30, subject.device))
    right = torch.ones(30, dtype=torch.bool)
    for seed in (3, 4, 5):
        with monkeypatch.context() as patch:
            start_at_own_noise(patch, seed)
            attacked = torchattacks.PGD(model, eps=0.1, alpha=0.025, steps=2)(images, labels)
        right &= model(attacked).argmax(1) == labels
    fast = model(torchattacks.FGSM(model, eps=0.1)(images, labels)).argmax(1) == labels
    assert found.accuracies["PGD-2, 3 restarts"] == int(right.sum()) / 30
    assert found.accuracies["FGSM"] == int(fast.sum()) / 30
    assert list(found.accuracies) == [CLEAN, "PGD-2, 3 restarts", "FGSM"]
    with pytest.raises(InputError, match="restarts: expected at least 1, found 0"):
        evaluate(subject, restarts=0)


def test_no_attack_passes_for_another_of_its_name() -> None:
    subject, own = subject_of(Prototypes, eps=0.3), "python:zoo.own_attacks:PGD"
    accuracies = evaluate(subject, steps=(20,), attacks=[own]).accuracies
    assert accuracies[f"{own}-20"] == accuracies[CLEAN] > accuracies["PGD-20"]
    expected = "attack: expected RobustBench's AutoAttack, by autoattack=True, found torchattacks'"
    with pytest.raises(InputError, match=expected):
        evaluate(subject, steps=(1,), attacks=["autoattack"])


def test_the_curve_over_eps_is_the_longest_pgd_at_each_with_its_share_of_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = subject_of(Prototypes, eps=0.1, count=30, seed=3, batch_size=30)
    found = evaluate(subject, steps=(1, 3), curve=["4/255", 0.2, 0])
    model, (images, labels) = subject.loaded.model, next(subject.data.split.batches(30, subject.device))
    assert list(found.accuracies) == [CLEAN, "PGD-1", "PGD-3", "PGD-3 at 0/255", "PGD-3 at 4/255", "PGD-3 at 51/255"]
    assert list(found.curve) == [0, 4 / 255, 0.1, 0.2]
    for eps, name in found.curve.items():
        start_at_own_noise(monkeypatch, 3)
        attacked = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=3)(images, labels)
        assert found.accuracies[name] == int((model(attacked).argmax(1) == labels).sum()) / 30
    assert found.accuracies["PGD-3 at 0/255"] == found.accuracies[CLEAN] > found.accuracies["PGD-3 at 51/255"]
    assert found.rises is None
    assert found.to_json()["curve"] == [[eps, found.accuracies[name]] for eps, name in found.curve.items()]
    with pytest.raises(InputError, match=r"eps: expected 0 to 1 for Linf, found '4'.*'4/255'"):
        evaluate(subject, curve=["4"])


def test_an_accuracy_that_rises_with_eps_is_named_where_it_rises_most() -> None:
    accuracies = {"clean": 0.9, "PGD-2": 0.5, "PGD-2 at 1/255": 0.6, "PGD-2 at 3/255": 0.55, "PGD-2 at 4/255": 0.7}
    curve = {1.0: "PGD-2 at 1/255", 2.0: "PGD-2", 3.0: "PGD-2 at 3/255", 4.0: "PGD-2 at 4/255"}
    evaluation = Evaluation({"threat": {"eps": 2.0}}, 20, accuracies | {AUTOATTACK: 0.4}, curve=curve)
    assert evaluation.rises == (3.0, 4.0)
    assert evaluation.masking_gap == pytest.approx(0.1)  # of the PGD at the same eps as AutoAttack's
    falling = {eps: name for eps, name in curve.items() if eps < 3}
    assert Evaluation({"threat": {"eps": 2.0}}, 20, accuracies, curve=falling).rises is None


class _Interrupt:
    """Progress that ends the evaluation, as Ctrl-C does, before batch ``at`` of an attack; counts batches seen."""

    def __init__(self, name: str, at: int) -> None:
        self.name, self.at = name, at

    def __call__(self, name: str) -> Any:
        def wrap(batches: Any, total: int) -> Iterator[Any]:
            assert total == 4
            for number, batch in enumerate(batches):
                if (name, number) == (self.name, self.at):
                    raise KeyboardInterrupt
                yield batch

        return wrap


def test_an_interrupted_evaluation_continues_to_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, file = subject_of(Prototypes, eps=0.1, count=30), tmp_path / "e.json"
    whole = evaluate(subject, tmp_path / "whole.json", steps=(2, 5))
    with pytest.raises(KeyboardInterrupt):
        evaluate(subject, file, steps=(2, 5), progress=_Interrupt("PGD-5", 2))
    halfway = json.loads(file.read_text())
    assert halfway["progress"]["PGD-2"]["batches"] == 4
    assert halfway["progress"]["PGD-5"]["batches"] == 2
    assert "accuracies" not in halfway

    attacked = []
    perturb = torchattacks.PGD.forward
    monkeypatch.setattr(
        torchattacks.PGD, "forward", lambda self, x, y: (attacked.append(len(x)), perturb(self, x, y))[1]
    )
    assert evaluate(subject, file, steps=(2, 5)).to_json() == whole.to_json()
    assert attacked == [8, 6], "the two batches that were left"
    assert evaluate(subject, file, steps=(2, 5)).to_json() == whole.to_json()
    assert attacked == [8, 6]
    evaluate(subject, file, steps=(2, 5), restart=True)
    assert len(attacked) == 2 + 8
    assert json.loads(file.read_text()) == json.loads((tmp_path / "whole.json").read_text())


def test_what_is_not_the_same_evaluation_is_not_continued(tmp_path: Path) -> None:
    subject, file = subject_of(Prototypes, eps=0.1), tmp_path / "e.json"
    evaluate(subject, file, steps=(1,))
    before = file.read_bytes()
    others = {
        "eps 25.5/255 there, 51/255 now": replace(subject, attack=AttackSettings(threat_model(eps=0.2))),
        "seed 0 there, 1 now": subject_of(Prototypes, eps=0.1, seed=1),
        "batch size 8 there, 5 now": replace(subject, batch_size=5),
        "other images": subject_of(Prototypes, eps=0.1, count=19),
        "other weights": subject_of(lambda means: Prototypes(means + 0.01), eps=0.1),
    }
    for name, other in others.items():
        with pytest.raises(InputError, match=rf"expected to continue the same evaluation, .*{name}.*restart"):
            evaluate(other, file, steps=(1,))
    for content in (b"", b"{}", b"[1]", b'{"progress": {"clean": 3}}', b"\xff\x00"):
        (tmp_path / "other.json").write_bytes(content)
        with pytest.raises(InputError, match="expected an evaluation to continue"):
            evaluate(subject, tmp_path / "other.json", steps=(1,))
        assert (tmp_path / "other.json").read_bytes() == content
    assert file.read_bytes() == before


@pytest.mark.parametrize(("after", "told"), [([], 0), ([nn.Softmax(1)], 1), ([nn.LogSoftmax(1)], 0)])
def test_probabilities_are_told(after: list[nn.Module], told: int, recwarn: pytest.WarningsRecorder) -> None:
    """The cross-entropy of probabilities hardly slopes: accuracy under PGD is then no RA."""
    evaluate(subject_of(lambda means: nn.Sequential(Prototypes(means), *after), eps=0.1, batch_size=20), steps=(1,))
    assert sum("look like probabilities" in str(warning.message) for warning in recwarn) == told


@pytest.mark.slow
def test_hidden_gradients_are_flagged(tmp_path: Path) -> None:
    """PGD finds no slope to follow on steps; AutoAttack's Square needs none. The same model without steps is not."""
    found = {}
    for hidden in (False, True):
        subject = subject_of(
            lambda means, hidden=hidden: Prototypes(means, hidden=hidden), eps=0.2, count=10, batch_size=10
        )  # type: ignore
        found[hidden] = evaluate(subject, tmp_path / f"{hidden}.json", steps=(10,), autoattack=True)
    plain, masked = found[False], found[True]
    assert plain.accuracies[CLEAN] == masked.accuracies[CLEAN]
    assert plain.accuracies[AUTOATTACK] <= plain.accuracies["PGD-10"] < plain.accuracies[CLEAN]
    assert not plain.may_mask_gradients
    assert masked.accuracies["PGD-10"] > plain.accuracies["PGD-10"] + MASKING_MARGIN
    assert masked.may_mask_gradients
    assert any("zero gradient" in note or "Square" in note for note in masked.notes)
    assert masked.masking_gap == pytest.approx(masked.accuracies["PGD-10"] - masked.accuracies[AUTOATTACK])


def test_autoattack_stays_inside_the_ball_and_leaves_the_model_as_it_was() -> None:
    subject = subject_of(Prototypes, eps=0.2, count=10)
    model = subject.loaded.model.train()
    assert subject.attack is not None
    attack, _ = build_autoattack(model, subject.attack.threat, num_classes=10, seed=0)
    images, labels = next(subject.data.split.batches(10, subject.device))
    state = torch.get_rng_state()
    attacked = attack(images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert (attacked - images).abs().max() <= 0.2 + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert (model(attacked).argmax(1) == labels).float().mean() < 0.5
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_autoattack_can_be_added_to_a_finished_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, file = subject_of(Prototypes, eps=0.3, count=10), tmp_path / "e.json"
    first = evaluate(subject, file, steps=(2,))
    monkeypatch.setattr(torchattacks.PGD, "forward", lambda *_: pytest.fail("PGD is done"))
    second = evaluate(subject, file, steps=(2,), autoattack=True)
    assert second.accuracies == {**first.accuracies, AUTOATTACK: second.accuracies[AUTOATTACK]}


def test_what_cannot_be_evaluated(tmp_path: Path) -> None:
    subject = subject_of(Prototypes, eps=0.1)
    with pytest.raises(InputError, match="steps: expected at least 1, found 0"):
        evaluate(subject, tmp_path / "e.json", steps=(0,))
    with pytest.raises(InputError, match="AutoAttack: expected 4 classes or more, found 3"):
        three = replace(subject, data=replace(subject.data, classes=("a", "b", "c")))
        evaluate(three, tmp_path / "e.json", autoattack=True)
    broken = subject_of(lambda means: Prototypes(means * torch.nan), eps=0.1)
    with pytest.raises(InputError, match="expected finite logits"):
        evaluate(broken, tmp_path / "e.json")
    assert not list(tmp_path.iterdir())
