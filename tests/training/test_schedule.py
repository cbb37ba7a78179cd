"""Learning rates, by hand."""

from __future__ import annotations

import pytest

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
    late = OptimSection(schedule="cyclic", lr=0.2, epochs=30, warmup_epochs=12)  # Wong et al.'s own peak
    assert [learning_rate(late, epochs) for epochs in (0, 6, 12, 21, 30)] == pytest.approx([0, 0.1, 0.2, 0.1, 0])
    warm = OptimSection(schedule="cosine", lr=1.0, epochs=10, warmup_epochs=2)
    assert [learning_rate(warm, epochs) for epochs in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    warm = OptimSection(lr=1.0, epochs=10, warmup_epochs=4, decay_epochs=[2, 8])
    assert [learning_rate(warm, epochs) for epochs in (1, 4, 8)] == pytest.approx([0.25, 0.1, 0.01])
    constant = OptimSection(schedule="constant", lr=0.3, epochs=10, warmup_epochs=4)
    assert [learning_rate(constant, epochs) for epochs in (0, 1, 4, 9)] == pytest.approx([0, 0.075, 0.3, 0.3])
    linear = OptimSection(schedule="linear", lr=1.0, epochs=10, warmup_epochs=2)
    assert [learning_rate(linear, epochs) for epochs in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    points = OptimSection(schedule="points", points=[[40, 0.1], [10, 0.0], [100, 0.01]], epochs=200)
    rates = [learning_rate(points, epochs) for epochs in (0, 10, 25, 40, 70, 100, 150)]
    assert rates == pytest.approx([0, 0, 0.05, 0.1, 0.055, 0.01, 0.01])
