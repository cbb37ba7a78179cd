"""What ``ccf theory`` shows: closed forms, Monte Carlo, trained weights and the probe's CAS side by side, along ε."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.probe import CrossClassProbe
from ccf_plugin.theory.closed_forms import PAIRS, SyntheticModel, correlation
from ccf_plugin.theory.simulation import DEFAULT_SAMPLES, estimate, head_weight, sample, train, worst_perturbation

MOST_STANDARD_ERRORS = 5  # over a hundred estimates, chance passes this once in 10,000 studies
# In units of μ/λ, the size of the weights: what training's last steps leave, however many samples there are.
_LAST_STEPS = 1e-3
_MOST_NUMBERS = 200_000_000  # of one sample of the data, 1.6 GB


@dataclass(frozen=True)
class StudyRow:
    """One ε and β. Weights are means over the K features; ``_mc`` is a Monte-Carlo mean and ``_se`` its standard error.

    ``loss``, ``pairwise`` and ``joint`` are at the closed form's weights, ``trained_…`` and ``probe_cas`` are of the
    trained model: CAS as ``CrossClassProbe`` measures it on Lemma 2's adversarial examples.
    """

    beta: float
    eps: float
    w1: float
    w2: float
    trained_w1: float
    trained_w2: float
    weight_error: float  # the largest distance of a trained weight from its closed form
    correlation: float
    cas: float
    probe_cas: float
    loss: float
    loss_mc: float
    loss_se: float
    pairwise: float
    pairwise_mc: float
    pairwise_se: float
    joint: float
    joint_mc: float
    joint_se: float

    @property
    def standard_errors(self) -> float:
        """The largest distance of a Monte-Carlo mean from its closed form, in standard errors."""
        return max(
            abs(mean - exact) / error if mean != exact else 0.0
            for exact, mean, error in (
                (self.loss, self.loss_mc, self.loss_se),
                (self.pairwise, self.pairwise_mc, self.pairwise_se),
                (self.joint, self.joint_mc, self.joint_se),
            )
        )


@dataclass(frozen=True)
class Study:
    """The rows of one run: without label smoothing (``model.beta`` 0) and with it, each along ε."""

    model: SyntheticModel
    samples: int
    seed: int
    rows: tuple[StudyRow, ...]

    @property
    def plain(self) -> SyntheticModel:
        """The model without label smoothing."""
        return replace(self.model, beta=0.0)

    @property
    def weight_tolerance(self) -> float:
        """How far a trained weight may lie from its closed form: 5 standard errors, and what its last steps leave.

        A weight is, but for the projection to w ≥ 0, a mean over the samples of features whose standard deviation is
        at most σ, divided by λ: its standard error is at most σ / (λ√samples).
        """
        model = self.model
        sampling = model.sigma / (model.lam * math.sqrt(self.samples))
        return MOST_STANDARD_ERRORS * sampling + _LAST_STEPS * model.mu / model.lam

    @property
    def agreement(self) -> dict[str, float | bool]:
        """How far sampling, training and the probe are from the closed forms, at worst over all rows."""
        standard_errors = max(row.standard_errors for row in self.rows)
        weight_error = max(row.weight_error for row in self.rows)
        return {
            "agrees": standard_errors <= MOST_STANDARD_ERRORS and weight_error <= self.weight_tolerance,
            "standard_errors": standard_errors,
            "largest_standard_error": max(max(row.loss_se, row.pairwise_se, row.joint_se) for row in self.rows),
            "weight_error": weight_error,
            "weight_tolerance": self.weight_tolerance,
            "cas_error": max(abs(row.probe_cas - row.cas) for row in self.rows),
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """All that the study depends on."""
        return parameters_of(self.model, points=len(self.rows) // 2, samples=self.samples, seed=self.seed)

    def to_json(self) -> dict[str, Any]:
        """Parameters, thresholds, agreement and rows."""
        return {
            "parameters": self.parameters,
            "eps_0": self.plain.threshold,
            "eps_1": self.model.threshold,
            "agreement": self.agreement,
            "rows": [asdict(row) for row in self.rows],
        }


def parameters_of(model: SyntheticModel, *, points: int, samples: int, seed: int) -> dict[str, Any]:
    """All that a study depends on, by name."""
    return {**asdict(model), "points": points, "samples": samples, "seed": seed}


def run_study(
    model: SyntheticModel,
    *,
    points: int = 12,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    progress: Callable[[list[tuple[float, float]]], Any] = lambda settings: settings,
) -> Study:
    """Run the study at ``points`` values of ε, evenly within (0, μ/2), for β = 0 and ``model.beta``.

    Args:
        model: its ``beta`` above 0.
        samples: of the data, for each estimate and each training.
        seed: of the study; every sample of it, and of any other seed's, has random numbers of its own.
        progress: wraps the (β, ε) to show progress.

    Raises:
        InputError: a number outside its range, or more samples than fit into memory.
    """
    if model.beta == 0:
        raise InputError("beta: expected label smoothing above 0 to compare with none, found 0; 0.1 is usual")
    if points < 1:
        raise InputError(f"points: expected at least 1, found {points}; 12 is the default")
    most = _MOST_NUMBERS // (6 * model.features)
    if not 300 <= samples <= most:
        raise InputError(
            f"samples: expected 300 to {most} for {model.features} features, found {samples}; "
            f"{DEFAULT_SAMPLES} is usual"
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"seed: expected 0 to {2**32 - 1}, found {seed}; 0 is the default")
    grid = [model.mu / 2 * (point + 1) / (points + 1) for point in range(points)]
    settings = [(beta, eps) for beta in (0.0, model.beta) for eps in grid]
    rows = [
        _row(replace(model, beta=beta), eps, samples, _seeds(seed, index))
        for index, (beta, eps) in enumerate(progress(settings))
    ]
    return Study(model, samples, seed, tuple(rows))


def _seeds(seed: int, row: int) -> list[int]:
    """Of a row's three samples; those of another study's seed or another row are others."""
    return [int(of_sample) for of_sample in np.random.SeedSequence((seed, row)).generate_state(3)]


def _row(model: SyntheticModel, eps: float, samples: int, seeds: list[int]) -> StudyRow:
    optimum = model.optimal_weights(eps)
    trained = train(model, eps, samples=samples, seed=seeds[0])
    estimates = estimate(model, optimum, eps, samples=samples, seed=seeds[1])
    c = correlation(optimum)
    pairwise, joint = model.pairwise_probability(optimum, eps), model.joint_probability(optimum, eps)
    return StudyRow(
        beta=model.beta,
        eps=eps,
        w1=float(optimum[0].mean()),
        w2=float(optimum[1].mean()),
        trained_w1=float(trained[0].mean()),
        trained_w2=float(trained[1].mean()),
        weight_error=float((trained - optimum).abs().max()),
        correlation=c,
        cas=PAIRS * c,
        probe_cas=probe_cas(model, trained, eps, samples=samples, seed=seeds[2]),
        loss=model.loss(optimum, eps),
        loss_mc=estimates["loss"].mean,
        loss_se=estimates["loss"].standard_error,
        pairwise=pairwise,
        pairwise_mc=estimates["pairwise"].mean,
        pairwise_se=_standard_error(pairwise, samples),
        joint=joint,
        joint_mc=estimates["joint"].mean,
        joint_se=_standard_error(joint, samples),
    )


def _standard_error(probability: float, samples: int) -> float:
    """Of a frequency, from its closed form: a sample without a single failure would call it 0."""
    return math.sqrt(probability * (1 - probability) / samples)


def probe_cas(model: SyntheticModel, weights: Tensor, eps: float, *, samples: int, seed: int) -> float:
    """CAS of the linear classifier with these weights, by ``CrossClassProbe`` on Lemma 2's adversarial examples."""
    x, labels = sample(model, samples, torch.Generator().manual_seed(seed))
    head = nn.Linear(x.shape[1], 3, bias=False, dtype=x.dtype)
    with torch.no_grad(), CrossClassProbe(head) as probe:
        head.weight.copy_(head_weight(weights))
        head(x + worst_perturbation(labels, eps, model.features))
        probe.update(labels)
        return probe.compute().cas
