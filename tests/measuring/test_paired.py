"""Two models on the same images: tests of accuracies, bands of pairs that hold together, CAS beyond chance."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.paired import accuracy_tests, describe_tests, paired_intervals
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.probe.attribution import correlation_matrix
from ccf_plugin.probe.confidence import Samples, mcnemar, paired_bootstrap
from ccf_plugin.probe.null import expected_cas, permutation_null


def drawn(seed: int, shared: float = 0.5, noise: int = 0, classes: int = 4, images: int = 40) -> CrossClassResult:
    """A model on images of each of 4 classes; classes 0 and 1 share ``shared`` of a direction. ``noise`` is its own."""
    labels = torch.arange(classes).repeat_interleave(images)
    common = torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(seed))
    own = torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(10_000 + 7 * seed + noise))
    means = 1.5 * torch.eye(classes, 12)
    means[:2, 8] += shared
    rows = means[labels] + 0.5 * common + 0.3 * own
    vectors = torch.stack([rows[labels == label].double().mean(0) for label in range(classes)])
    matrix, counts = correlation_matrix(vectors).numpy(), np.full(classes, images)
    return CrossClassResult(matrix, vectors.numpy(), counts, samples=Samples(rows, labels))


def test_a_pair_that_changed_survives_and_others_do_not() -> None:
    first, second = drawn(0, 1.2, noise=1), drawn(0, 0.2, noise=2)
    bands = paired_intervals(first, second, bootstrap=200).bands
    assert bands.survives[0, 1]
    assert bands.survives[1, 0]
    assert bands.surviving_pairs == np.triu(np.abs(first.matrix - second.matrix) > bands.half_width, 1).sum()
    low, high = bands.band(0, 1)
    assert (low + high) / 2 == pytest.approx(first.matrix[0, 1] - second.matrix[0, 1])
    assert low > 0
    assert np.isnan(np.diag(bands.half_width)).all()
    np.testing.assert_array_equal(bands.half_width, bands.half_width.T)


def test_bands_are_the_max_t_bootstrap_of_the_resamples() -> None:
    """The same from all resampled differences at once, by numpy."""
    first, second = drawn(3, noise=1), drawn(3, noise=2)
    found = paired_intervals(first, second, bootstrap=50, seed=5).bands
    sides = []
    for side in (first, second):
        assert side.samples is not None
        means = torch.cat(list(side.samples.resampled_means(4, bootstrap=50, seed=5))).numpy()
        units = means / np.linalg.norm(means, axis=2, keepdims=True)
        sides.append(units @ units.transpose(0, 2, 1))
    difference = (sides[0] - sides[1])[:, *np.triu_indices(4, 1)]
    spread = difference.std(0, ddof=1)
    critical = np.quantile((np.abs(difference - difference.mean(0)) / spread).max(1), 0.95)
    np.testing.assert_allclose(found.half_width[np.triu_indices(4, 1)], critical * spread, rtol=1e-9)
    assert 2 < critical < 3.5  # a pair alone has 1.96


@pytest.mark.slow
def test_of_100_comparisons_of_equal_models_about_5_name_a_pair_that_differs() -> None:
    named = 0
    for seed in range(300):
        found = paired_intervals(drawn(seed, noise=1), drawn(seed, noise=2), bootstrap=300, seed=seed)
        named += found.bands.surviving_pairs > 0
    assert named <= 300 * 0.05 + 4 * np.sqrt(300 * 0.05 * 0.95)


@pytest.mark.slow
def test_intervals_of_the_excess_hold_its_expectation_in_91_of_100_draws() -> None:
    figures = np.array(
        [[drawn(seed, 0.9, noise=1).cas_excess, drawn(seed, 0.4, noise=2).cas_excess] for seed in range(1_000, 3_000)]
    )
    truths = (*figures.mean(0), np.mean(figures[:, 0] - figures[:, 1]))
    inside = []
    for seed in range(300):
        found = paired_intervals(drawn(seed, 0.9, noise=1), drawn(seed, 0.4, noise=2), bootstrap=300, seed=seed)
        inside.append([low <= truth <= high for truth, (low, high) in zip(truths, found.excess, strict=True)])
    assert (np.mean(inside, 0) >= 0.91).all(), np.mean(inside, 0)


def test_intervals_of_the_excess_lie_around_it_and_of_one_model_twice_have_no_width() -> None:
    first, second = drawn(1, 1.2, noise=1), drawn(1, 0.2, noise=2)
    found = paired_intervals(first, second, bootstrap=100)
    figures = (first.cas_excess, second.cas_excess, first.cas_excess - second.cas_excess)
    for figure, (low, high) in zip(figures, found.excess, strict=True):
        assert low < figure < high
    same = paired_intervals(first, first, bootstrap=20)
    assert same.excess[2] == (0.0, 0.0)
    assert same.bands.surviving_pairs == 0
    described = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert described["excess"]["difference"] == list(found.excess[2])
    assert described["pairs"]["half_width"][0][0] is None


def test_a_class_without_images_has_no_band() -> None:
    first = drawn(2)
    assert first.samples is not None
    keep = first.samples.labels != 2
    few = replace(first, samples=Samples(first.samples.rows[keep], first.samples.labels[keep]))
    few.matrix[2] = few.matrix[:, 2] = np.nan
    bands = paired_intervals(few, few, bootstrap=10).bands
    assert np.isnan(bands.half_width[2]).all()
    assert np.isfinite(bands.half_width[0, 1])


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


def test_samples_are_needed_and_of_the_same_images() -> None:
    first = drawn(0)
    with pytest.raises(InputError, match="files hold no samples"):
        paired_intervals(first, replace(first, samples=None), bootstrap=10)
    assert first.samples is not None
    other = Samples(first.samples.rows, first.samples.labels.flip(0))
    with pytest.raises(InputError, match="the same images in the same order"):
        paired_intervals(first, replace(first, samples=other), bootstrap=10)


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
    assert found["robust_accuracy"].interval == paired_bootstrap(right, other)
    assert found["robust_accuracy"].difference == pytest.approx(right.mean() - other.mean())
    assert (found["clean_accuracy"].difference, found["clean_accuracy"].p) == (0, 1)
    described = json.loads(json.dumps(describe_tests(found)))
    assert described["robust_accuracy"]["only_first"] == (right & ~other).sum()
    assert list(accuracy_tests(first, replace(second, correct=None))) == ["clean_accuracy"]
    assert list(accuracy_tests(first, replace(second, correct=other[:-1]))) == ["clean_accuracy"]
    assert accuracy_tests(first, replace(second, robust_accuracy=None, clean_accuracy=None)) == {}
