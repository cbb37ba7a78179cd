"""ccf ablate's figures: by hand on a network of known shared features, golden figures, and properties of its parts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.documents import page
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.ablate import Margins, ablate, choose, margins
from ccf_plugin.measuring.ablation_result import Ablation, holm, wilcoxon
from ccf_plugin.measuring.evaluate import AttackSettings, MeasuredSplit
from ccf_plugin.measuring.pictures import draw_ablation
from ccf_plugin.measuring.subject import Subject
from ccf_plugin.probe import CrossClassProbe
from ccf_plugin.probe.ablation import ablated_logits
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attacks import build_attack
from ccf_plugin.zoo.datasets import Split
from ccf_plugin.zoo.sources import LoadedModel

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
CLASSES = ("a", "b", "c", "d")
SHARED, SPECIFIC, EACH = 4, 2, 10  # features shared by a and b, features of each class alone, images of each class
SIZE = SHARED + SPECIFIC * len(CLASSES)
EPS = 0.1


def own(label: int) -> list[int]:
    """The features of a class alone."""
    return list(range(SHARED + SPECIFIC * label, SHARED + SPECIFIC * (label + 1)))


class ByHand(nn.Sequential):
    """Twelve pixels are twelve features. A class's logit is the sum of its features: a and b share the first four."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIZE, len(CLASSES), bias=False))
        weight = torch.zeros(len(CLASSES), SIZE)
        weight[:2, :SHARED] = 1
        for label in range(len(CLASSES)):
            weight[label, own(label)] = 1
        self[1].weight.data = weight


def subject(model: nn.Module | None = None, attack: AttackSettings | None = None) -> Subject:
    """All pixels of a class's features are white, the others black."""
    model = ByHand() if model is None else model
    labels = torch.arange(EACH * len(CLASSES)) % len(CLASSES)
    white = ByHand()[1].weight[labels] > 0
    images = (white * 255).to(torch.uint8).view(-1, 1, 3, 4)
    split = MeasuredSplit(Split(images, labels), CLASSES, "by hand")
    loaded = LoadedModel(model.eval(), "by hand", "hand")
    return Subject(loaded, split, attack, torch.device("cpu"), batch_size=16)


def attacked_by(name: str | None, steps: int = 1) -> AttackSettings:
    return AttackSettings(ThreatModel("Linf", EPS, EPS / 4, steps), name)


@pytest.fixture(scope="module")
def by_hand() -> Ablation:
    return ablate(subject(attack=attacked_by("FGSM")), count=SHARED)


def test_removing_shared_features_costs_the_pair_against_the_rest_alone(by_hand: Ablation) -> None:
    """Half of the images have a shared feature: its mean is 1/2. A fourth has a class's own."""
    pair = by_hand.pairs[0]
    assert pair.pair == (0, 1)
    assert pair.correlation == pytest.approx(SHARED / (SHARED + SPECIFIC))
    assert pair.images == 2 * EACH
    # z = 6, 4, 0, 0
    assert (pair.intact.rest, pair.intact.between) == (SHARED + SPECIFIC, SPECIFIC)
    assert (pair.intact.rest_accuracy, pair.intact.between_accuracy, pair.intact.accuracy) == (1, 1, 1)
    shared, specific = pair.removals["shared"], pair.removals["specific"]
    assert shared.features == tuple(range(SHARED))
    assert (shared.mass, specific.mass) == (2 * SHARED, 2 * SPECIFIC)
    # z = 4, 2, 0, 0
    assert (shared.change.rest, shared.change.between) == (-SHARED / 2, 0)
    assert (shared.change.rest_accuracy, shared.change.between_accuracy, shared.change.accuracy) == (0, 0, 0)
    # z = 4.5, 4.5, 0, 0: nothing is left that tells a from b
    assert set(specific.features) == {*own(0), *own(1)}
    assert (specific.change.rest, specific.change.between) == (-0.75 * SPECIFIC, -SPECIFIC)
    assert (specific.change.rest_accuracy, specific.change.between_accuracy, specific.change.accuracy) == (0, -1, -1)
    assert set(pair.removals["matched"].features) == set(specific.features)  # no others have any mass
    for kind in ("specific", "matched"):  # every image says the same: the p of so many signs, in all tests corrected
        assert 0 < pair.removals[kind].p["between"] < 0.01
    assert shared.p == {}


def test_pairs_that_share_nothing(by_hand: Ablation) -> None:
    """c has features of its own alone: its pairs have C = 0, and the strongest pair stands first."""
    others = by_hand.pairs[1:]
    assert [pair.pair for pair in by_hand.pairs] == [(0, 1), *(p for p in combinations(range(4), 2) if p != (0, 1))]
    assert all(pair.correlation == 0 for pair in others)
    assert by_hand.spearman["rest"] == pytest.approx(
        stats.spearmanr(
            [pair.correlation for pair in by_hand.pairs], [-p.removals["shared"].change.rest for p in by_hand.pairs]
        ).statistic,
        nan_ok=True,
    )


def test_doses_by_hand(by_hand: Ablation) -> None:
    """Each shared feature of a and b costs them half a logit."""
    assert [dose.count for dose in by_hand.doses] == [1, 2, 4, 6]  # at most half of the features
    for dose in by_hand.doses[:3]:
        alone = ablate(subject(), count=dose.count)
        assert alone.pairs[0].removals["shared"].change.rest == -dose.count / 2
        for kind in ("shared", "specific", "matched"):  # random ones are of fewer draws here
            assert dose.rest[kind] == pytest.approx(alone.mean_change(kind).rest)
            assert dose.between[kind] == pytest.approx(alone.mean_change(kind).between)


def test_one_step_of_an_attack_by_hand(by_hand: Ablation) -> None:
    """FGSM darkens the true class's features by eps and brightens the others'; removed features stay what they are."""
    assert by_hand.threat is not None
    assert (by_hand.threat["attack"], by_hand.threat["eps"], by_hand.threat["seed"]) == ("FGSM", EPS, 0)
    assert [pair.pair for pair in by_hand.attacked] == [pair.pair for pair in by_hand.pairs[:3]]
    pair = by_hand.attacked[0]
    own_logit, partners, rest = 6 * (1 - EPS), SHARED * (1 - EPS) + SPECIFIC * EPS, SPECIFIC * EPS
    assert pair.intact.rest == pytest.approx(own_logit - rest, abs=1e-6)
    assert pair.intact.between == pytest.approx(own_logit - partners, abs=1e-6)
    # the shared features stand at 1/2, in place of 1 - eps
    change = pair.removals["shared"].change
    assert change.rest == pytest.approx(-SHARED * (0.5 - EPS), abs=1e-6)
    assert change.between == pytest.approx(0, abs=1e-6)


class Small(nn.Module):
    """A network with a hidden layer, whose own pass may replace features."""

    def __init__(self, columns: tuple[int, ...] = (), values: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 20), nn.ReLU())
        self.head = nn.Linear(20, len(CLASSES))
        self.columns, self.values = list(columns), values

    def forward(self, images: Tensor) -> Tensor:
        g = self.body(images)
        if self.values is not None:
            g = g.clone()
            g[:, self.columns] = self.values[self.columns]
        logits: Tensor = self.head(g)
        return logits


def test_the_attack_is_on_the_model_without_the_features() -> None:
    """Against a network that leaves the features out itself, attacked from the same seed."""
    measured = subject(Small(), attacked_by(None, steps=5))
    ablation = ablate(measured, pairs=[("b", "d")], count=4)
    (pair,) = ablation.attacked
    split = measured.data.split
    rows = torch.nonzero((split.labels == 1) | (split.labels == 3)).squeeze(1)
    with torch.no_grad():
        means = Small().body(split.images.float() / 255).mean(0)

    def attacked(columns: tuple[int, ...]) -> Margins:
        model = Small(columns, means)
        attack = build_attack(None, model, ThreatModel("Linf", EPS, EPS / 4, 5), seed=0)
        batches = split.subset(rows).batches(16, torch.device("cpu"))
        logits = [model(attack(images, labels)).detach() for images, labels in batches]
        return margins(torch.cat(logits).double(), split.labels[rows], (1, 3))

    intact = attacked(())
    assert pair.intact.rest == pytest.approx(intact.rest.mean(), abs=1e-5)
    for kind in ("shared", "specific", "matched"):
        expected = attacked(pair.removals[kind].features)
        assert pair.removals[kind].change.rest == pytest.approx((expected.rest - intact.rest).mean(), abs=1e-5)
        assert pair.removals[kind].change.between == pytest.approx((expected.between - intact.between).mean(), abs=1e-5)


def test_margins_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5, -1.0], [0.0, 2.0, 5.0, 1.0], [4.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    measured = margins(logits, torch.tensor([0, 1, 1]), (0, 1))
    assert measured.rest.tolist() == [0.5, -3.0, 4.0]
    assert measured.between.tolist() == [2.0, 2.0, -3.0]
    figures = measured.figures()
    assert figures.rest == pytest.approx(0.5)
    assert (figures.rest_accuracy, figures.between_accuracy) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert figures.accuracy == pytest.approx(1 / 3)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 4 × 0.005, 3 × 0.01, 2 × 0.03
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_wilcoxon_of_equal_sides_is_one() -> None:
    assert wilcoxon(np.zeros(12)) == 1.0
    assert wilcoxon(np.arange(1.0, 6.0)) == pytest.approx(2 / 2**5)  # all signs alike: exact


def test_p_values_are_those_of_the_images_corrected_over_all() -> None:
    """The corrected p-values again, from the features alone."""
    measured, count = subject(Small()), 5
    ablation = ablate(measured, count=count)
    images, labels = measured.data.split.images.float() / 255, measured.data.split.labels
    model = Small()
    with CrossClassProbe(model) as probe, torch.no_grad():
        logits = model.eval()(images).double()
        g = probe.features().double()
        probe.update(labels)
        result = probe.compute()
    weight, raw = model.head.weight.detach().double(), {}
    for pair in ablation.pairs:
        rows = (labels == pair.pair[0]) | (labels == pair.pair[1])

        def left(draws: list[list[int]], rows: Tensor = rows, pair: Any = pair) -> Margins:
            each = [
                margins(ablated_logits(logits[rows], g[rows], weight, draw, g.mean(0)), labels[rows], pair.pair)
                for draw in draws
            ]
            return Margins(*(np.mean([getattr(one, name) for one in each], 0) for name in ("rest", "between")))

        chosen = choose(result, pair.pair, count, 0)
        for kind in ("specific", "matched", "random"):
            for name in ("rest", "between"):
                raw[pair.pair, kind, name] = stats.wilcoxon(
                    getattr(left(chosen["shared"]), name), getattr(left(chosen[kind]), name)
                ).pvalue
    ordered = sorted(raw, key=lambda key: raw[key])
    largest = 0.0
    for place, key in enumerate(ordered):
        largest = min(1.0, max(largest, raw[key] * (len(raw) - place)))
        (pair,) = (pair for pair in ablation.pairs if pair.pair == key[0])
        assert pair.removals[key[1]].p[key[2]] == pytest.approx(largest, rel=1e-6)


def test_which_features_are_chosen() -> None:
    """Of random attributions: shared and others are apart, matched ones have about the same mass, draws differ."""
    rng = np.random.default_rng(0)
    measured, count = ablation_result(rng.standard_normal((4, 60))), 9
    chosen = choose(measured, (1, 3), count, 0)
    (shared,), (specific,), (matched,), draws = chosen.values()
    units = measured.class_attribution / np.linalg.norm(measured.class_attribution, axis=1, keepdims=True)
    shares = units[1] * units[3]
    assert sorted(shared) == sorted(np.argsort(-shares)[:count])
    for others in (specific, matched, *draws):
        assert len(set(others)) == count
        assert not set(others) & set(shared)
    outside = [feature for feature in range(60) if feature not in shared]
    assert sorted(specific) == sorted(sorted(outside, key=lambda k: -max(units[1, k], units[3, k]))[:count])
    mass = np.abs(measured.class_attribution[[1, 3]]).sum(0)
    taken: set[int] = set()
    for feature, match in zip(shared, matched, strict=True):
        free = [k for k in outside if k not in taken]
        assert abs(mass[match] - mass[feature]) == min(abs(mass[k] - mass[feature]) for k in free)
        taken.add(match)
    assert len({tuple(draw) for draw in draws}) > 1
    assert choose(measured, (1, 3), count, 0) == chosen


def ablation_result(vectors: np.ndarray) -> Any:
    from ccf_plugin.probe import CrossClassResult

    return CrossClassResult(np.eye(len(vectors)), vectors, np.full(len(vectors), 5))


GOLDEN = 26  # features, of 512


@pytest.fixture
def golden_changes(golden: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """C of the 45 pairs, and the changes (rest, between) of each kind of removal, from the golden features."""
    g, weight, bias, labels = (torch.from_numpy(golden[name]) for name in ("features", "weight", "bias", "labels"))
    head = nn.Linear(512, 10)
    head.weight.data, head.bias.data = weight, bias
    with CrossClassProbe(head) as probe, torch.no_grad():
        head(g)
        probe.update(labels)
        result = probe.compute()
    g, weight = g.double(), weight.double()
    logits, means = g @ weight.T + bias.double(), g.mean(0)
    found: dict[str, list[tuple[float, float]]] = {}
    pairs = list(combinations(range(10), 2))
    for pair in pairs:
        rows = (labels == pair[0]) | (labels == pair[1])
        before = margins(logits[rows], labels[rows], pair)
        for kind, draws in choose(result, pair, GOLDEN, 0).items():
            after = [
                margins(ablated_logits(logits[rows], g[rows], weight, draw, means), labels[rows], pair)
                for draw in draws
            ]
            changes = [
                (float((a.rest - before.rest).mean()), float((a.between - before.between).mean())) for a in after
            ]
            found.setdefault(kind, []).append(tuple(np.mean(changes, 0)))
    return np.array([result.matrix[pair] for pair in pairs]), {kind: np.array(rows) for kind, rows in found.items()}


def test_golden_figures(golden_changes: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    """Found by hand on the ResNet-18 that pyautoattack ships, m = 26 of 512, 1,000 clean images."""
    correlations, changes = golden_changes
    for kind, rest, between in (("shared", -1.75, -0.33), ("specific", -2.06, -4.41), ("matched", -1.59, -3.32)):
        np.testing.assert_allclose(changes[kind].mean(0), (rest, between), atol=0.005)
    against_matched = stats.wilcoxon(changes["shared"][:, 1], changes["matched"][:, 1], alternative="greater")
    assert against_matched.pvalue == pytest.approx(3e-14, rel=0.1)  # 2^-45: so for every one of the 45 pairs
    ranks = [stats.spearmanr(correlations, -changes["shared"][:, column]).statistic for column in (0, 1)]
    np.testing.assert_allclose(ranks, (0.75, 0.05), atol=0.005)


def test_the_figures_on_the_page_are_those_of_the_command(
    golden_changes: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    """The committed file, which the command wrote of the network itself, against the golden features."""
    written = json.loads((RESULTS / "ablation_resnet18.json").read_text())
    _, changes = golden_changes
    for kind, of_pairs in changes.items():
        figures = written["mean_change"][kind]
        np.testing.assert_allclose(of_pairs.mean(0), (figures["rest"], figures["between"]), atol=1e-3)
    shown = page("results/resnet18.md")
    (attacked,) = written["attacked"]
    for name, change in (("clean", written["mean_change"]), ("attacked", attacked["removals"])):
        for kind in ("shared", "specific", "matched", "random"):
            figures = change[kind] if name == "clean" else change[kind]["change"]
            rounded = [f"{round(figures[margin], 2) + 0.0:.2f}" for margin in ("rest", "between")]
            cells = " | ".join(rounded).replace("-", "−")
            assert f"| {cells} |" in shown


REFUSED = {
    "two classes": ({}, "three classes or more, found 2"),
    "no features": ({"count": 0}, "count: expected at least 1, found 0"),
    "too many features": ({"count": 7}, "count: expected at most half of the head's 12 features, found 7"),
    "an unknown class": ({"pairs": [("a", "e")]}, "pairs: expected a class's name"),
    "one class twice": ({"pairs": [("a", 0)]}, "pairs: expected two classes, found a twice"),
    "a negative number of pairs": ({"strongest": -1}, "strongest: expected at least 0"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(options: dict[str, Any], message: str) -> None:
    measured = subject()
    if not options:
        measured = replace(measured, data=replace(measured.data, classes=("a", "b")))
    with pytest.raises(InputError, match=message):
        ablate(measured, **options)


def test_a_class_without_images_has_no_pair() -> None:
    measured = subject()
    kept = measured.data.split.subset(torch.nonzero(measured.data.split.labels < 3).squeeze(1))
    measured = replace(measured, data=replace(measured.data, split=kept))
    with pytest.warns(UserWarning, match="no samples of d"):
        ablation = ablate(measured)
    assert [pair.pair for pair in ablation.pairs] == [(0, 1), (0, 2), (1, 2)]
    with pytest.warns(match="no samples of d"), pytest.raises(InputError, match="found that a or d has none"):
        ablate(measured, pairs=[("a", "d")])


def test_json_and_picture(by_hand: Ablation) -> None:
    described = by_hand.to_json()
    assert described["mean_change"]["shared"]["rest"] == by_hand.mean_change("shared").rest
    assert described["pairs"][0]["pair"] == ["a", "b"]
    assert described["pairs"][0]["removals"]["shared"]["features"] == [0, 1, 2, 3]
    assert [entry["pair"] for entry in described["attacked"]] == [["a", "b"], ["a", "c"], ["a", "d"]]
    assert all(value is None or math.isfinite(value) for value in described["spearman"].values())
    figure = draw_ablation(by_hand, "by hand")
    assert [len(ax.lines) for ax in figure.axes[:2]] == [6, 6]  # four kinds, nothing lost, and the number removed
    line = figure.axes[0].lines[0]
    assert line.get_label() == "shared"
    np.testing.assert_array_equal(line.get_ydata(), [dose.rest["shared"] for dose in by_hand.doses])
