"""The formulas against an oracle, by hand, by their properties, and against golden figures."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tolerances import rounding
from torch import Tensor

from ccf_plugin import (
    attribution,
    cas_contributions,
    class_attribution,
    class_attribution_similarity,
    correlation_matrix,
    instance_matrix,
)
from ccf_plugin.probe import permutation_null
from ccf_plugin.probe.jackknife import instances_without_parts

from . import oracle

formulas = importlib.import_module("ccf_plugin.probe.attribution")  # where the package's name is the function
Sample = tuple[Tensor, Tensor, Tensor]

# (samples, features, classes, whether each class has samples)
SHAPES = [(1, 1, 2), (5, 3, 2), (23, 7, 4), (40, 16, 10), (9, 4, 12)]


def draw(count: int, features: int, classes: int, seed: int = 0) -> Sample:
    """Features g, weight W and labels y with some negative entries, as float64."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(count, features, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    return g, weight, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize(("count", "features", "classes"), SHAPES)
def test_class_wise_formulas_equal_the_oracle(count: int, features: int, classes: int) -> None:
    g, weight, labels = draw(count, features, classes)
    lists = g.tolist(), weight.tolist(), labels.tolist()
    vectors = class_attribution(g, weight, labels)
    np.testing.assert_allclose(vectors, oracle.class_attribution(*lists), atol=1e-12)
    matrix = correlation_matrix(vectors)
    np.testing.assert_allclose(matrix, oracle.correlation_matrix(*lists), atol=1e-12)
    assert float(class_attribution_similarity(matrix)) == pytest.approx(oracle.cas(matrix.tolist()), abs=1e-12)


# Powers of two, by which nothing is rounded. The squares of the rows are beyond the dtype's range.
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 2.0**-110), (torch.float32, 2.0**100), (torch.float64, 2.0**-900), (torch.float64, 2.0**900)],
    ids=str,
)
def test_no_cosine_depends_on_the_scale(dtype: torch.dtype, scale: float) -> None:
    g, weight, labels = draw(200, 16, 4, seed=2)
    rows = attribution(g, weight, labels).to(dtype)
    vectors = class_attribution(g, weight, labels).to(dtype)
    tolerance = rounding(16, dtype)

    def same(formula: Callable[[Tensor], Any], of: Tensor) -> None:
        np.testing.assert_allclose(formula(of * scale), formula(of), atol=tolerance)

    same(correlation_matrix, vectors)
    same(lambda vectors: permutation_null(vectors.double().numpy()).cas_mean, vectors)
    for reduction in ("max", "mean"):
        same(lambda rows, how=reduction: instance_matrix(rows, labels, 4, reduction=how), rows)  # type: ignore[misc]
    same(lambda rows: instance_matrix(rows.requires_grad_(), labels, 4).detach(), rows.clone())
    for index in range(2):
        same(lambda rows, at=index: instances_without_parts(rows, labels, 4)[at], rows)  # type: ignore[misc, index]


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize(("count", "features", "classes"), SHAPES)
def test_instance_matrix_equals_the_oracle(count: int, features: int, classes: int, reduction: str) -> None:
    g, weight, labels = draw(count, features, classes, seed=1)
    expected = oracle.instance_matrix(g.tolist(), weight.tolist(), labels.tolist(), mean=reduction == "mean")
    found = instance_matrix(attribution(g, weight, labels), labels, classes, reduction=reduction)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_three_classes_by_hand() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    g = torch.tensor([[2.0, 1.0], [4.0, 3.0], [1.0, 1.0], [3.0, 3.0], [1.0, 1.0], [1.0, 3.0]])
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    rows = attribution(g, weight, labels)
    assert rows.tolist() == [[2, 0], [4, 0], [0, 1], [0, 3], [1, 1], [1, 3]]
    vectors = class_attribution(g, weight, labels)
    assert vectors.tolist() == [[3, 0], [0, 2], [1, 2]]
    matrix = correlation_matrix(vectors)
    assert matrix[0, 1] == 0
    assert float(matrix[0, 2]) == pytest.approx(1 / math.sqrt(5))
    assert float(matrix[1, 2]) == pytest.approx(2 / math.sqrt(5))
    assert float(class_attribution_similarity(matrix)) == pytest.approx(6 / math.sqrt(5))
    # cos((1,0),(1,1)) = 0.7071, cos((1,0),(1,3)) = 0.3162, cos((0,1),(1,3)) = 0.9487, cos((1,1),(1,3)) = 0.8944
    near, far, high, own = 1 / math.sqrt(2), 1 / math.sqrt(10), 3 / math.sqrt(10), 4 / math.sqrt(20)
    expected = [[1, 0, near], [0, 1, high], [(near + far) / 2, (near + high) / 2, own]]
    instances = instance_matrix(rows, labels, 3)
    np.testing.assert_allclose(instances, expected, atol=1e-6)
    assert float(class_attribution_similarity(instances)) == pytest.approx(2.995352, abs=1e-5)


def test_negative_correlation_does_not_count() -> None:
    matrix = correlation_matrix(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]))
    assert float(matrix[0, 1]) == -1
    contributions = cas_contributions(matrix)
    assert contributions[0, 1] == 0
    assert contributions.diagonal().eq(0).all()
    assert float(class_attribution_similarity(matrix)) == pytest.approx(2 / math.sqrt(2))


def test_a_class_of_one_sample_has_no_diagonal_entry() -> None:
    g, weight, _ = draw(4, 3, 2)
    matrix = instance_matrix(attribution(g, weight, torch.tensor([0, 1, 1, 1])), torch.tensor([0, 1, 1, 1]), 2)
    assert matrix[0, 0].isnan()
    assert matrix[1, 1].isfinite()
    assert matrix[0, 1].isfinite()
    assert matrix[1, 0].isfinite()


def test_a_class_without_samples_is_nan_and_left_out() -> None:
    g, weight, _ = draw(6, 3, 3)
    labels = torch.tensor([0, 2, 0, 2, 0, 2])
    for matrix in (
        correlation_matrix(class_attribution(g, weight, labels)),
        instance_matrix(attribution(g, weight, labels), labels, 3),
        instance_matrix(attribution(g, weight, labels), labels, 3, reduction="mean"),
    ):
        assert matrix[1].isnan().all()
        assert matrix[:, 1].isnan().all()
        kept = matrix[[0, 2]][:, [0, 2]]
        assert kept.isfinite().all()
        assert class_attribution_similarity(matrix) == class_attribution_similarity(kept)


def test_the_diagonal_excludes_the_sample_itself() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    matrix = instance_matrix(rows, torch.tensor([0, 0, 1]), 2)
    assert float(matrix[0, 0]) == 0  # orthogonal to each other; each would be 1 with itself


samples = st.builds(
    draw,
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(2, 6),
    st.integers(0, 2**16),
)


@given(samples)
@settings(max_examples=60, deadline=None)
def test_correlation_matrix_is_symmetric_with_unit_diagonal(sample: Sample) -> None:
    g, weight, labels = sample
    matrix = correlation_matrix(class_attribution(g, weight, labels))
    assert torch.equal(matrix.isnan(), matrix.T.isnan())
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
    diagonal = matrix.diagonal()
    np.testing.assert_allclose(diagonal[~diagonal.isnan()], 1, atol=1e-14)
    assert torch.equal(diagonal.isnan(), torch.bincount(labels, minlength=len(weight)) == 0)


@given(samples)
@settings(max_examples=60, deadline=None)
def test_cas_lies_between_0_and_its_bound(sample: Sample) -> None:
    g, weight, labels = sample
    bound = len(weight) * (len(weight) - 1) + 1e-9
    assert 0 <= float(class_attribution_similarity(correlation_matrix(class_attribution(g, weight, labels)))) <= bound
    rows = attribution(g, weight, labels)
    assert 0 <= float(class_attribution_similarity(instance_matrix(rows, labels, len(weight)))) <= bound


@given(samples, st.floats(1e-3, 1e3), st.randoms())
@settings(max_examples=60, deadline=None)
def test_figures_do_not_depend_on_scale_or_order(sample: Sample, scale: float, random) -> None:
    g, weight, labels = sample
    order = list(range(len(g)))
    random.shuffle(order)
    for figures in (class_wise, instance_wise):
        expected = figures(g, weight, labels)
        np.testing.assert_allclose(figures(g * scale, weight, labels), expected, atol=1e-9)
        np.testing.assert_allclose(figures(g[order], weight, labels[order]), expected, atol=1e-9)


@given(samples, st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_instance_matrix_does_not_depend_on_its_blocks(sample: Sample, max_bytes: int) -> None:
    g, weight, labels = sample
    rows = attribution(g, weight, labels)
    whole = instance_matrix(rows, labels, len(weight))
    np.testing.assert_allclose(instance_matrix(rows, labels, len(weight), max_bytes=max_bytes), whole, atol=1e-12)


@given(samples, st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_a_gpus_few_products_give_the_same(sample: Sample, max_bytes: int) -> None:
    """The way that is taken on CUDA, here taken on the CPU, against the oracle."""
    g, weight, labels = sample
    expected = oracle.instance_matrix(g.tolist(), weight.tolist(), labels.tolist())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(formulas, "_sum_of_nearest", formulas._sum_of_nearest_in_products)
        found = instance_matrix(attribution(g, weight, labels), labels, len(weight), max_bytes=max_bytes)
        rows = attribution(g, weight, labels).float()
        single = instance_matrix(rows, labels, len(weight), max_bytes=max_bytes)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(single, expected, atol=1e-6)


def class_wise(g: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return correlation_matrix(class_attribution(g, weight, labels))


def instance_wise(g: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return instance_matrix(attribution(g, weight, labels), labels, len(weight))


@pytest.mark.parametrize("way", ["_sum_of_nearest", "_sum_of_nearest_in_products"])
def test_golden_figures(golden: dict[str, np.ndarray], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulas, "_sum_of_nearest", getattr(formulas, way))
    g, weight, labels = (torch.from_numpy(golden[name]) for name in ("features", "weight", "labels"))
    matrix = correlation_matrix(class_attribution(g.double(), weight, labels))
    np.testing.assert_allclose(matrix, golden["matrix"], atol=1e-6)
    assert float(class_attribution_similarity(matrix)) == pytest.approx(13.479, abs=1e-3)
    instances = instance_matrix(attribution(g, weight, labels), labels, 10)
    np.testing.assert_allclose(instances, golden["instance_matrix"], atol=1e-5)
    assert float(class_attribution_similarity(instances)) == pytest.approx(18.810, abs=1e-3)
    averaged = instance_matrix(attribution(g, weight, labels), labels, 10, reduction="mean")
    off_diagonal = averaged[~torch.eye(10, dtype=torch.bool)]
    assert float(class_attribution_similarity(averaged)) == pytest.approx(11.2, abs=0.05)
    assert float(off_diagonal.max()) == pytest.approx(0.46, abs=0.005)


def test_gradients_of_cas() -> None:
    g, weight, labels = draw(9, 4, 3)

    def cas(g: Tensor, weight: Tensor) -> Tensor:
        return class_attribution_similarity(class_wise(g, weight, labels))

    assert torch.autograd.gradcheck(cas, (g.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_gradients_of_instance_cas(reduction: str) -> None:
    g, weight, labels = draw(9, 4, 3)
    labels[0], labels[1:] = 0, labels[1:].clamp(min=1)  # a class of one sample: NaN on its diagonal

    def instance_cas(g: Tensor, weight: Tensor) -> Tensor:
        rows = attribution(g, weight, labels)
        return class_attribution_similarity(instance_matrix(rows, labels, 3, reduction=reduction))

    inputs = g.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(instance_cas, inputs)
    with torch.no_grad():  # the blocked computation gives the same value
        blocked = instance_cas(*inputs)
    torch.testing.assert_close(instance_cas(*inputs).detach(), blocked, rtol=0, atol=1e-12)


def test_gradients_are_finite_where_a_class_is_missing_or_zero() -> None:
    g, weight, _ = draw(6, 3, 4)
    g[2] = 0
    g.requires_grad_()
    labels = torch.tensor([0, 0, 1, 3, 3, 3])  # class 1 has only zeros, class 2 nothing
    for figures in (class_wise, instance_wise):
        (gradient,) = torch.autograd.grad(class_attribution_similarity(figures(g, weight, labels)), g)
        assert gradient.isfinite().all()
        assert gradient.any()


def test_cas_can_be_trained_down() -> None:
    g, weight, labels = draw(60, 8, 5)
    weight = weight.abs().requires_grad_()
    g = g.abs()
    optimizer = torch.optim.SGD([weight], lr=0.2)
    found = []
    for _ in range(60):
        cas = class_attribution_similarity(class_wise(g, weight, labels))
        found.append(float(cas.detach()))
        optimizer.zero_grad()
        cas.backward()
        optimizer.step()
    assert found[-1] < 0.7 * found[0]


def test_the_mean_over_all_pairs_hovers_near_zero() -> None:
    """The paper's negative result (Section 5.3): unlike the nearest sample, the average one says little."""
    g, weight, labels = draw(200, 64, 4)
    rows = attribution(g, weight, labels)
    mean = instance_matrix(rows, labels, 4, reduction="mean")
    nearest = instance_matrix(rows, labels, 4)
    assert float(mean.abs().max()) < 0.1 < float(nearest.min())


@pytest.mark.parametrize(("size", "cosine"), [(0.0, 0.0), (1e-42, 1.0), (1e-30, 1.0), (1e38, 1.0)])
def test_attributions_without_a_length_have_cosine_zero_and_no_others(size: float, cosine: float) -> None:
    labels = torch.arange(9) % 3
    for reduction in ("max", "mean"):
        matrix = instance_matrix(torch.full((9, 4), size), labels, 3, reduction=reduction)
        np.testing.assert_allclose(matrix, cosine, atol=rounding(4))
