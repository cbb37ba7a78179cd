"""Two models on the same images: tests of accuracies, bands of pairs that hold together, CAS beyond chance."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.results import drawn

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.paired import accuracy_tests, describe_tests, paired_intervals
from ccf_plugin.probe.confidence import mcnemar, tango
from ccf_plugin.probe.jackknife import deviations, student
from ccf_plugin.probe.null import expected_cas, permutation_null


def test_a_pair_that_changed_survives_and_others_do_not() -> None:
    first, second = drawn(0, 1.2, noise=1), drawn(0, 0.2, noise=2)
    found = paired_intervals(first, second, bootstrap=200)
    assert found is not None
    bands = found.bands
    assert bands.survives[0, 1]
    assert bands.survives[1, 0]
    assert bands.surviving_pairs == np.triu(np.abs(first.matrix - second.matrix) > bands.half_width, 1).sum()
    low, high = bands.band(0, 1)
    assert (low + high) / 2 == pytest.approx(first.matrix[0, 1] - second.matrix[0, 1])
    assert low > 0
    assert np.isnan(np.diag(bands.half_width)).all()
    np.testing.assert_array_equal(bands.half_width, bands.half_width.T)


def test_bands_and_intervals_of_one_model_twice_have_no_width() -> None:
    first, second = drawn(1, 1.2, noise=1), drawn(1, 0.2, noise=2)
    found = paired_intervals(first, second, bootstrap=100)
    assert found is not None
    assert found.excess is not None
    for name, intervals in (("cas", found.cas), ("cas_excess", found.excess)):
        figures = [getattr(side, name) for side in (first, second)]
        for figure, (low, high) in zip((*figures, figures[0] - figures[1]), intervals, strict=True):
            assert low < figure < high
        assert intervals[0] == first.interval(name)
    same = paired_intervals(first, first, bootstrap=20)
    assert same is not None
    assert same.cas[2] == (0.0, 0.0)
    assert same.bands.surviving_pairs == 0
    described = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert described["excess"]["difference"] == list(found.excess[2])
    assert described["pairs"]["half_width"][0][0] is None
    assert found.cas_to_json()["difference"] == list(found.cas[2])


def test_what_moves_both_models_alike_cancels() -> None:
    first, second = drawn(5, 0.5, noise=1), drawn(5, 0.5, noise=2)
    found = paired_intervals(first, second)
    assert found is not None
    widths = [high - low for low, high in found.cas]
    assert widths[2] < 0.7 * math.hypot(*widths[:2])


def test_a_band_is_wider_than_a_pairs_own_interval_by_what_all_pairs_take() -> None:
    first, second = drawn(3, noise=1), drawn(3, noise=2)
    found = paired_intervals(first, second)
    assert found is not None
    assert first.without_parts is not None
    assert second.without_parts is not None
    apart = deviations(first.without_parts.matrix) - deviations(second.without_parts.matrix)
    variance = np.square(apart).sum(1)
    critical = (found.bands.half_width / np.sqrt(variance + variance.T))[np.triu_indices(4, 1)]
    np.testing.assert_allclose(critical, critical[0])
    assert 2.2 < critical[0] / student(0.95, 19) * 1.96 < 3.0  # a pair alone has 1.96, six independent ones 2.63


def test_a_class_without_images_has_no_band_and_few_images_no_intervals() -> None:
    first = drawn(2)
    hole = first.matrix.copy()
    hole[2] = hole[:, 2] = np.nan
    found = paired_intervals(replace(first, matrix=hole), first, bootstrap=10)
    assert found is not None
    assert np.isnan(found.bands.half_width[2]).all()
    assert np.isfinite(found.bands.half_width[0, 1])
    assert paired_intervals(first, drawn(2, images=19)) is None
    with pytest.raises(InputError, match="bootstrap of 2 or more"):
        paired_intervals(first, first, bootstrap=1)


def test_chance_in_one_formula_is_what_permutations_give() -> None:
    rng = np.random.default_rng(0)
    for vectors in (rng.normal(size=(6, 64)), rng.exponential(size=(6, 64)), rng.normal(0.3, 1, size=(8, 200))):
        null = permutation_null(vectors, permutations=4_000)
        error = null.cas_sd / np.sqrt(4_000)
        assert float(expected_cas(torch.from_numpy(vectors))) == pytest.approx(null.cas_mean, abs=4 * error + 0.01)
    both = torch.from_numpy(rng.normal(size=(2, 5, 30)))
    torch.testing.assert_close(expected_cas(both), torch.stack([expected_cas(both[0]), expected_cas(both[1])]))
    both[0, 3] = torch.nan
    kept = both[0, [0, 1, 2, 4]]
    torch.testing.assert_close(expected_cas(both)[0], expected_cas(kept))


def test_accuracies_are_tested_where_both_have_records() -> None:
    rng = np.random.default_rng(0)
    right, other = rng.random((2, 200)) < np.array([[0.6], [0.5]])
    clean = rng.random(200) < 0.9
    first = replace(
        drawn(0), robust_accuracy=right.mean(), clean_accuracy=clean.mean(), correct=right, correct_clean=clean
    )
    second = replace(first, robust_accuracy=other.mean(), correct=other)
    found = accuracy_tests(first, second)
    assert found["robust_accuracy"].p == mcnemar(right, other).p
    assert found["robust_accuracy"].interval == tango(right, other)
    assert found["robust_accuracy"].difference == pytest.approx(right.mean() - other.mean())
    assert (found["clean_accuracy"].difference, found["clean_accuracy"].p) == (0, 1)
    described = json.loads(json.dumps(describe_tests(found)))
    assert described["robust_accuracy"]["only_first"] == (right & ~other).sum()
    assert list(accuracy_tests(first, replace(second, correct=None))) == ["clean_accuracy"]
    assert list(accuracy_tests(first, replace(second, correct=other[:-1]))) == ["clean_accuracy"]
    assert accuracy_tests(first, replace(second, robust_accuracy=None, clean_accuracy=None)) == {}
