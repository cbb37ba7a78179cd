"""Alarms and stopping, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ccf_plugin.runs.alarms import LEVEL, alarms, fall_p, should_stop
from ccf_plugin.runs.log import EpochRow

ROW = EpochRow(
    epoch=1,
    lr=0.1,
    train_loss=1.0,
    train_robust_accuracy=0.4,
    test_clean_accuracy=0.8,
    test_robust_accuracy=0.5,
    cas=15.0,
    cas_excess=10.0,
    seconds=1.0,
    images_per_second=1.0,
)
SURE, DOUBTFUL = LEVEL / 100, 0.4


def _row(epoch: int, train: float, test: float | None, p: float | None, excess: float | None = 10.0) -> EpochRow:
    return replace(
        ROW, epoch=epoch, train_robust_accuracy=train, test_robust_accuracy=test, robust_fall_p=p, cas_excess=excess
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([_row(2, 0.5, 0.45, SURE), _row(3, 0.6, 0.44, SURE)], ["robust overfitting"]),
        ([_row(2, 0.5, 0.45, DOUBTFUL), _row(3, 0.6, 0.44, SURE)], []),  # one evaluation alone
        ([_row(2, 0.5, 0.45, SURE), _row(3, 0.6, 0.44, DOUBTFUL)], []),
        ([_row(2, 0.5, 0.45, LEVEL), _row(3, 0.6, 0.44, LEVEL)], []),  # looked at twice, so half the level counts
        ([_row(2, 0.3, 0.45, SURE), _row(3, 0.3, 0.44, SURE)], []),  # training got worse too
        ([_row(2, 0.5, 0.45, SURE), _row(3, 0.6, None, None)], []),
        ([_row(2, 0.5, 0.45, None), _row(3, 0.6, 0.44, None)], []),  # nothing is known of single images
        ([_row(2, 0.5, 0.45, SURE), _row(3, 0.6, 0.44, SURE, 7.9)], ["robust overfitting", "CAS falling"]),
        ([_row(2, 0.5, 0.45, SURE), _row(3, 0.6, 0.44, SURE, 8.1)], ["robust overfitting"]),
        ([_row(2, 0.5, 0.50, 1.0), _row(3, 0.6, 0.50, 1.0, 2.0)], []),  # CAS falls, RA does not
        ([_row(2, 0.9, 0.10, SURE)], ["catastrophic overfitting"]),
        ([_row(2, 0.3, 0.10, SURE)], []),
        ([_row(2, 0.9, 0.10, SURE), _row(3, 0.9, 0.12, SURE)], ["catastrophic overfitting"]),  # it stays named
        ([_row(2, 0.9, 0.10, SURE), _row(3, 0.9, 0.37, SURE)], ["catastrophic overfitting"]),  # RA came back half-way
        ([_row(2, 0.9, 0.10, SURE), _row(3, 0.9, 0.38, SURE)], ["robust overfitting"]),  # to 75 %
        ([_row(2, 0.9, 0.10, DOUBTFUL), _row(3, 0.9, 0.12, DOUBTFUL)], ["catastrophic overfitting"]),
    ],
)
def test_an_alarm_names_what_has_happened(rows: list[EpochRow], expected: list[str]) -> None:
    earlier = [ROW, replace(ROW, test_robust_accuracy=None, cas=None), *rows[:-1]]
    assert alarms(earlier, rows[-1]) == expected
    assert alarms([], rows[-1]) == []


@pytest.mark.parametrize(
    ("at_best", "now", "expected"),
    [
        (0.4, 0.55, "robust overfitting"),
        (0.4, 0.30, "robust overfitting"),
        (0.4, 0.29, "catastrophic overfitting"),
        (0.19, 0.29, "robust overfitting"),  # the evaluation's attack was as much stronger at the most robust epoch
        (0.4, None, "robust overfitting"),
    ],
)
def test_what_trains_against_one_attack_alone_overfits_catastrophically(
    at_best: float, now: float | None, expected: str
) -> None:
    """Train RA is 0.4 at the most robust epoch and 0.6 now: half of it is the bound."""
    rows = [replace(ROW, train_attacked_accuracy=at_best), _row(2, 0.5, 0.45, SURE)]
    assert alarms(rows, replace(_row(3, 0.6, 0.44, SURE), train_attacked_accuracy=now)) == [expected]
    assert alarms(rows, replace(_row(3, 0.6, 0.44, DOUBTFUL), train_attacked_accuracy=now)) == []


@pytest.mark.parametrize(
    ("evaluated", "expected"),
    [
        # test RA, p, and the share of train RA that training images keep under the evaluation's attack
        ([(0.44, SURE, 0.49), (0.44, SURE, 0.7), (0.43, SURE, 0.51), (0.44, SURE, 0.6)], "CCCC"),
        ([(0.44, SURE, 0.49), (0.44, SURE, 0.76), (0.44, SURE, 0.7), (0.44, SURE, 0.49)], "CRRC"),
        ([(0.44, SURE, 0.6), (0.44, SURE, 0.7)], "RR"),  # it has not begun
        ([(0.44, SURE, 0.49), (0.49, DOUBTFUL, 0.6), (0.44, SURE, 0.6), (0.44, SURE, 0.6)], "C--R"),  # RA came back
        ([(0.10, SURE, 0.3), (0.40, SURE, 0.6), (0.40, SURE, 0.7)], "CCC"),
        ([(0.10, SURE, 0.3), (0.30, SURE, 0.8), (0.30, SURE, 0.7)], "CRR"),
        ([(0.10, SURE, 0.9), (0.10, SURE, 0.8)], "RR"),  # suddenly, and training images withstand it: ordinary
        ([(0.10, SURE, None), (0.30, SURE, None), (0.37, SURE, None)], "CCC"),
        ([(0.10, SURE, None), (0.38, SURE, None), (0.37, SURE, None)], "CRR"),
    ],
)
def test_catastrophic_overfitting_keeps_its_name_until_it_is_over(
    evaluated: list[tuple[float, float, float | None]], expected: str
) -> None:
    """The most robust epoch has RA 0.5 and a share of 1; what the rows are said to be called changes nothing."""
    rows = [replace(ROW, train_attacked_accuracy=0.4), replace(_row(2, 0.5, 0.45, SURE), train_attacked_accuracy=0.5)]
    named = ""
    for robust, p, share in evaluated:
        attacked = None if share is None else 0.6 * share
        row = replace(_row(len(rows) + 1, 0.6, robust, p), train_attacked_accuracy=attacked, alarm="CAS falling")
        named += "".join(name[0].upper() for name in alarms(rows, row)) or "-"
        rows.append(row)
    assert named == expected


def test_a_slow_fall_below_half_is_no_catastrophe() -> None:
    rows = [ROW]
    for place in range(1, 20):
        robust = 0.5 - 0.02 * place
        row = _row(place + 1, 0.4 + 0.02 * place, robust, SURE)
        assert "catastrophic overfitting" not in alarms(rows, row)
        rows.append(row)
    assert rows[-1].test_robust_accuracy < 0.25


def test_the_alarm_of_old_logs_without_excess_takes_cas() -> None:
    old = [replace(row, cas_excess=None) for row in (ROW, _row(2, 0.5, 0.45, SURE))]
    assert alarms(old, replace(_row(3, 0.6, 0.44, SURE, None), cas=11.0)) == ["robust overfitting", "CAS falling"]


def test_p_of_a_fall_is_the_sign_tests() -> None:
    best, present = np.array([True] * 6 + [False] * 4), np.array([True] + [False] * 9)
    assert fall_p(best, present) == pytest.approx(1 / 2**5, rel=1e-12)  # five lost, none won
    assert fall_p(present, best) == 1.0
    assert fall_p(best, best) == 1.0


def test_stopping_needs_the_alarm_at_so_many_evaluated_epochs_in_a_row() -> None:
    alarmed = replace(ROW, alarm="robust overfitting; CAS falling")
    between = replace(ROW, test_robust_accuracy=None)
    assert should_stop([ROW, alarmed], ["CAS falling"], 1)
    assert not should_stop([ROW, alarmed], ["catastrophic overfitting"], 1)
    assert not should_stop([alarmed, ROW], ["CAS falling"], 1)
    assert not should_stop([ROW, alarmed], ["CAS falling"], 2)
    assert should_stop([alarmed, between, alarmed, between], ["CAS falling"], 2)
    assert not should_stop([alarmed], ["CAS falling"], 2)
