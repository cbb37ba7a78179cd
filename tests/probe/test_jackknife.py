"""Intervals of CAS, its excess, I-CAS and C: against leaving images out by hand, and at the edges."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, CrossClassResult, InputError
from ccf_plugin.probe import accumulation
from ccf_plugin.probe.attribution import (
    attribution,
    class_attribution,
    correlation_matrix,
    instance_matrix,
)
from ccf_plugin.probe.forward_pass import ForwardPass
from ccf_plugin.probe.jackknife import (
    PARTS,
    WithoutParts,
    deviations,
    instances_without_parts,
    interval_around,
    simultaneous_bands,
    student,
)
from ccf_plugin.probe.null import expected_cas

COUNTS = [45, 21, 20, 39]


def drawn(counts: list[int], features: int = 6, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, n), W (K, n) and labels, in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    weight = torch.randn(len(counts), features, dtype=torch.float64, generator=generator)
    noise = torch.randn(len(labels), features, dtype=torch.float64, generator=generator)
    return (weight[labels] + 0.5 + scale * noise).relu(), weight, labels


def measured(features: Tensor, weight: Tensor, labels: Tensor, *, batch: int = 1_000) -> CrossClassResult:
    head = nn.Linear(weight.shape[1], len(weight), bias=False, dtype=torch.float64)
    head.weight = nn.Parameter(weight)
    with CrossClassProbe(head, inputs="clean", instances=True) as probe, torch.no_grad():
        for rows in torch.arange(len(labels)).split(batch):
            head(features[rows])
            probe.update(labels[rows])
        return probe.compute()


def test_a_part_left_out_is_c_without_its_images() -> None:
    features, weight, labels = drawn(COUNTS)
    result = measured(features, weight, labels, batch=11)
    without = result.without_parts
    assert without is not None
    for label in range(4):
        own = torch.nonzero(labels == label).squeeze(1)
        for part in range(PARTS):
            kept = torch.ones(len(labels), dtype=torch.bool)
            kept[own[part::PARTS]] = False
            vectors = class_attribution(features[kept], weight, labels[kept])
            expected = correlation_matrix(vectors)[label].numpy()
            np.testing.assert_allclose(np.delete(without.matrix[label, part], label), np.delete(expected, label), 1e-5)
            assert without.chance[label, part] == pytest.approx(float(expected_cas(vectors)), rel=1e-5)


def test_processes_begin_at_different_parts_so_that_few_images_each_fill_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images of each class in each of four processes, as a sampler deals twenty."""
    features, weight, _ = drawn([20, 20])
    labels = torch.arange(40) % 2
    counts = torch.zeros(2, PARTS, dtype=torch.int64)
    monkeypatch.setattr(accumulation, "num_processes", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(accumulation, "rank", lambda rank=rank: rank)
        passes = accumulation.Accumulation(None, instances=False, max_per_class=None, max_bytes=2**20, centre=False)
        here = slice(10 * rank, 10 * rank + 10)
        logits = features[here] @ weight.T
        passes.add(ForwardPass(features[here], logits, weight, False, torch.float64, "fc"), labels[here], slice(None))
        assert passes.sums is not None
        counts += passes.sums.counts_by_part
    assert (counts == 1).all()


def test_images_that_all_lie_in_one_part_have_no_interval() -> None:
    counts = torch.zeros(2, PARTS, dtype=torch.int64)
    counts[0, 3], counts[1] = 40, 2
    sums = torch.randn(2, PARTS, 6, dtype=torch.float64) * counts.unsqueeze(2)
    assert WithoutParts.of_sums(sums, counts) is None


def test_deviations_are_the_jackknife_of_a_mean() -> None:
    """Of a plain mean of single values the jackknife's variance is s² / n."""
    values = np.random.default_rng(0).normal(size=(1, 20))
    without = (values.sum() - values) / 19
    assert np.square(deviations(without)).sum() == pytest.approx(values.var(ddof=1) / 20)


@pytest.mark.parametrize("max_bytes", [2**28, 100])
def test_a_part_left_out_is_the_instance_matrix_without_its_images(max_bytes: int) -> None:
    features, weight, labels = drawn([45, 21, 0, 20], features=4)
    rows = attribution(features, weight, labels)
    found = instances_without_parts(rows, labels, 4, max_bytes=max_bytes)
    assert found is not None
    for label in (0, 1, 3):
        own = torch.nonzero(labels == label).squeeze(1)
        for part in range(PARTS):
            kept = torch.ones(len(labels), dtype=torch.bool)
            kept[own[part::PARTS]] = False
            expected = instance_matrix(rows[kept], labels[kept], 4).numpy()
            others = [other for other in range(4) if other != label]
            np.testing.assert_allclose(found[0][label, part, others], expected[label, others], 1e-5)
            np.testing.assert_allclose(found[1][label, part, others], expected[others, label], 1e-5)
    assert np.isnan(found[0][2]).all()
    assert np.isnan(found[1][2]).all()


@pytest.mark.parametrize("freedom", [9, 19, 200])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_students_quantile(freedom: int, level: float) -> None:
    assert student(level, freedom) == pytest.approx(student_t.ppf((1 + level) / 2, freedom), rel=0.012)


def test_intervals_lie_around_the_figures_and_are_the_same_after_saving(tmp_path: Path) -> None:
    result = measured(*drawn([40] * 4))
    found = result.confidence()
    for interval, figure in ((found.cas, result.cas), (found.cas_excess, result.cas_excess)):
        assert interval is not None
        assert interval[0] < figure < interval[1]
    assert found.instance_cas is not None
    assert found.instance_cas[0] < result.instance_cas < found.instance_cas[1]
    narrow = result.confidence(level=0.5)
    assert narrow.cas[1] - narrow.cas[0] < found.cas[1] - found.cas[0]
    assert result.confidence(instances=False).instance_cas is None
    npz, _ = result.save(tmp_path / "found")
    loaded = CrossClassResult.load(tmp_path / "found")
    assert loaded.confidence() == found
    assert loaded.to_json() == result.to_json()
    assert result.to_json()["intervals"]["cas"] == list(found.cas)
    with np.load(npz) as archive:
        assert archive["without_part_matrix"].nbytes == 4 * 20 * 4 * 4


@pytest.mark.parametrize(("similarity", "may_be_positive"), [(-0.05, True), (-0.2, True), (-0.3, False)])
def test_a_cas_of_zero_may_be_above_zero_with_other_images(similarity: float, may_be_positive: bool) -> None:
    """No part makes C[0, 1] positive; its standard deviation is √(2 · 20 · 0.95) 0.02 = 0.123."""
    rows = np.full((2, 20, 2), similarity)
    rows[:, ::2] += 0.02
    rows[:, 1::2] -= 0.02
    apart = WithoutParts(rows, np.zeros((2, 20))).apart("cas", np.array([[1.0, similarity], [similarity, 1.0]]))
    assert apart is not None
    assert np.square(apart).sum() == pytest.approx(4 * 40 * 0.95 * 0.0004 if may_be_positive else 0.0)
    low, high = interval_around(0.0, float(np.square(apart).sum()), 0.95)
    assert high == -low == pytest.approx(2.093 * 2 * 0.1233 if may_be_positive else 0.0, rel=1e-3)


def test_classes_without_images_are_left_out_and_those_of_few_have_no_interval() -> None:
    features, weight, labels = drawn([30, 0, 30])
    with pytest.warns(UserWarning, match="no samples"):
        result = measured(features, weight, labels)
    low, high = result.confidence().cas
    assert low <= result.cas <= high
    for counts in ([30, 1, 30], [30, 19, 30], [1, 1, 1]):
        few = measured(*drawn(counts))
        assert few.intervals()["cas"] is few.intervals()["instance_cas"] is None
        with pytest.raises(InputError, match="a class of fewer than 20 images"):
            few.confidence()
        json.dumps(few.to_json(), allow_nan=False)


def test_images_that_are_all_the_same_have_intervals_without_width() -> None:
    features, weight, labels = drawn([20, 20, 20], scale=0.0)
    result = measured(features, weight, labels)
    low, high = result.confidence().cas
    assert low == pytest.approx(high, abs=1e-5)
    assert low == pytest.approx(result.cas, abs=1e-5)


def test_with_many_classes_there_are_none_and_memory_is_not_taken() -> None:
    assert measured(*drawn([20] * 228, features=2)).without_parts is not None
    assert measured(*drawn([20] * 230, features=2)).without_parts is None


def test_bands_of_pairs_that_do_not_vary_have_no_width_and_of_missing_classes_are_nan() -> None:
    matrix = np.array([[1.0, 0.5, np.nan], [0.5, 1.0, np.nan], [np.nan] * 3])
    half = simultaneous_bands(matrix, np.zeros((3, 20, 3)), draws=10, level=0.95, seed=0)
    assert half[0, 1] == half[1, 0] == 0
    assert np.isnan(half[2]).all()
    assert np.isnan(np.diag(half)).all()


def test_asking_for_resamples_of_images_is_told_to_be_of_no_use() -> None:
    result = measured(*drawn([20, 20]))
    with pytest.warns(DeprecationWarning, match="leave them out"):
        assert result.confidence(bootstrap=200, seed=3) == result.confidence()
    for level in (0.0, 1.0):
        with pytest.raises(InputError, match=r"level in \(0, 1\)"):
            result.confidence(level=level)
    with pytest.raises(InputError, match="expected name to be one of"):
        result.interval("shared_part")


def test_results_without_parts_have_no_interval() -> None:
    result = replace(measured(*drawn([20, 20])), without_parts=None)
    assert result.interval("cas") is result.interval("instance_cas") is None
    assert math.isfinite(result.cas)
