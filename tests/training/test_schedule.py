"""Learning rates and alarms, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ccf_plugin.training.alarms import alarm
from ccf_plugin.training.log import EpochRow
from ccf_plugin.training.recipe import OptimSection
from ccf_plugin.training.schedule import learning_rate


def test_multistep_shows_after_its_epochs() -> None:
    optim = OptimSection()  # the paper's: 0.1, decays after epochs 100 and 150
    done = [0, 99.99, 100, 149.99, 150, 199.9]
    assert [learning_rate(optim, epochs) for epochs in done] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_other_schedules() -> None:
    cosine = OptimSection(schedule="cosine", lr=1.0, epochs=10)
    assert [learning_rate(cosine, epochs) for epochs in (0, 2.5, 5, 10)] == pytest.approx([1, 0.8535534, 0.5, 0])
    cyclic = OptimSection(schedule="cyclic", lr=0.2, epochs=30)
    assert [learning_rate(cyclic, epochs) for epochs in (0, 7.5, 15, 22.5, 30)] == pytest.approx([0, 0.1, 0.2, 0.1, 0])
    constant = OptimSection(schedule="constant", lr=0.3, epochs=10, warmup_epochs=4)
    assert [learning_rate(constant, epochs) for epochs in (0, 1, 4, 9)] == pytest.approx([0, 0.075, 0.3, 0.3])


ROW = EpochRow(1, 0.1, 1.0, 0.4, 0.8, 0.5, 10.0, None, 1.0, 1.0)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (0.5, 0.50, ""),
        (0.5, 0.49, ""),  # within the margin
        (0.5, 0.47, "robust overfitting"),
        (0.3, 0.47, ""),  # training got worse too: that is not overfitting
        (0.9, 0.10, "catastrophic overfitting"),
        (0.9, None, ""),
    ],
)
def test_an_alarm_names_what_fell_from_its_peak(train: float, test: float | None, expected: str) -> None:
    earlier = [ROW, replace(ROW, epoch=2, test_robust_accuracy=None)]
    row = replace(ROW, epoch=3, train_robust_accuracy=train, test_robust_accuracy=test)
    assert alarm(earlier, row) == expected
    assert alarm([], row) == ""
