"""Whether C goes with groups of classes and with confusions: by hand, against scipy, golden figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from ccf_plugin import InputError
from ccf_plugin.probe.groups import mantel, within_minus_between

VEHICLES = [name in ("airplane", "automobile", "ship", "truck") for name in (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)]  # fmt: skip


def symmetric(classes: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(classes, classes))
    return (values + values.T) / 2


def test_four_classes_by_hand() -> None:
    """Pairs {0, 1} and {2, 3}: within 0.9 and 0.5, between 0.1, 0.2, 0.3 and 0.4; three ways to pair four classes."""
    matrix = np.array([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.3, 0.4], [0.1, 0.3, 1, 0.5], [0.2, 0.4, 0.5, 1]])
    found = within_minus_between(matrix, ["a", "a", "b", "b"])
    assert found.statistic == pytest.approx(0.7 - 0.25)
    assert (found.p, found.arrangements, found.exact) == (
        pytest.approx(2 / 6),
        6,
        True,
    )  # each twice, "a" and "b" swapped
    lowest = within_minus_between(-matrix, ["a", "a", "b", "b"])
    assert (lowest.statistic, lowest.p) == (pytest.approx(-0.45), 1.0)


def test_random_groupings_approach_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, groups = symmetric(9), [0, 0, 0, 1, 1, 1, 1, 2, 2]
    exact = within_minus_between(matrix, groups)
    assert exact.arrangements == math.factorial(9) // (6 * 24 * 2)
    monkeypatch.setattr("ccf_plugin.probe.groups._MOST_GROUPINGS", 10)
    random = within_minus_between(matrix, groups, permutations=3_000)
    assert not random.exact
    assert random.statistic == exact.statistic
    assert random.p == pytest.approx(exact.p, abs=4 * math.sqrt(exact.p * (1 - exact.p) / 3_000) + 1e-3)
    assert within_minus_between(matrix, groups, permutations=3_000) == random


def test_classes_without_a_row_are_left_out() -> None:
    matrix = symmetric(6)
    whole = np.full((7, 7), np.nan)
    kept = [0, 1, 2, 4, 5, 6]
    whole[np.ix_(kept, kept)] = matrix
    groups = [0, 0, 1, 1, 1, 2, 2]
    confusion = np.random.default_rng(1).integers(1, 9, (7, 7))
    assert within_minus_between(whole, groups) == within_minus_between(matrix, [groups[index] for index in kept])
    rates = confusion / confusion.sum(1, keepdims=True)
    direct = spearmanr(matrix[np.triu_indices(6, 1)], (rates + rates.T)[np.ix_(kept, kept)][np.triu_indices(6, 1)])
    assert mantel(whole, confusion, permutations=9).statistic == pytest.approx(direct.statistic)


@pytest.mark.parametrize(("method", "reference"), [("spearman", spearmanr), ("pearson", pearsonr)])
def test_the_correlation_is_scipys(method: str, reference) -> None:
    matrix, confusion = symmetric(8), np.random.default_rng(2).integers(0, 4, (8, 8))  # with ties
    rates = confusion / confusion.sum(1, keepdims=True)
    upper = np.triu_indices(8, 1)
    expected = reference(matrix[upper], ((rates + rates.T) / 2)[upper]).statistic
    assert mantel(matrix, confusion, method=method, permutations=9).statistic == pytest.approx(expected)


def test_p_is_even_where_nothing_is_there_and_small_where_something_is() -> None:
    confusions = np.random.default_rng(3).random((200, 8, 8))
    values = [mantel(symmetric(8, seed), confusions[seed], permutations=99).p for seed in range(200)]
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.085)
    rates = confusions[0] / confusions[0].sum(1, keepdims=True)
    same = mantel(rates + rates.T, confusions[0], permutations=999)
    assert same.statistic == pytest.approx(1.0)
    assert same.p == 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: within_minus_between(np.eye(3), [0, 1]), "groups of 3 classes, found 2"),
        (lambda: within_minus_between(np.ones((3, 3)), [0, 0, 0]), "one kind"),
        (lambda: within_minus_between(np.ones((3, 3)), [0, 1, 2]), "one kind"),
        (lambda: within_minus_between(np.ones((3, 2)), [0, 1, 1]), r"shape \(K, K\)"),
        (lambda: mantel(np.eye(3), np.eye(4)), r"\(3, 3\) and \(4, 4\)"),
        (lambda: mantel(symmetric(2), np.ones((2, 2))), "three classes or more"),
        (lambda: mantel(symmetric(4), np.ones((4, 4))), "all equal"),
    ],
)
def test_what_cannot_be_tested_is_told(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_golden_animals_and_vehicles(golden: dict[str, np.ndarray]) -> None:
    """Of the 210 ways to part ten classes into four and six, vehicles and animals come first."""
    found = within_minus_between(golden["matrix"], VEHICLES)
    assert found.statistic == pytest.approx(0.178, abs=5e-4)
    assert (found.arrangements, found.exact) == (210, True)
    assert found.p == pytest.approx(1 / 210)


def test_golden_confusions(golden: dict[str, np.ndarray]) -> None:
    g, weight, bias, labels = (torch.from_numpy(golden[name]) for name in ("features", "weight", "bias", "labels"))
    logits = g.double() @ weight.double().T + bias.double()
    soft = torch.zeros(10, 10, dtype=torch.float64).index_add(0, labels, logits.softmax(1)).numpy()
    hard = np.zeros((10, 10))
    np.add.at(hard, (labels.numpy(), logits.argmax(1).numpy()), 1)
    figures = {
        ("soft", "spearman"): 0.683,
        ("soft", "pearson"): 0.689,
        ("hard", "spearman"): 0.574,
        ("hard", "pearson"): 0.692,
    }
    for (kind, method), expected in figures.items():
        found = mantel(golden["matrix"], soft if kind == "soft" else hard, method=method, permutations=1_999)
        assert found.statistic == pytest.approx(expected, abs=2e-3), (kind, method)
        assert found.p == pytest.approx(5e-4), (kind, method)
