"""Section 4: closed forms against sampling, brute force and training, and where the paper's text is inexact."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe
from ccf_plugin.errors import InputError
from ccf_plugin.theory import Study, SyntheticModel, estimate, run_study, train
from ccf_plugin.theory.closed_forms import correlation
from ccf_plugin.theory.simulation import head_weight, losses, sample, worst_perturbation

PAPER = SyntheticModel()
SMOOTHED = SyntheticModel(beta=0.1)
CASES = [PAPER, SMOOTHED, SyntheticModel(mu=2.0, sigma=1.5, lam=0.5, beta=0.2, features=3)]


def weights(w_1: float, w_2: float, features: int = 1) -> Tensor:
    return torch.tensor([[w_1], [w_2]], dtype=torch.float64).repeat(1, features)


def logits_by_hand(x: list[float], w_1: float, w_2: float) -> list[float]:
    """Eq. (16), K = 1, in plain Python."""
    return [w_1 * x[i] + w_2 * sum(x[3 + j] for j in range(3) if j != i) for i in range(3)]


def test_a_sample_has_what_its_class_has() -> None:
    x, labels = sample(replace(PAPER, features=2), 30_000, torch.Generator().manual_seed(0))
    x = x.view(-1, 6, 2)
    for label in range(3):
        has = [float(i == label) for i in range(3)] + [float(i != label) for i in range(3)]
        own = x[labels == label]
        assert torch.equal((own != 0).all(0), torch.tensor(has).bool().unsqueeze(1).expand(6, 2))
        assert own.mean(0).flatten().tolist() == pytest.approx([v for v in has for _ in "ab"], abs=0.03)
        assert own.std(0).flatten().tolist() == pytest.approx([0.6 * v for v in has for _ in "ab"], abs=0.03)


def test_the_head_is_equation_16() -> None:
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.tensor([logits_by_hand(row.tolist(), 0.7, 0.4) for row in x], dtype=torch.float64)
    torch.testing.assert_close(x @ head_weight(weights(0.7, 0.4)).T, expected)


def test_lemma_2_is_the_worst_of_all_corners() -> None:
    """The margin is convex in δ, so the worst δ is a corner of the ball."""
    x, labels = sample(PAPER, 60, torch.Generator().manual_seed(2))
    corners = torch.tensor(list(itertools.product((-0.3, 0.3), repeat=6)), dtype=torch.float64)
    for w in (weights(0.9, 0.3), weights(0.2, 0.8), weights(0.5, 0.0)):
        head = head_weight(w)
        found = losses((x + worst_perturbation(labels, 0.3)) @ head.T, labels, 0.0)
        every = torch.stack([losses((x + corner) @ head.T, labels, 0.0) for corner in corners])
        torch.testing.assert_close(found, every.amax(0))


def test_losses_by_hand() -> None:
    logits, labels = torch.tensor([[1.0, 4.0, 3.0], [1.0, 4.0, 3.0]]), torch.tensor([0, 1])
    assert losses(logits, labels, 0.0).tolist() == [3.0, -1.0]
    assert losses(logits, labels, 0.2).tolist() == pytest.approx([0.8 * 3 - 0.1 * 7, 0.8 * -1 - 0.1 * 4])


@pytest.mark.parametrize("model", CASES, ids=["plain", "smoothed", "three features"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.95])
def test_closed_forms_are_within_the_sampling_error(model: SyntheticModel, share: float) -> None:
    """At weights that are no optimum, and differ from feature to feature."""
    eps = share * model.mu / 2
    w = torch.rand(2, model.features, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.1
    found = estimate(model, w, eps, samples=40_000, seed=4)
    exact = {
        "loss": model.loss(w, eps),
        "pairwise": model.pairwise_probability(w, eps),
        "joint": model.joint_probability(w, eps),
    }
    for name, value in exact.items():
        assert abs(found[name].mean - value) < 4.5 * found[name].standard_error, name
        assert found[name].standard_error < 0.03


@pytest.mark.parametrize("model", CASES, ids=["plain", "smoothed", "three features"])
def test_the_optimum_is_the_least_of_its_neighbourhood(model: SyntheticModel) -> None:
    generator = torch.Generator().manual_seed(5)
    for eps in torch.linspace(0.05, 0.95, 7).tolist():
        best = model.optimal_weights(eps * model.mu / 2)
        least = model.loss(best, eps * model.mu / 2)
        for size in (1e-3, 0.1, 1.0):
            for _ in range(20):
                step = size * torch.randn(2, model.features, dtype=torch.float64, generator=generator)
                assert model.loss((best + step).clamp(min=0), eps * model.mu / 2) >= least


def test_theorems_1_and_3_and_corollary_1() -> None:
    eps_0, eps_1 = PAPER.threshold, SMOOTHED.threshold
    assert eps_0 == pytest.approx((1 - 0.6 / math.sqrt(math.pi)) / 2)
    assert 0 < eps_0 < eps_1 < PAPER.mu / 2
    for eps in torch.linspace(0.01, 0.49, 25).tolist():
        plain, smoothed = PAPER.optimal_weights(eps), SMOOTHED.optimal_weights(eps)
        assert plain[0] > 0
        assert (plain[1] > 0) == (eps < eps_0)
        assert (smoothed[1] > 0) == (eps < eps_1)
        assert smoothed[1] > plain[1] or eps > eps_1
        assert (correlation(smoothed) > correlation(plain)) == (eps < eps_1)


@pytest.mark.parametrize("model", CASES, ids=["plain", "smoothed", "three features"])
@pytest.mark.parametrize("share", [0.3, 0.75, 0.97])
def test_training_reaches_the_closed_form(model: SyntheticModel, share: float) -> None:
    """From a random start; for K > 1 that all features end up equal is training's doing."""
    eps = share * model.mu / 2
    trained = train(model, eps, samples=60_000 if model.features == 1 else 150_000, seed=1)
    assert (trained - model.optimal_weights(eps)).abs().max() < 1e-2 * model.mu / model.lam


@pytest.mark.parametrize("features", [1, 3])
def test_the_probe_reproduces_the_closed_form_of_c(features: int) -> None:
    """Clean and under attack, for trained-like weights, by the probe attached to the classifier as to any other."""
    model = SyntheticModel(features=features)
    w = model.optimal_weights(0.1)
    head = nn.Linear(6 * features, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(head_weight(w))
    classifier = nn.Sequential(nn.Flatten(), head)
    x, labels = sample(model, 60_000, torch.Generator().manual_seed(6))
    for delta in (0.0, worst_perturbation(labels, 0.1, features)):
        with torch.no_grad(), CrossClassProbe(classifier) as probe:
            classifier(x + delta)
            probe.update(labels)
            result = probe.compute()
        off_diagonal = result.matrix[~torch.eye(3).bool().numpy()]
        assert off_diagonal.tolist() == pytest.approx([correlation(w)] * 6, abs=0.005)
        assert result.cas == pytest.approx(6 * correlation(w), abs=0.02)


def test_correlation_by_hand() -> None:
    assert correlation(weights(2.0, 1.0)) == pytest.approx(1 / 6)
    assert correlation(weights(1.0, 1.0, features=4)) == pytest.approx(1 / 3)
    assert correlation(weights(1.0, 0.0)) == 0


# --- where the paper's text is inexact, as ccf_plugin.theory lists it ---


def test_erratum_1_the_coefficient_of_w1_in_equation_39() -> None:
    eps, beta, mu = 0.2, SMOOTHED.beta, SMOOTHED.mu
    coefficient = (SMOOTHED.loss(weights(1, 0.5), eps) - SMOOTHED.loss(weights(0, 0.5), eps)) - SMOOTHED.lam / 2
    assert coefficient == pytest.approx(-(1 - beta) * mu + (2 - 3 * beta) * eps)
    ours, paper = weights(1, 0.5), (1 - beta) * mu + (2 - 3 * beta) * eps
    found = estimate(SMOOTHED, ours, eps, samples=40_000)["loss"]
    as_printed = SMOOTHED.loss(ours, eps) - coefficient + paper
    assert abs(found.mean - SMOOTHED.loss(ours, eps)) < 4.5 * found.standard_error
    assert abs(found.mean - as_printed) > 100 * found.standard_error


@pytest.mark.parametrize(("beta", "passes"), [(0.1, False), (0.25, False), (0.26, True), (0.32, True)])
def test_erratum_2_theorem_3_needs_a_condition(beta: float, passes: bool) -> None:
    """βμ/(1−β) < σ/√π is β < 0.2529 here; beyond it nothing below μ/2 stops label smoothing from keeping w₂."""
    model = SyntheticModel(beta=beta)
    assert (beta * model.mu / (1 - beta) >= model.sigma / math.sqrt(math.pi)) == passes
    assert (model.threshold >= model.mu / 2) == passes
    assert (model.optimal_weights(0.4999 * model.mu)[1, 0] > 0) == passes


def test_erratum_3_the_variance_in_equation_36() -> None:
    w, eps = weights(1.0, 0.6), 0.2
    found = estimate(PAPER, w, eps, samples=40_000)["pairwise"]
    with_double_variance = torch.special.ndtr(torch.tensor(0.6 * 1.6 / (0.6 * math.sqrt(2 * 1.36)))).item()
    assert PAPER.pairwise_probability(w, eps) == pytest.approx(0.5 * math.erfc(-1.6 / math.sqrt(2 * 1.36)))
    assert abs(found.mean - PAPER.pairwise_probability(w, eps)) < 4.5 * found.standard_error
    assert abs(found.mean - with_double_variance) > 20 * found.standard_error


def test_erratum_4_the_derivative_after_equation_31_is_positive() -> None:
    eps = (PAPER.threshold + PAPER.mu / 2) / 2
    for w_2 in (0.0, 0.5, 2.0):
        assert PAPER.loss(weights(1.0, w_2 + 1e-4), eps) > PAPER.loss(weights(1.0, w_2), eps)


@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.5])
def test_erratum_5_theorem_2_holds_for_one_other_class_and_not_for_all(sigma: float) -> None:
    model = SyntheticModel(sigma=sigma)
    ratios = torch.linspace(0, 1, 41).tolist()
    for eps in torch.linspace(0.02, 0.48, 24).tolist():
        if abs(eps - model.threshold) < 0.005 or model.joint_probability(weights(1, 1), eps) > 1 - 1e-6:
            continue
        pairwise = [model.pairwise_probability(weights(1, t), eps) for t in ratios]
        assert pairwise == sorted(pairwise)
        joint = [model.joint_probability(weights(1, t), eps) for t in ratios]
        assert joint[-1] < model.joint_probability(weights(1, 0.999), eps)  # near w₂ = w₁ it falls, whatever ε
        slope = model.joint_probability(weights(1, 1e-4), eps) - joint[0]
        assert (slope > 0) == (eps < model.threshold)  # near w₂ = 0: up below ε₀, down above
        assert (joint == sorted(joint, reverse=True)) == (eps > model.threshold)


def test_erratum_5_by_sampling_alone() -> None:
    """The same samples for each weight, so that the difference is far outside their error."""
    joint = [estimate(PAPER, weights(1, t), 0.4, samples=40_000)["joint"] for t in (0.0, 0.5, 1.0)]
    assert joint[0].mean > joint[1].mean + 0.04 > joint[2].mean + 0.08
    assert all(one.standard_error < 0.003 for one in joint)


def test_erratum_6_the_worst_perturbation_of_the_whole_smoothed_loss() -> None:
    x, labels = sample(SMOOTHED, 3000, torch.Generator().manual_seed(7))
    corners = torch.tensor(list(itertools.product((-0.2, 0.2), repeat=6)), dtype=torch.float64)
    w = weights(0.9, 0.4)
    head = head_weight(w)
    every = torch.stack([losses((x + corner) @ head.T, labels, SMOOTHED.beta) for corner in corners]).amax(0)
    with_lemma_2 = losses((x + worst_perturbation(labels, 0.2)) @ head.T, labels, SMOOTHED.beta)
    # βε w₁ more, sample by sample: the coefficient of w₁ is −(1−β)(μ−2ε), that of w₂ as in eq. (39)
    torch.testing.assert_close(every - with_lemma_2, torch.full_like(every, SMOOTHED.beta * 0.2 * 0.9))


def test_erratum_7_the_thresholds_rise_with_the_features_of_appendix_e5() -> None:
    for beta in (0.0, 0.1):
        thresholds = [SyntheticModel(beta=beta, features=k).threshold for k in (1, 2, 4, 100)]
        assert thresholds == sorted(thresholds)
        assert thresholds[2] == pytest.approx((1 / (1 - beta) - 0.6 / math.sqrt(4 * math.pi)) / 2)
    between = (PAPER.threshold + SyntheticModel(features=4).threshold) / 2
    assert train(PAPER, between, samples=20_000).amax(1)[1] < 1e-6
    assert train(replace(PAPER, features=4), between, samples=20_000).amin(1)[1] > 0.02


# --- the study ---


@pytest.fixture(scope="module")
def study() -> Study:
    return run_study(SMOOTHED, points=3, samples=30_000, seed=1)


def test_the_study_agrees_and_says_how_well(study: Study) -> None:
    agreement = study.agreement
    assert agreement["agrees"] is True
    assert 0 < agreement["standard_errors"] < 4.5
    assert 0 < agreement["largest_standard_error"] < 0.005
    assert 0 < agreement["weight_error"] < agreement["weight_tolerance"]
    assert agreement["weight_tolerance"] == pytest.approx(5 * 0.6 / math.sqrt(30_000) + 1e-3)
    assert 0 < agreement["cas_error"] < 0.05
    for row in study.rows:
        assert row.cas == pytest.approx(6 * row.w2**2 / (row.w1**2 + 2 * row.w2**2))


def test_a_study_that_is_off_says_so(study: Study) -> None:
    for change in ({"loss": study.rows[0].loss + 0.05}, {"weight_error": 0.019}):
        wrong = replace(study, rows=(replace(study.rows[0], **change), *study.rows[1:]))
        assert wrong.agreement["agrees"] is False


@pytest.mark.parametrize("seed", range(7))
def test_wide_features_agree_as_well_as_narrow_ones(seed: int) -> None:
    """The weights' error grows with σ and falls with the samples, and so does what is allowed."""
    study = run_study(SyntheticModel(sigma=1.0, beta=0.1), points=2, samples=3000, seed=seed)
    assert study.agreement["agrees"] is True
    assert study.weight_tolerance == pytest.approx(5 / math.sqrt(3000) + 1e-3)


@pytest.mark.parametrize("values", [{"sigma": 1.2}, {"lam": 0.1}, {"mu": 3.0, "sigma": 2.0}])
def test_the_tolerance_is_of_the_size_of_the_errors(values: dict[str, float]) -> None:
    """Neither so tight that chance passes it, nor so wide that a wrong weight hides."""
    model = SyntheticModel(**values)
    eps = model.mu / 5
    optimum = model.optimal_weights(eps)
    study = run_study(replace(model, beta=0.1), points=1, samples=4000)
    errors = [float((train(model, eps, samples=4000, seed=seed) - optimum).abs().max()) for seed in range(10)]
    assert max(errors) < study.weight_tolerance < 20 * sum(errors) / len(errors)


def test_no_two_seeds_share_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, set[int]] = {}
    for seed in range(6):
        seeds: list[int] = []
        monkeypatch.setattr("ccf_plugin.theory.simulation.sample", _seeing(seeds))
        monkeypatch.setattr("ccf_plugin.theory.study.sample", _seeing(seeds))
        run_study(SMOOTHED, points=3, samples=300, seed=seed)
        assert len(seeds) == len(set(seeds)) == 3 * 2 * 3  # training, estimates and the probe at each ε and β
        drawn[seed] = set(seeds)
    assert len(set.union(*drawn.values())) == 6 * 18
    assert all(0 <= seed < 2**32 for seed in set.union(*drawn.values()))  # torch's generator takes no more of it


def _seeing(seeds: list[int]) -> Callable[..., tuple[Tensor, Tensor]]:
    def drawn(model: SyntheticModel, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seeds.append(generator.initial_seed())
        return sample(model, count, generator)

    return drawn


def test_probabilities_next_to_one_are_no_disagreement() -> None:
    study = run_study(SyntheticModel(sigma=0.05, beta=0.02), points=2, samples=3000)
    assert study.agreement["standard_errors"] < 4.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mu": 0.0}, "mu: expected"),
        ({"mu": math.nan}, "mu: expected"),
        ({"sigma": -1.0}, "sigma: expected"),
        ({"sigma": 1.8}, r"sigma: expected below sqrt\(pi K\) mu = 1.772, found 1.8"),
        ({"lam": math.inf}, "lam: expected"),
        ({"beta": 0.34}, "beta: expected"),
        ({"features": 0}, "features: expected"),
    ],
)
def test_values_outside_the_theory_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SyntheticModel(**values)  # type: ignore[arg-type]


def test_bad_settings_of_a_study_are_refused() -> None:
    with pytest.raises(InputError, match="beta: expected"):
        run_study(PAPER)
    with pytest.raises(InputError, match="points: expected"):
        run_study(SMOOTHED, points=0)
    with pytest.raises(InputError, match="samples: expected 300"):
        run_study(SMOOTHED, samples=10)
    with pytest.raises(InputError, match="samples: expected 300"):
        run_study(replace(SMOOTHED, features=10_000), samples=60_000)
    for eps in (0.0, 0.5, math.nan):
        with pytest.raises(InputError, match="eps: expected"):
            PAPER.optimal_weights(eps)
