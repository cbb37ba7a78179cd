"""What C and CAS would be by chance: with the same attributions, but in no order that the classes share.

A class attribution is mostly positive, since what a class is recognised by adds to its logit, and two vectors of
positive entries have a positive cosine whatever the order of their entries. The null model permutes the n entries of
each class attribution independently: same values, no alignment. What C and CAS have beyond it is alignment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import class_attribution_similarity, correlation_matrix, defined_units
from ccf_plugin.probe.result_files import plain

_FEWEST, _MOST = 2, 199  # permutations
_RANKED = 99  # from this many permutations on, p is the share of them that are as large
_DRAWN = 999  # times that C is drawn where there are fewer
_ENTRIES = 2**23  # that all permutations together permute: 0.1 s
_PRODUCTS = 2**34  # of all permutations together: 1 s of one core
_AT_ONCE = 2**22  # numbers in memory
_CERTAIN = 12.0  # standard deviations; beyond, a normal variable's sign is known, and no gradient is infinite


@dataclass(frozen=True, eq=False)
class PermutationNull:
    """C and CAS where the entries of each class attribution are permuted independently; see `permutation_null`.

    Attributes:
        cas_mean, cas_sd: of CAS; NaN where fewer than two classes have an attribution.
        cas_p: the probability of a CAS that is as large as the measured one, or larger.
        permutations: how many these three come from.
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
        is_listed = len(self.mean_root) <= most_listed
        return {
            "cas": {"mean": plain(self.cas_mean), "sd": plain(self.cas_sd), "p": plain(self.cas_p)},
            **{name: plain(getattr(self, name)) if is_listed else None for name in ("mean", "sd", "p")},
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

    (C[i, j] - E) / sd is √(n - 1) times Pearson's correlation of A_i and A_j over the features.

    CAS is a sum of positive parts, averaged over permutations. Where C is mostly positive, so that max(c, 0) is
    c + max(-c, 0) with a small second term, only that is averaged, and E C is added. However d_i is permuted, the
    permuted d_j makes the same distribution of d_i · d_j: any two entries of C are independent, and the variance of CAS
    is the sum of the pairs' variances, 4 Σ_{i<j} Var max(C[i, j], 0), which few permutations tell.

    Args:
        permutations: how many, 2 or more. None: 199, fewer for K n above 42,000 (4 for K = 1,000 and n = 2,048).
            With 99 or more, p is (1 + how many have a CAS as large as measured) / (1 + permutations). With fewer, for
            up to 130 classes, C is drawn 999 times, each C[i, j] normal with E and Var as above, and p is of these;
            for more classes, p is that of a normal CAS, as a sum of many pairs is.
        seed: of the permutations.

    Raises:
        InputError: fewer than two permutations.
    """
    if permutations is not None and permutations < 2:
        raise InputError(f"expected 2 permutations or more, found {permutations}")
    rows, defined = defined_units(torch.from_numpy(vectors))
    is_defined = defined[:, 0].numpy()
    units = rows.numpy()[is_defined]
    classes, features = units.shape
    means = units.mean(1, keepdims=True)
    deviations = units - means
    spreads = np.linalg.norm(deviations, axis=1)
    is_constant = spreads < features * np.finfo(np.float64).eps  # what is left is rounding
    deviations[is_constant], spreads[is_constant] = 0.0, 0.0
    mean_root, sd_root = math.sqrt(features) * means[:, 0], spreads / max(features - 1, 1) ** 0.25
    if permutations is None:
        affordable = min(_ENTRIES // max(classes * features, 1), _PRODUCTS // max(classes**2 * features, 1))
        permutations = min(max(affordable, _FEWEST), _MOST)
    cas = (math.nan,) * 3
    if classes > 1:
        measured = float(class_attribution_similarity(torch.from_numpy(units @ units.T)))
        cas = _cas_by_permutations(measured, (mean_root, sd_root), deviations, permutations, seed)
    roots = np.full((2, len(vectors)), np.nan)
    roots[:, is_defined] = mean_root, sd_root
    return PermutationNull(*cas, permutations, seed, roots[0], roots[1], vectors)


def expected_cas(vectors: Tensor) -> Tensor:
    """CAS by chance as `permutation_null` has it, without permutations: of many attributions at once.

    A permuted C[i, j] is taken for normal, with E and sd as there, so that E max(C[i, j], 0) = E Φ(E/sd) + sd φ(E/sd).
    It is too small where a few features carry all.

    Args:
        vectors: class attributions, (…, K, n) float; rows that are NaN or zero are left out.

    Returns:
        (…) of the same dtype; it keeps gradients.
    """
    roots = roots_of_chance(vectors)
    expected = expected_pairs(roots, roots)
    off_diagonal = expected - torch.diag_embed(expected.diagonal(dim1=-2, dim2=-1))
    total: Tensor = off_diagonal.sum((-2, -1))
    return total


def roots_of_chance(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """``mean_root`` and ``sd_root`` of `PermutationNull` for vectors (…, n): (…) each; 0 where they are NaN or zero."""
    features = vectors.shape[-1]
    units, _ = defined_units(vectors)
    means = units.mean(-1, keepdim=True)
    spread = torch.linalg.vector_norm(units - means, dim=-1)
    return math.sqrt(features) * means[..., 0], spread / max(features - 1, 1) ** 0.25


def expected_pairs(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """E max(C[i, j], 0) by chance of each of the ``rows`` with each of the ``columns``, by their roots: (…, I, J)."""
    mean, sd = (row[..., :, None] * column[..., None, :] for row, column in zip(rows, columns, strict=True))
    z = (mean / sd.clamp(min=1e-12)).clamp(-_CERTAIN, _CERTAIN)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    expected: Tensor = mean * torch.special.ndtr(z) + sd * density
    return expected


def _cas_by_permutations(
    measured: float,
    roots: tuple[NDArray[np.float64], NDArray[np.float64]],
    deviations: NDArray[np.float64],
    permutations: int,
    seed: int,
) -> tuple[float, float, float]:
    """Mean, standard deviation and p of CAS; ``roots`` are those of C's mean and standard deviation."""
    classes, features = deviations.shape
    mean_root, rng = roots[0], np.random.default_rng(seed)
    root = torch.from_numpy(mean_root)
    permuted = np.broadcast_to(deviations, (permutations, classes, features))
    rows = torch.from_numpy(rng.permuted(permuted, axis=2))
    cas, added, variance = torch.zeros(permutations, dtype=torch.float64, device="cpu"), 0.0, 0.0
    known = max(float(root.sum() ** 2 - root.square().sum()), 0.0)  # of the expectation
    at_once = max(1, _AT_ONCE // (permutations * classes))
    for first in range(0, classes, at_once):
        matrices = rows[:, first : first + at_once] @ rows.mT
        matrices += torch.outer(root[first : first + at_once], root)
        matrices.diagonal(first, 1, 2).zero_()  # CAS has none
        parts = matrices.clamp(min=0)
        cas += parts.sum((1, 2))
        added += float((parts - matrices if known else parts).sum()) / permutations
        variance += float(parts.var(0).sum())
    expected, sd = known + added, math.sqrt(2 * variance)  # a pair is twice in the matrix
    pairs = np.triu_indices(classes, 1)
    if permutations < _RANKED and len(pairs[0]) * _DRAWN <= _ENTRIES:
        mean, spread = (np.outer(side, side)[pairs] for side in roots)
        drawn = mean + spread * rng.standard_normal((_DRAWN, len(mean)))
        cas = torch.from_numpy(2 * np.maximum(drawn, 0).sum(1))
    if len(cas) >= _RANKED:
        as_large = int((cas >= measured * (1 - 1e-12)).sum())  # equal but for rounding counts as equal
        return expected, sd, (1 + as_large) / (1 + len(cas))
    error = sd * math.sqrt(1 + 1 / permutations)  # of the expectation too
    return expected, sd, float(_above(np.array((measured - expected) / error))) if error > 0 else 1.0


def _square(root: NDArray[np.float64], diagonal: float) -> NDArray[np.float64]:
    matrix = np.outer(root, root)
    np.fill_diagonal(matrix, np.where(np.isnan(root), np.nan, diagonal))
    return matrix


def _above(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability that a standard normal variable is above z."""
    return np.asarray(torch.special.ndtr(-torch.from_numpy(z)).numpy())
