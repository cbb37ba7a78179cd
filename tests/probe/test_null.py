"""CAS and C by chance: the closed forms against all permutations, what p means, and golden figures."""

from __future__ import annotations

import json
import math
import time
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccf_plugin import CrossClassResult, InputError, class_attribution, correlation_matrix
from ccf_plugin.probe.null import permutation_null

from . import oracle


def skewed(classes: int, features: int, seed: int = 0) -> np.ndarray:
    """Mostly positive and skewed, as class attributions are."""
    return np.random.default_rng(seed).normal(0.3, 1.0, (classes, features)) ** 3


def result_of(vectors: np.ndarray) -> CrossClassResult:
    matrix = correlation_matrix(torch.from_numpy(vectors)).numpy()
    return CrossClassResult(matrix, vectors, np.full(len(vectors), 5))


def test_mean_sd_and_p_of_all_permutations_of_five_features() -> None:
    """Every one of the 5! relative orders of two classes, as many as there are of each pair of orders."""
    first, second = skewed(2, 5).tolist()
    cosines = [oracle.cosine(first, list(order)) for order in permutations(second)]
    null = permutation_null(np.array([first, second]), permutations=4_000)
    assert null.mean[0, 1] == pytest.approx(math.fsum(cosines) / 120, rel=1e-12)
    assert null.sd[0, 1] == pytest.approx(np.std(cosines), rel=1e-12)
    as_large = np.mean(np.array(cosines) >= oracle.cosine(first, second) - 1e-12)
    cas = [2 * max(value, 0.0) for value in cosines]
    assert null.cas_p == pytest.approx(as_large, abs=4 * math.sqrt(as_large * (1 - as_large) / 4_000))
    assert null.cas_mean == pytest.approx(np.mean(cas), abs=4 * np.std(cas) / math.sqrt(4_000))
    assert null.cas_sd == pytest.approx(np.std(cas), rel=0.1)


def test_entries_of_c_are_independent_in_pairs_so_that_variances_add_up() -> None:
    """Three classes of three features: all 6³ permutations of all."""
    rows = skewed(3, 3).tolist()
    orders = product(*(list(permutations(row)) for row in rows))
    pairs = np.array([[oracle.cosine(list(a), list(b)) for a, b in combinations(order, 2)] for order in orders])
    sd = permutation_null(np.array(rows)).sd[np.triu_indices(3, 1)]
    np.testing.assert_allclose(np.cov(pairs.T, ddof=0), np.diag(sd) ** 2, atol=1e-14)
    parts = pairs.clip(min=0)
    assert (2 * parts.sum(1)).var() == pytest.approx(4 * parts.var(0).sum(), rel=1e-12)
    null = permutation_null(np.array(rows), permutations=5_000)
    assert null.cas_mean == pytest.approx(2 * parts.sum(1).mean(), rel=0.02)
    assert null.cas_sd == pytest.approx((2 * parts.sum(1)).std(), rel=0.03)


def test_the_excess_in_standard_deviations_is_pearsons_correlation() -> None:
    vectors = skewed(4, 60)
    null = permutation_null(vectors)
    upper = np.triu_indices(4, 1)
    z = ((correlation_matrix(torch.from_numpy(vectors)).numpy() - null.mean)[upper]) / null.sd[upper]
    np.testing.assert_allclose(z, math.sqrt(59) * np.corrcoef(vectors)[upper], rtol=1e-10)


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 10**6), st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_properties(classes: int, features: int, seed: int, scale: float) -> None:
    vectors = skewed(classes, features, seed)
    null = permutation_null(vectors, permutations=20)
    assert 0 <= null.cas_mean <= classes * (classes - 1) + 1e-9
    assert 0 <= null.cas_p <= 1
    for matrix, diagonal in ((null.mean, 1.0), (null.sd, 0.0), (null.p, 1.0)):
        np.testing.assert_allclose(matrix, matrix.T)
        np.testing.assert_array_equal(np.diagonal(matrix), diagonal)
    assert ((null.p >= 0) & (null.p <= 1)).all()
    scaled = permutation_null(vectors * scale, permutations=20)
    np.testing.assert_allclose(scaled.mean, null.mean, rtol=1e-9, atol=1e-12)
    assert scaled.cas_mean == pytest.approx(null.cas_mean)


def test_attributions_in_no_shared_order_have_p_of_all_sizes() -> None:
    """The p of C and of CAS under the null are even: as many below 0.1 as a tenth."""
    nulls = [permutation_null(skewed(5, 100, seed), permutations=99) for seed in range(400)]
    upper = np.triu_indices(5, 1)
    for values in (np.concatenate([null.p[upper] for null in nulls]), np.array([null.cas_p for null in nulls])):
        for level in (0.1, 0.5):
            error = math.sqrt(level * (1 - level) / len(values))
            assert np.mean(values <= level) == pytest.approx(level, abs=4 * error + 0.01)


def test_shared_order_is_seen() -> None:
    shared = skewed(1, 200)
    null = permutation_null(shared + 0.5 * skewed(4, 200, seed=1))
    assert null.cas_p == 1 / (null.permutations + 1)
    assert (null.p[~np.eye(4, dtype=bool)] < 1e-6).all()


def test_few_permutations_tell_what_many_do() -> None:
    vectors = skewed(60, 200)
    few, many = (permutation_null(vectors, permutations=number) for number in (4, 500))
    assert few.cas_mean == pytest.approx(many.cas_mean, abs=4 * many.cas_sd / math.sqrt(4))
    assert few.cas_sd == pytest.approx(many.cas_sd, rel=0.05)
    assert few.cas_p == pytest.approx(many.cas_p, abs=0.7)
    np.testing.assert_array_equal(few.sd, many.sd)


@pytest.mark.parametrize("seed", range(4))
def test_of_two_classes_p_is_that_of_their_one_pair_however_few_the_permutations(seed: int) -> None:
    """CAS of two classes is 0 in half of the permutations, and far from normal."""
    first, second = np.linalg.qr(np.random.default_rng(seed).normal(size=(500, 2)))[0].T
    vectors = np.array([first, second + 0.08 * first])
    null = permutation_null(vectors, permutations=20)
    share = null.p[0, 1]
    assert share < 0.4  # C is positive
    assert null.cas_p == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 999) + 1e-3)


def test_blocks_of_rows_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = permutation_null(skewed(9, 20), permutations=30)
    monkeypatch.setattr("ccf_plugin.probe.null._AT_ONCE", 2 * 30 * 9)
    parts = permutation_null(skewed(9, 20), permutations=30)
    assert (parts.cas_mean, parts.cas_sd) == (pytest.approx(whole.cas_mean), pytest.approx(whole.cas_sd))
    assert parts.cas_p == pytest.approx(whole.cas_p)


def test_classes_without_an_attribution_are_left_out() -> None:
    vectors = skewed(5, 30)
    vectors[1], vectors[3] = np.nan, 0.0
    null, kept = permutation_null(vectors), permutation_null(vectors[[0, 2, 4]])
    assert (null.cas_mean, null.cas_sd, null.cas_p) == (kept.cas_mean, kept.cas_sd, kept.cas_p)
    for name in ("mean", "sd", "p"):
        matrix = getattr(null, name)
        assert np.isnan(matrix[[1, 3]]).all()
        assert np.isnan(matrix[:, [1, 3]]).all()
        np.testing.assert_allclose(matrix[np.ix_([0, 2, 4], [0, 2, 4])], getattr(kept, name))


def test_constant_attributions_are_the_same_however_permuted() -> None:
    null = permutation_null(np.ones((3, 7)))
    assert null.cas_mean == pytest.approx(6.0)
    assert null.cas_sd == pytest.approx(0.0, abs=1e-12)
    assert null.cas_p == 1.0
    np.testing.assert_array_equal(null.p, 1.0)
    assert permutation_null(np.ones((3, 7)), permutations=5).cas_p == 1.0


def test_one_permutation_has_no_spread() -> None:
    with pytest.raises(InputError, match="2 permutations or more, found 1"):
        permutation_null(skewed(3, 4), permutations=1)


def test_nothing_to_permute_is_null_in_json() -> None:
    result = result_of(np.zeros((3, 2)))
    assert math.isnan(result.cas_excess)
    described = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert described["cas_excess"] is None
    assert described["null"]["cas"] == {"mean": None, "sd": None, "p": None}


def test_the_same_seed_gives_the_same_and_the_result_keeps_it(tmp_path: Path) -> None:
    vectors = skewed(6, 80)
    result = result_of(vectors)
    assert result.null is result.null
    assert result.null.cas_mean == permutation_null(vectors).cas_mean
    assert result.null.cas_mean != permutation_null(vectors, seed=1).cas_mean
    assert result.cas_excess == result.cas - result.null.cas_mean
    result.save(tmp_path / "found")
    loaded = CrossClassResult.load(tmp_path / "found")
    assert loaded.to_json() == result.to_json()
    described = result.to_json()["null"]
    assert described["permutations"] == 199
    np.testing.assert_array_equal(described["p"], result.null.p)


def test_the_arrays_of_many_classes_are_two_vectors_in_the_npz(tmp_path: Path) -> None:
    result = result_of(skewed(101, 12))
    npz, _ = result.save(tmp_path / "many")
    assert [result.to_json()["null"][name] for name in ("mean", "sd", "p")] == [None] * 3
    with np.load(npz, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["null_mean_root"], result.null.mean_root)
        np.testing.assert_array_equal(archive["null_sd_root"], result.null.sd_root)


def test_a_thousand_classes_take_seconds() -> None:
    vectors = np.abs(skewed(1_000, 2_048))
    started = time.process_time()
    null = permutation_null(vectors)
    assert null.permutations == 4
    assert time.process_time() - started < 20
    assert null.cas_p == pytest.approx(0.5, abs=0.499)


def golden_attribution(golden: dict[str, np.ndarray], weight: torch.Tensor | None = None) -> np.ndarray:
    g, labels = torch.from_numpy(golden["features"]).double(), torch.from_numpy(golden["labels"])
    weight = torch.from_numpy(golden["weight"]) if weight is None else weight
    return class_attribution(g, weight.double(), labels).numpy()


def test_golden_cas_is_that_of_permuted_attributions(golden: dict[str, np.ndarray]) -> None:
    result = result_of(golden_attribution(golden))
    assert result.cas == pytest.approx(13.479, abs=1e-3)
    assert result.null.cas_mean == pytest.approx(13.40, abs=0.02)
    assert result.null.cas_sd == pytest.approx(0.507, abs=0.015)
    assert abs(result.cas_excess) < result.null.cas_sd
    assert 0.3 < result.null.cas_p < 0.6
    assert result.null.p[0, 8] < 1e-3  # airplane and ship
    assert result.null.p[0, 5] > 0.99  # airplane and dog


def test_golden_features_with_a_random_head(golden: dict[str, np.ndarray]) -> None:
    """CAS is 1.6 where nothing was learnt: n = 512 features alone give it."""
    heads = [torch.randn(10, 512, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    results = [result_of(golden_attribution(golden, head)) for head in heads]
    assert np.mean([result.cas for result in results]) == pytest.approx(1.6, abs=0.2)
    assert np.mean([result.null.cas_mean for result in results]) == pytest.approx(1.6, abs=0.1)
