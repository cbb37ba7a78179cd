"""Alarms and stopping, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ccf_plugin.runs.alarms import alarms, should_stop
from ccf_plugin.runs.log import EpochRow

ROW = EpochRow(
    epoch=1,
    lr=0.1,
    train_loss=1.0,
    train_robust_accuracy=0.4,
    test_clean_accuracy=0.8,
    test_robust_accuracy=0.5,
    cas=10.0,
    seconds=1.0,
    images_per_second=1.0,
)


@pytest.mark.parametrize(
    ("train", "test", "cas", "expected"),
    [
        (0.5, 0.50, 10.0, []),
        (0.5, 0.49, 8.1, []),  # within the margins
        (0.5, 0.47, 10.0, ["robust overfitting"]),
        (0.5, 0.50, 7.9, ["CAS falling"]),
        (0.5, 0.47, 7.9, ["robust overfitting", "CAS falling"]),
        (0.3, 0.47, 7.9, []),  # training got worse too: that is not overfitting
        (0.9, 0.10, 2.0, ["catastrophic overfitting", "CAS falling"]),
        (0.9, 0.51, 2.0, []),  # the most robust so far
        (0.9, None, None, []),
    ],
)
def test_an_alarm_names_what_fell_from_its_peak(
    train: float, test: float | None, cas: float | None, expected: list[str]
) -> None:
    earlier = [ROW, replace(ROW, epoch=2, test_robust_accuracy=None, cas=None)]
    row = replace(ROW, epoch=3, train_robust_accuracy=train, test_robust_accuracy=test, cas=cas)
    assert alarms(earlier, row) == expected
    assert alarms([], row) == []


def test_ra_and_cas_are_each_compared_with_their_own_peak() -> None:
    early = replace(ROW, train_robust_accuracy=0.2, test_robust_accuracy=0.3, cas=20.0)
    best = replace(ROW, epoch=2)
    row = replace(ROW, epoch=3, train_robust_accuracy=0.3, test_robust_accuracy=0.4)  # trains worse than the best did
    assert alarms([early, best], row) == ["CAS falling"]


def test_stopping_needs_the_alarm_at_so_many_evaluated_epochs_in_a_row() -> None:
    alarmed = replace(ROW, alarm="robust overfitting; CAS falling")
    between = replace(ROW, test_robust_accuracy=None)
    assert should_stop([ROW, alarmed], ["CAS falling"], 1)
    assert not should_stop([ROW, alarmed], ["catastrophic overfitting"], 1)
    assert not should_stop([alarmed, ROW], ["CAS falling"], 1)
    assert not should_stop([ROW, alarmed], ["CAS falling"], 2)
    assert should_stop([alarmed, between, alarmed, between], ["CAS falling"], 2)
    assert not should_stop([alarmed], ["CAS falling"], 2)
