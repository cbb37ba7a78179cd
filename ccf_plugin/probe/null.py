"""What C and CAS would be by chance: with the same attributions, but in no order that the classes share.

A class attribution is mostly positive, since what a class is recognised by adds to its logit, and two vectors of
positive entries have a positive cosine whatever the order of their entries. The null model permutes the n entries of
each class attribution independently: same values, no alignment. What C and CAS have beyond it is alignment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ccf_plugin.probe.attribution import class_attribution_similarity, correlation_matrix
from ccf_plugin.probe.result_files import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST, _MOST = 99, 199  # permutations: the smallest p is 1 / (permutations + 1)
_ENTRIES = 2**23  # that all permutations together permute: 0.1 s
_PRODUCTS = 2**35  # of all permutations together: 1 s of one core
_AT_ONCE = 2**22  # numbers in memory


@dataclass(frozen=True, eq=False)
class PermutationNull:
    """C and CAS where the entries of each class attribution are permuted independently; see `permutation_null`.

    Attributes:
        cas_mean, cas_sd: of CAS; NaN where fewer than two classes have an attribution.
        cas_p: the probability of a CAS that is as large as the measured one, or larger.
        permutations: how many these three come from; 0: from closed forms, where permutations would take long.
        seed: of the permutations.
        mean_root, sd_root: (K,) float64, NaN for a class without an attribution. Off the diagonal, ``mean`` and ``sd``
            are their outer products with themselves.
    """

    cas_mean: float
    cas_sd: float
    cas_p: float
    permutations: int
    seed: int
    mean_root: NDArray[np.float64]
    sd_root: NDArray[np.float64]
    _vectors: NDArray[np.float64] = field(repr=False)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The expectation of C, (K, K) float64; 1 on the diagonal."""
        return _square(self.mean_root, diagonal=1.0)

    @property
    def sd(self) -> NDArray[np.float64]:
        """The standard deviation of C, (K, K) float64; 0 on the diagonal."""
        return _square(self.sd_root, diagonal=0.0)

    @property
    def p(self) -> NDArray[np.float64]:
        """The probability of a C[i, j] as large as the measured one, or larger, (K, K) float64; 1 on the diagonal.

        That of a normal distribution with ``mean`` and ``sd``: good where there are many features and no few carry all.
        """
        excess = correlation_matrix(torch.from_numpy(self._vectors)).numpy() - self.mean
        sd = self.sd
        z = np.divide(excess, sd, out=np.full_like(sd, -np.inf), where=sd > 0)  # where nothing varies, p is 1
        return np.where(np.isnan(sd), np.nan, _above(z))

    def to_json(self, most_listed: int) -> dict[str, Any]:
        """Plain JSON values; the matrices are null where they have more than ``most_listed`` classes."""
        return {
            "cas": {"mean": plain(self.cas_mean), "sd": plain(self.cas_sd), "p": plain(self.cas_p)},
            **{name: plain(getattr(self, name), most_listed) for name in ("mean", "sd", "p")},
            "permutations": self.permutations,
            "seed": self.seed,
        }


def permutation_null(
    vectors: NDArray[np.float64], *, permutations: int | None = None, seed: int = 0
) -> PermutationNull:
    """The null model of the class attributions A, (K, n) float64; rows that are NaN or zero are left out.

    With u_i = A_i / |A_i|, m_i its mean and d_i = u_i - m_i,

        C[i, j] = n m_i m_j + d_i · d_j,

    since the entries of d_i add up to 0 and the mixed terms vanish. A permutation changes the last term alone. In each
    place the permuted d_i has the expectation 0, so that

        E C[i, j] = n m_i m_j = n mean(A_i) mean(A_j) / (|A_i| |A_j|).

    The covariance matrix of the permuted d_i is (|d_i|² / (n - 1)) (I - 1 1ᵀ / n), and d_j is orthogonal to 1, so that

        Var C[i, j] = |d_i|² |d_j|² / (n - 1).

    (C[i, j] - E) / sd is √(n - 1) times Pearson's correlation of A_i and A_j over the features. Given d_i, the permuted
    d_i · d_j and d_i · d_k are independent and have the expectation 0, so that no two entries of C are correlated.

    CAS is a sum of positive parts. Its mean, standard deviation and p are those of permutations of all classes. Where
    these would take over a second (from K = 1,000 on), they are those of normal and independent entries of C.

    Args:
        permutations: how many; None: 199, where K n is above 42,000 fewer (down to 99), where they would take long 0.
        seed: of the permutations.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    is_defined = (np.isfinite(lengths) & (lengths > 0))[:, 0]
    units = vectors[is_defined] / lengths[is_defined]
    classes, features = units.shape
    means = units.mean(1, keepdims=True)
    deviations = units - means
    spreads = np.linalg.norm(deviations, axis=1)
    is_constant = spreads < features * np.finfo(np.float64).eps  # what is left is rounding
    deviations[is_constant], spreads[is_constant] = 0.0, 0.0
    mean_root, sd_root = math.sqrt(features) * means[:, 0], spreads / max(features - 1, 1) ** 0.25
    if permutations is None:
        permutations = min(max(_ENTRIES // max(classes * features, 1), _FEWEST), _MOST)
        permutations *= permutations * classes**2 * features <= _PRODUCTS
    if classes < 2:
        cas = (math.nan,) * 3
    else:
        measured = float(class_attribution_similarity(torch.from_numpy(units @ units.T)))
        if permutations:
            cas = _by_permutations(measured, mean_root, deviations, permutations, seed)
        else:
            cas = _by_normal_entries(measured, mean_root, sd_root)
    roots = np.full((2, len(vectors)), np.nan)
    roots[:, is_defined] = mean_root, sd_root
    return PermutationNull(*cas, permutations, seed, roots[0], roots[1], vectors)


def _by_permutations(
    measured: float, mean_root: NDArray[np.float64], deviations: NDArray[np.float64], permutations: int, seed: int
) -> tuple[float, float, float]:
    classes, features = deviations.shape
    mean = torch.from_numpy(_square(mean_root, diagonal=-np.inf))  # so that the diagonal adds nothing
    at_once = max(1, _AT_ONCE // (classes * max(classes, features)))
    rng = np.random.default_rng(seed)
    permuted = []
    for first in range(0, permutations, at_once):
        size = min(at_once, permutations - first)
        rows = torch.from_numpy(rng.permuted(np.broadcast_to(deviations, (size, classes, features)), axis=2))
        permuted.append((rows @ rows.mT).add_(mean).clamp_(min=0).sum((1, 2)))
    cas = torch.cat(permuted).numpy()
    as_large = int((cas >= measured * (1 - 1e-12)).sum())  # equal but for rounding counts as equal
    return (
        float(cas.mean()),
        float(cas.std(ddof=1)) if permutations > 1 else math.nan,
        (1 + as_large) / (1 + permutations),
    )


def _by_normal_entries(
    measured: float, mean_root: NDArray[np.float64], sd_root: NDArray[np.float64]
) -> tuple[float, float, float]:
    """From the moments of max(X, 0), X normal: E = μ Φ(μ/σ) + σ φ(μ/σ), and E of its square (μ² + σ²) Φ + μ σ φ."""
    total = variance = 0.0
    for row, (mu_root, sigma_root) in enumerate(zip(mean_root, sd_root, strict=True)):
        mu, sigma = mu_root * mean_root[row + 1 :], sigma_root * sd_root[row + 1 :]
        ratio = np.divide(mu, sigma, out=np.copysign(np.full_like(mu, np.inf), mu), where=sigma > 0)
        cumulated, density = 1 - _above(ratio), np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
        first = mu * cumulated + sigma * density
        # CAS counts each pair twice
        total += 2 * float(first.sum())
        variance += 4 * float(((mu**2 + sigma**2) * cumulated + mu * sigma * density - first**2).sum())
    sd = math.sqrt(max(variance, 0.0))
    return total, sd, float(_above(np.array((measured - total) / sd))) if sd > 0 else 1.0


def _square(root: NDArray[np.float64], diagonal: float) -> NDArray[np.float64]:
    matrix = np.outer(root, root)
    np.fill_diagonal(matrix, np.where(np.isnan(root), np.nan, diagonal))
    return matrix


def _above(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability that a standard normal variable is above z."""
    return np.asarray(torch.special.ndtr(-torch.from_numpy(z)).numpy())
