"""More than one number: intervals over images, repeats over seeds, and what pairs and features contribute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, CrossClassResult, InputError
from ccf_plugin.probe.confidence import mcnemar, tango, tango_p, wilson

from .conftest import small_batch

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def result(model: nn.Module) -> CrossClassResult:
    with CrossClassProbe(model, instances=True, class_names=["ant", "bee", "cow", "doe"]) as probe:
        return probe.run([small_batch(40)])


def sampled(count: int, seed: int) -> CrossClassResult:
    """``count`` images of each of four classes, drawn from one distribution: features with known shared parts."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(count)
    own = nn.functional.one_hot(labels, 4).float()
    features = torch.cat([own, own.roll(1, 1)], 1) + torch.randn(4 * count, 8, generator=generator)
    head = nn.Linear(8, 4, bias=False)
    torch.manual_seed(0)
    nn.init.normal_(head.weight)
    with CrossClassProbe(nn.Sequential(head), instances=True) as probe:
        probe.model(features)
        probe.update(labels)
        return probe.compute()


def test_figures_depend_on_the_number_of_images_a_class() -> None:
    """CAS and I-CAS of 10 images a class are not those of 1,000: compare like with like."""
    few, many = ([sampled(count, seed) for seed in range(5)] for count in (5, 500))
    assert np.mean([r.instance_cas for r in many]) > 1.2 * np.mean([r.instance_cas for r in few])
    assert abs(np.mean([r.cas for r in many]) - np.mean([r.cas for r in few])) > 3 * np.std([r.cas for r in many])


def test_wilson_by_hand_and_at_the_ends() -> None:
    low, high = wilson(8, 10)
    reference = binomtest(8, 10).proportion_ci(0.95, method="wilson")
    assert (low, high) == (pytest.approx(reference.low), pytest.approx(reference.high))
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 10)[1] == pytest.approx(1 - wilson(10, 10)[0])
    for wrong in ((11, 10, 0.95), (-1, 10, 0.95), (0, 0, 0.95), (1, 2, 1.0), (1, 2, 0.0)):
        with pytest.raises(InputError, match="expected"):
            wilson(*wrong)


@pytest.mark.parametrize("accuracy", [0.02, 0.5, 0.93])
@pytest.mark.parametrize("images", [100, 1_000])
def test_wilson_holds_the_accuracy_in_93_of_100_draws(accuracy: float, images: int) -> None:
    drawn = np.random.default_rng(0).binomial(images, accuracy, 4_000)
    inside = [low <= accuracy <= high for low, high in (wilson(int(number), images) for number in drawn)]
    assert np.mean(inside) >= 0.93


def models(images: int, only_first: float, only_second: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images two models classify right, each pair of answers with its probability; both are right on half."""
    draws = np.random.default_rng(seed).random(images)
    both, first = draws < 0.5, (draws >= 0.5) & (draws < 0.5 + only_first)
    second = (draws >= 0.5 + only_first) & (draws < 0.5 + only_first + only_second)
    return both | first, both | second


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for seed in range(20):
        first, second = models(300, 0.1, 0.05 * (seed % 4), seed)
        found = mcnemar(first, second)
        assert found.only_first == (first & ~second).sum()
        assert found.only_second == (second & ~first).sum()
        assert found.p == pytest.approx(binomtest(found.only_first, found.only_first + found.only_second).pvalue)
        assert mcnemar(second, first).p == found.p
    alike = mcnemar(first, first)
    assert (alike.only_first, alike.only_second, alike.p) == (0, 0, 1.0)
    many = mcnemar(np.ones(20_000, dtype=bool), np.arange(20_000) % 2 == 0)
    assert 0.0 <= many.p < 1e-300
    unequal = mcnemar(np.array([True] * 5), np.array([False] * 5))
    assert unequal.p == pytest.approx(2 / 2**5)


def test_mcnemar_rejects_equal_models_no_more_often_than_said() -> None:
    values = [mcnemar(*models(500, 0.08, 0.08, seed)).p for seed in range(1_000)]
    assert np.mean(np.array(values) <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 1_000)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (7, 0), (0, 1), (12, 5), (20, 0), (0, 20)])
def test_the_paired_interval_ends_where_the_score_test_begins_to_reject(only_first: int, only_second: int) -> None:
    """The likeliest shares of images under each difference, looked for on a grid."""
    first, second = np.zeros((2, 20), dtype=bool)
    first[:only_first] = second[only_first : only_first + only_second] = True
    counts = np.array([only_first, only_second, 20 - only_first - only_second])
    low, high = tango(first, second)
    for bound in (low, high):
        share = np.linspace(max(0.0, -bound), (1 - bound) / 2, 200_001)  # that only the second is right
        shares = np.array([share + bound, share, 1 - 2 * share - bound]).clip(1e-15, 1)
        b, c, _ = shares[:, (counts @ np.log(shares)).argmax()]
        sd = np.sqrt(20 * (b + c - bound**2))
        at_end = abs(bound) == 1
        assert at_end or abs(only_first - only_second - 20 * bound) == pytest.approx(1.959964 * sd, rel=1e-3)
        assert at_end or tango_p(first, second, bound) == pytest.approx(0.05)
    assert low <= (only_first - only_second) / 20 <= high
    assert tango(second, first) == pytest.approx((-high, -low), abs=1e-12)


def test_no_image_that_tells_two_models_apart_is_no_proof_that_they_are_equally_accurate() -> None:
    right = np.ones(20, dtype=bool)
    z2 = 1.959964**2
    assert tango(right, right) == pytest.approx((-z2 / (20 + z2), z2 / (20 + z2)), rel=1e-6)


@pytest.mark.parametrize(("only_first", "only_second"), [(0.1, 0.1), (0.2, 0.05), (0.05, 0.02), (0.02, 0.0)])
def test_the_paired_interval_holds_the_difference_in_92_of_100_draws(only_first: float, only_second: float) -> None:
    inside = []
    for seed in range(1_500):
        low, high = tango(*models(100, only_first, only_second, seed))
        inside.append(low <= only_first - only_second <= high)
    assert np.mean(inside) >= 0.92  # steps of single images


@pytest.mark.parametrize(("only_first", "only_second"), [(0.1, 0.15), (0.01, 0.06), (0.06, 0.01), (0.0, 0.05)])
@pytest.mark.parametrize("images", [100, 450])
def test_the_score_test_rejects_a_true_difference_in_5_of_100_draws(
    images: int, only_first: float, only_second: float
) -> None:
    shares, apart = [only_first, only_second, 1 - only_first - only_second], only_first - only_second
    first, second = np.zeros((2, 2_000, images), dtype=bool)
    for row, (b, c, _) in enumerate(np.random.default_rng(0).multinomial(images, shares, 2_000)):
        first[row, :b] = second[row, b : b + c] = True
    p = [tango_p(one, other, apart) for one, other in zip(first, second, strict=True)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2_000)  # steps of single images


def test_pairs_are_of_the_same_images() -> None:
    right = np.ones(4, dtype=bool)
    for test in (mcnemar, tango):
        for other in (np.ones(3, dtype=bool), np.ones(4), np.ones((2, 2), dtype=bool)):
            with pytest.raises(InputError, match="two bool arrays of one length"):
                test(right, other)
        with pytest.raises(InputError, match="two bool arrays"):
            test(right[:0], right[:0])
    with pytest.raises(InputError, match="level in"):
        tango(right, right, level=1.0)


def test_seeds_repeat_the_attack_and_report_the_spread(model: nn.Module, tmp_path: Path) -> None:
    def attack(x: Tensor, y: Tensor) -> Tensor:
        return (x + 0.5 * torch.rand_like(x)).clamp(0, 1)

    with CrossClassProbe(model, instances=True) as probe:
        repeated = probe.run([small_batch()], attack, seed=4, seeds=3)
        single = [probe.run([small_batch()], attack, seed=seed) for seed in (4, 5, 6)]
    np.testing.assert_array_equal(repeated.matrix, single[0].matrix)
    assert [repeat["seed"] for repeat in repeated.repeats] == [4, 5, 6]
    assert [repeat["cas"] for repeat in repeated.repeats] == [result.cas for result in single]
    mean, deviation = repeated.spread["cas"]
    assert mean == pytest.approx(np.mean([result.cas for result in single]))
    assert deviation == pytest.approx(np.std([result.cas for result in single], ddof=1))
    assert set(repeated.spread) == {"robust_accuracy", "cas", "instance_cas"}
    assert single[0].spread == {}
    repeated.save(tmp_path / "found")
    assert CrossClassResult.load(tmp_path / "found").spread == repeated.spread


class SeedsItself:
    """Draws as torchattacks' Square and APGD do: by its own seed at every call."""

    def __init__(self, inner: SeedsItself | None = None) -> None:
        self.seed = 7
        self._attacks = {} if inner is None else {"inner": inner}

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        for inner in self._attacks.values():
            x = inner(x, y)
        return (x + 0.5 * torch.rand(x.shape, generator=torch.Generator().manual_seed(self.seed))).clamp(0, 1)


def test_an_attack_that_seeds_itself_does_so_by_the_runs_seed(model: nn.Module) -> None:
    inner = SeedsItself()
    attack = SeedsItself(inner)
    with CrossClassProbe(model) as probe:
        repeated = probe.run([small_batch()], attack, seed=4, seeds=2)
        own, others = (probe.run([small_batch()], attack, seed=seed) for seed in (None, 5))
        assert (attack.seed, inner.seed) == (7, 7)
        inner.seed = attack.seed = 5
        expected = probe.run([small_batch()], attack)
    assert len({repeated.cas, own.cas, others.cas}) == 3
    assert repeated.repeats[1]["cas"] == others.cas == expected.cas


def test_seeds_need_an_attack_and_a_loader_that_can_be_read_again(model: nn.Module) -> None:
    with CrossClassProbe(model) as probe:
        for loader, attack, seeds in (
            ([small_batch()], None, 2),
            (iter([small_batch()]), lambda x, y: x, 2),
            ([small_batch()], lambda x, y: x, 0),
        ):
            with pytest.raises(InputError, match="seeds="):
                probe.run(loader, attack, seeds=seeds)


def test_pair_contributions_add_up_to_cas(result: CrossClassResult) -> None:
    contributions = result.pair_contributions()
    assert contributions.sum() == pytest.approx(result.cas)
    assert (np.diag(contributions) == 0).all()
    assert (contributions >= 0).all()
    first, second, value = result.top_pairs(1)[0]
    assert value == pytest.approx(contributions.max())
    assert contributions[result.names.index(first), result.names.index(second)] == pytest.approx(value)


def test_shared_features_add_up_to_the_correlation(result: CrossClassResult) -> None:
    shares = result.shared_features("ant", "cow", count=24)
    assert sum(share for _, share in shares) == pytest.approx(result.matrix[0, 2])
    assert [share for _, share in shares] == sorted((share for _, share in shares), reverse=True)
    assert len({feature for feature, _ in shares}) == 24
    index, share = result.shared_features(0, 2, count=1)[0]
    a, b = result.class_attribution[0], result.class_attribution[2]
    assert share == pytest.approx(a[index] * b[index] / np.linalg.norm(a) / np.linalg.norm(b))
    with pytest.raises(InputError, match="did you mean 'cow'"):
        result.shared_features("ant", "cows")
    with pytest.raises(InputError, match="index below 4"):
        result.shared_features(0, 4)
