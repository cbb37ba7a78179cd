"""Groupings as people give them, and what a result says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.groups import NAMED, group_evidence, read_groups
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.probe.groups import mantel, within_minus_between

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VEHICLES = [0, 1, 8, 9]
FOUR = ("ant", "bee", "cow", "doe")


def result(*, confusion: bool = True) -> CrossClassResult:
    """C of 0.6 within vehicles and within animals and 0.1 between, with a little noise; confusions that go with it."""
    rng = np.random.default_rng(0)
    is_vehicle = np.isin(np.arange(10), VEHICLES)
    matrix = np.where(is_vehicle[:, None] == is_vehicle, 0.6, 0.1) + 0.05 * rng.normal(size=(10, 10))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1.0)
    counts = np.rint(100 * np.where(np.eye(10) > 0, 5, matrix)).clip(0).astype(np.int64)
    return CrossClassResult(
        matrix,
        np.ones((10, 3)),
        counts.sum(1),
        class_names=CIFAR10,
        confusion_adversarial=counts if confusion else None,
    )


def test_ways_to_say_the_same_groups(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("insects: ant, bee\n\nmammals: cow,doe\n")
    named = read_groups(str(tmp_path / "mine.txt"), FOUR)
    assert named.name == "mine.txt"
    assert named.members(FOUR) == {"insects": ["ant", "bee"], "mammals": ["cow", "doe"]}
    for text in ("ant,bee;cow,doe", " ant , bee ; cow , doe ;", "0,1;2,doe", "ant,bee\ncow,doe"):
        assert read_groups(text, FOUR).group_of == ("1", "1", "2", "2")
    assert read_groups("cow,doe;x: ant,bee", FOUR).group_of == ("x", "x", "1", "1")


def test_groups_that_are_known_by_name() -> None:
    groups = read_groups("cifar10", CIFAR10)
    assert [index for index, group in enumerate(groups.group_of) if group == "vehicles"] == VEHICLES
    hundred = sorted(member.strip() for members in NAMED["cifar100"].values() for member in members.split(","))
    groups = read_groups("cifar100", hundred)
    assert sorted(map(len, groups.members(hundred).values())) == [5] * 20
    assert groups.group_of[hundred.index("whale")] == groups.group_of[hundred.index("otter")] == "aquatic_mammals"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant,bee;cow", "groups: expected a group for each of 4 classes, found none for doe"),
        ("ant,bee;cow,doe,ant", "each class in one group, found 'ant' twice"),
        ("ant,bee;cow,dog", "found 'dog'"),
        ("nowhere.txt", "expected cifar10, cifar100, cluster"),
        ("cifar10", "groups: expected a class's name or its index below 4"),
        ("ant,bee,cow,doe", "two groups or more"),
        ("ant;bee;cow;doe", "of which some have two classes"),
        ("cluster:9", "a number of clusters from 2 to 3"),
        ("cluster:x", "a number of clusters from 2 to 3"),
    ],
)
def test_what_is_no_grouping(text: str, message: str) -> None:
    matrix = np.array([[1, 0.5, 0, 0.1], [0.5, 1, 0.2, 0], [0, 0.2, 1, 0.4], [0.1, 0, 0.4, 1]])
    with pytest.raises(InputError, match=message):
        group_evidence(CrossClassResult(matrix, np.ones((4, 2)), np.full(4, 5), class_names=FOUR), text)


def test_clusters_before_c_is_known() -> None:
    with pytest.raises(InputError, match="known before C is measured"):
        read_groups("cluster", FOUR)


def test_the_evidence_is_the_two_tests_of_the_grouping() -> None:
    measured = result()
    found = group_evidence(measured, "cifar10")
    is_vehicle = np.isin(np.arange(10), VEHICLES)
    assert found.difference == within_minus_between(measured.matrix, is_vehicle.tolist())
    assert (found.difference.p, found.difference.exact) == (1 / 210, True)
    assert found.confusion == mantel(measured.matrix, measured.confusion)  # type: ignore[arg-type]
    described = json.loads(json.dumps(found.to_json()))
    assert described["members"]["vehicles"] == ["airplane", "automobile", "ship", "truck"]
    assert described["within_minus_between"]["p"] == 1 / 210
    assert described["mantel_with_confusion"]["statistic"] > 0.7
    (heading, text), (_, other) = found.rows()
    assert heading == "C within minus between"
    assert text == f"{found.difference.statistic:+.3f} in 2 groups (cifar10), p = 0.0048 (all 210 arrangements)"
    assert other.startswith("Spearman's ρ = 0.")


def test_clusters_are_found_and_have_no_p() -> None:
    found = group_evidence(result(), "cluster")
    groups = {frozenset(members) for members in found.grouping.members(CIFAR10).values()}
    assert frozenset(CIFAR10[index] for index in VEHICLES) in groups
    assert len(groups) == 2
    assert found.to_json()["within_minus_between"]["p"] is None
    assert found.to_json()["from_matrix"] is True
    assert "found from C itself, so no p: " in found.rows()[0][1]
    assert len(set(group_evidence(result(), "cluster:4").grouping.group_of)) == 4


def test_a_class_without_a_row_is_in_no_cluster() -> None:
    measured = result()
    measured.matrix[3] = measured.matrix[:, 3] = np.nan
    found = group_evidence(measured, "cluster:2")
    assert found.grouping.members(CIFAR10)["without a row 3"] == ["cat"]


def test_without_confusions_there_is_a_reason() -> None:
    found = group_evidence(result(confusion=False), "cifar10")
    assert found.confusion is None
    assert found.to_json()["note"] == "the result has no confusion matrix"
    assert found.rows()[1] == ("C against confusions", "not tested: the result has no confusion matrix")


# Of each of CIFAR-100's classes, in alphabetical order, the number of its superclass in alphabetical order, as the data
# set's own files have them (github.com/ryanchankh/cifar100coarse lists them).
COARSE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]


def test_cifar_100s_superclasses_are_the_data_sets_own() -> None:
    names = sorted(member.strip() for members in NAMED["cifar100"].values() for member in members.split(","))
    superclasses = sorted(NAMED["cifar100"])
    assert [superclasses.index(group) for group in read_groups("cifar100", names).group_of] == COARSE
