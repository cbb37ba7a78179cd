"""The committed coverage of every interval, and a part of it simulated anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .interval_coverage import SETTINGS, similarities

RESULTS = Path(__file__).parent / "results" / "interval_coverage.json"


def test_every_95_percent_interval_held_in_93_of_100_simulations() -> None:
    described = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert described["coverage"].keys() == {"accuracies", *SETTINGS}
    for name, shares in described["coverage"].items():
        for figure, share in shares.items():
            assert share >= 0.93, (name, figure)


def test_no_test_rejected_what_is_true_more_often_than_5_percent_but_for_chance() -> None:
    described = json.loads(RESULTS.with_name("false_positives.json").read_text(encoding="utf-8"))
    allowed = 0.05 + 3 * (0.05 * 0.95 / described["runs"]) ** 0.5
    for name, shares in described["false_positives"].items():
        for test, share in shares.items():
            assert share <= allowed, (name, test)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4 classes", "10 classes of 20 images"])
def test_intervals_hold_in_93_of_100_draws_but_for_chance(name: str) -> None:
    shares = similarities(SETTINGS[name], runs=400, draws=1_000)
    assert min(shares.values()) >= 0.93 - 2 * (0.05 * 0.95 / 400) ** 0.5, shares
