"""Section 4 and Appendix E in closed form. β = 0 is adversarial training without label smoothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ccf_plugin.errors import InputError

PAIRS = 6  # ordered pairs of three classes: CAS is 6 C[i, j]
_MAX_BETA = 1 / 3  # eq. (13)


@dataclass(frozen=True)
class SyntheticModel:
    """Data and loss of Section 4.

    ``weights`` everywhere are float64 (2, K): the w₁ᵏ and, below them, the w₂ᵏ, all ≥ 0. ``eps`` is the Linf bound on
    the features, in their units, in (0, μ/2).

    Args:
        mu: μ, the mean of a feature that the class has.
        sigma: σ, its standard deviation; below √(πK) μ (Section 4.1, for K = 1), so that ε₀ > 0.
        lam: λ, the weight decay.
        beta: β, the label smoothing, in [0, 1/3).
        features: K, exclusive features per class and shared features per pair (Appendix E.5).

    Raises:
        InputError: a value outside its range.
    """

    mu: float = 1.0
    sigma: float = 0.6
    lam: float = 1.0
    beta: float = 0.0
    features: int = 1

    def __post_init__(self) -> None:
        for name in ("mu", "sigma", "lam"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}: expected a finite number above 0, found {value:g}; the default fits")
        if self.features < 1:
            raise InputError(f"features: expected at least 1, found {self.features}; 1 is the paper's Section 4")
        if not 0 <= self.beta < _MAX_BETA:
            raise InputError(f"beta: expected label smoothing from 0 to below 1/3, found {self.beta:g}; 0.1 is usual")
        bound = math.sqrt(math.pi * self.features) * self.mu
        if not self.sigma < bound:
            raise InputError(
                f"sigma: expected below sqrt(pi K) mu = {bound:.4g}, found {self.sigma:g}; "
                "lower sigma, or raise mu or the features K"
            )

    @property
    def threshold(self) -> float:
        """The ε up to which training keeps w₂ > 0: ε₀ (Theorem 1), or ε₁ where β > 0 (Theorem 3; it may pass μ/2)."""
        return (self.mu / (1 - self.beta) - self._gap) / 2

    @property
    def _gap(self) -> float:
        """How far the smaller of two sums of K shared features lies below its mean, per feature (Lemma 1)."""
        return self.sigma / math.sqrt(math.pi * self.features)

    def optimal_weights(self, eps: float) -> Tensor:
        """w₁* and w₂*, the minimum of ``loss``, the same for each k (eqs. 31, 33, 41)."""
        self.check_eps(eps)
        slope_1, slope_2 = self._slopes(eps)
        slopes = [-slope_1, -slope_2 - (1 - self.beta) * self._gap]
        optimum = torch.tensor(slopes, dtype=torch.float64, device="cpu") / self.lam
        return optimum.clamp(min=0).unsqueeze(1).repeat(1, self.features)

    def loss(self, weights: Tensor, eps: float) -> float:
        """The expected robust loss with its weight decay: eq. (29), and eq. (39) where β > 0."""
        self.check_eps(eps)
        slope_1, slope_2 = self._slopes(eps)
        w_1, w_2 = weights
        margin_gap = (1 - self.beta) * self.sigma / math.sqrt(math.pi) * torch.linalg.vector_norm(w_2)
        return float(slope_1 * w_1.sum() + slope_2 * w_2.sum() + margin_gap + self.lam / 2 * weights.square().sum())

    def _slopes(self, eps: float) -> tuple[float, float]:
        """The coefficients of w₁ and w₂ in the loss, without the spread of the smaller of two shared sums."""
        return -(1 - self.beta) * self.mu + (2 - 3 * self.beta) * eps, (1 - self.beta) * 2 * eps - self.mu

    def pairwise_probability(self, weights: Tensor, eps: float) -> float:
        """The probability that no δ lifts a given other class over the true one (Theorem 2, as it is proved)."""
        self.check_eps(eps)
        margin = (self.mu - 2 * eps) * weights.sum()
        return float(torch.special.ndtr(margin / (self.sigma * torch.linalg.vector_norm(weights))))

    def joint_probability(self, weights: Tensor, eps: float) -> float:
        """The probability that no δ lifts any other class over the true one (eq. 11): the robust accuracy.

        The integral of Pr(exclusive part > −s) over the law of s, the smaller of the two shared parts; needs w₁ ≠ 0.
        """
        self.check_eps(eps)
        z = torch.linspace(-10, 10, 4001, dtype=torch.float64, device="cpu")
        density = 2 * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * torch.special.ndtr(-z)
        (sum_1, sum_2), (norm_1, norm_2) = weights.sum(1), self.sigma * torch.linalg.vector_norm(weights, dim=1)
        exclusive_wins = torch.special.ndtr(((self.mu - 2 * eps) * (sum_1 + sum_2) + norm_2 * z) / norm_1)
        return min(float(torch.trapezoid(density * exclusive_wins, z)), 1.0)

    def check_eps(self, eps: float) -> None:
        """Raise InputError unless ``eps`` is in (0, μ/2)."""
        if not 0 < eps < self.mu / 2:
            raise InputError(f"eps: expected between 0 and mu/2 = {self.mu / 2:g}, both excluded, found {eps:g}")


def correlation(weights: Tensor) -> float:
    """C[i, j] of two different classes: Σ (w₂ᵏ)² / Σ ((w₁ᵏ)² + 2 (w₂ᵏ)²), clean and under Lemma 2's attack alike."""
    squares = weights.square().sum(1)
    return float(squares[1] / (squares[0] + 2 * squares[1]))
