"""How far C, CAS, its excess over chance and I-CAS would move with other images of the same kind: jackknives.

The images of a class are dealt in turn into ``PARTS`` parts. C without one part of one class differs from C in that
class's row and column alone, so that all of them are K · PARTS rows. By how much they differ says how far other images
would move C, and every figure that is made of it (the delete-a-group jackknife; Shao and Wu 1989). The rows are small
enough to be kept with each result, and two models on the same images have the same parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import class_means, defined_units
from ccf_plugin.probe.null import expected_pairs, roots_of_chance

Interval = tuple[float, float]
PARTS = 20  # of a class with images: with fewer images than that in one class there are no intervals
_MOST_BYTES = 2**26  # of the sums over the parts, on the device that measures
_MOST_KEPT = 2**20  # numbers in a result's file
_AT_ONCE = 2**21  # numbers in memory
_MAY_BE_POSITIVE = 2.0  # standard deviations below 0


def number_of_parts(classes: int, features: int) -> int:
    """``PARTS``, or 1 where so many sums would take too much memory: for 1,000 classes there are no intervals."""
    is_small = PARTS * classes * features * 8 <= _MOST_BYTES and PARTS * classes**2 <= _MOST_KEPT
    return PARTS if is_small else 1


@dataclass(frozen=True, eq=False)
class WithoutParts:
    """C and CAS by chance without a part of one class's images.

    Attributes:
        matrix: [c, g, j] is C[c, j] without part g of class c, (K, G, K) float32; NaN where there is no such part.
        chance: [c, g] is CAS by chance without it, (K, G) float32; likewise.
        instance_rows, instance_columns: of the instance matrix (``instances_without_parts``), or None.
    """

    matrix: NDArray[np.float32]
    chance: NDArray[np.float32]
    instance_rows: NDArray[np.float32] | None = None
    instance_columns: NDArray[np.float32] | None = None

    def __eq__(self, other: object) -> bool:
        """Whether all arrays are the same; NaN is the same as NaN."""
        if not isinstance(other, WithoutParts):
            return NotImplemented
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(a is b or (a is not None and b is not None and np.array_equal(a, b, True)) for a, b in pairs)

    @classmethod
    def of_sums(cls, sums: Tensor, counts: Tensor) -> WithoutParts | None:
        """From the parts' sums of A(x), (K, G, n) float64, and their numbers of images, (K, G) int64.

        None where a class has fewer than ``PARTS`` images, of which an interval would hold too seldom, or all in one
        part, as where each process had one of them.
        """
        classes, parts, features = sums.shape
        is_one_part = (counts > 0).sum(1) == 1
        if parts != PARTS or not _are_enough(counts.sum(1)) or is_one_part.any():
            return None
        totals, numbers = sums.sum(1, keepdim=True), counts.sum(1, keepdim=True)
        whole = class_means(totals[:, 0], numbers[:, 0])
        rest = class_means((totals - sums).view(-1, features), (numbers - counts).view(-1))
        (units, _), (rest_units, has_rest) = defined_units(whole), defined_units(rest)
        matrix = torch.where(has_rest, rest_units @ units.T, torch.nan).view(classes, parts, classes)
        matrix[:, :, torch.isnan(whole[:, 0])] = torch.nan
        of_rest, others = roots_of_chance(rest), roots_of_chance(whole)
        without = expected_pairs(of_rest, others).view(classes, parts, classes)
        chance = _with_rows(expected_pairs(others, others), without)
        chance = torch.where(has_rest.view(classes, parts), chance, torch.nan)
        return cls(matrix.float().numpy(), chance.float().numpy())

    def apart(
        self, name: str, matrix: NDArray[np.float64], instances: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64] | None:
        """By how much a figure differs without each part, (K, G); the squares add up to its variance.

        Two models on the same images have the same parts, so that the squares of the differences add up to the
        variance of a difference. Of max(C[i, j], 0) it is C[i, j] that moves, where C[i, j] is positive or less than
        two standard deviations below: other images may make it positive, though none of these parts does.

        Args:
            name: "cas", "cas_excess" or "instance_cas".
            matrix, instances: C and the instance matrix, (K, K) float64, which this is of.

        Returns:
            None for I-CAS where it was not measured.
        """
        if name == "instance_cas":
            if instances is None or self.instance_rows is None or self.instance_columns is None:
                return None
            return _apart(instances, deviations(self.instance_rows), deviations(self.instance_columns))
        moves = deviations(self.matrix)
        moved = _apart(matrix, moves, moves)
        return moved if name == "cas" else moved - deviations(self.chance)


def _apart(matrix: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = np.sqrt(np.square(rows).sum(1) + np.square(columns).sum(1).T)
    moves = np.nan_to_num(matrix, nan=-np.inf) > -_MAY_BE_POSITIVE * spread
    np.fill_diagonal(moves, False)
    return np.asarray(np.einsum("cgj,cj->cg", rows, moves) + np.einsum("cgj,jc->cg", columns, moves))


def _are_enough(counts: Tensor) -> bool:
    """Whether each class that has images has enough for an interval."""
    return not bool(((counts > 0) & (counts < PARTS)).any())


def _with_rows(pairs: Tensor, rows: Tensor) -> Tensor:
    """The sum of ``pairs`` (K, K) off the diagonal, row and column c replaced by each of ``rows`` (K, G, K): (K, G)."""
    other = 1 - torch.eye(len(pairs), dtype=pairs.dtype, device="cpu")
    pairs, rows = pairs * other, rows * other.unsqueeze(1)
    return pairs.sum() - 2 * pairs.sum(1, keepdim=True) + 2 * rows.sum(2)


def deviations(without: NDArray[np.floating]) -> NDArray[np.float64]:
    """By how much a figure differs without each part, (K, G, …) as ``without``; the squares add up to its variance.

    The variance of a mean of G parts is (G - 1) / G times the sum of the squares; classes are independent. 0 where NaN.
    """
    values = np.nan_to_num(without.astype(np.float64))
    return np.asarray((values - values.mean(1, keepdims=True)) * math.sqrt(1 - 1 / PARTS))


def interval_around(figure: float, variance: float, level: float) -> Interval:
    """The interval of a figure with this variance: Student's t, since the variance comes from few parts."""
    half = student(level, PARTS - 1) * math.sqrt(variance)
    return figure - half, figure + half


def student(level: float, freedom: int) -> float:
    """The value that |t| stays below with probability ``level``, to 1 %; of 4 degrees of freedom or more.

    The expansion by Cornish and Fisher, since nothing but numpy and torch is here.
    """
    check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))


def check_level(level: float) -> None:
    """Raise InputError for a level that is no probability between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"expected level in (0, 1), found {level}")


def instances_without_parts(
    rows: Tensor, labels: Tensor, classes: int, *, max_bytes: int = 2**28
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The instance matrix C_I without each part of each class: its rows and its columns, (K, PARTS, K) float32 each.

    [c, g, j] of the first is C_I[c, j] without part g of class c, the mean over the other images; of the second it is
    C_I[j, c], where images whose nearest of class c is in that part have the nearest of another part instead.

    Args:
        rows: A(x), (N, n) float, of each class in the order of measuring.
        labels: (N,) int64.
        classes: K.
        max_bytes: of a block of cosines.

    Returns:
        None where there are no intervals of C either.
    """
    counts = torch.bincount(labels, minlength=classes)
    if number_of_parts(classes, 1) != PARTS or not _are_enough(counts) or not len(labels):
        return None
    order = torch.argsort(labels, stable=True)
    units, labels = defined_units(rows[order])[0], labels[order]
    sizes, starts = counts.tolist(), (counts.cumsum(0) - counts).tolist()
    parts = labels * PARTS + torch.cat([torch.arange(size, device=labels.device) % PARTS for size in sizes])
    row_sums = units.new_zeros(classes * PARTS, classes, dtype=torch.float64)  # by the parts of class c
    column_sums = units.new_zeros(classes, classes, PARTS, dtype=torch.float64)  # [i, c, g]
    at_once = max(1, max_bytes // ((max(sizes) + PARTS) * units.element_size()))
    for label, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        for first in range(0, len(units) if size else 0, at_once):
            block = units[first : first + at_once] @ units[start : start + size].T
            padded = pad(block, (0, -size % PARTS), value=-torch.inf)
            by_part = padded.view(len(block), -1, PARTS).amax(1).double()
            (best, second), places = by_part.topk(2, dim=1).values.unbind(1), by_part.argmax(1)
            here = slice(first, first + at_once)
            row_sums[:, label].index_add_(0, parts[here], best)
            is_there = places.unsqueeze(1) == torch.arange(PARTS, device=places.device)
            without = torch.where(is_there, second.unsqueeze(1), best.unsqueeze(1))
            column_sums[:, label].index_add_(0, labels[here], without)
    counts, row_sums, column_sums = counts.cpu(), row_sums.cpu().view(classes, PARTS, classes), column_sums.cpu()
    in_part = torch.bincount(parts.cpu(), minlength=classes * PARTS).view(classes, PARTS)
    own = (row_sums.sum(1, keepdim=True) - row_sums) / (counts.unsqueeze(1) - in_part).unsqueeze(2)
    others = column_sums.permute(1, 2, 0) / counts
    unseen = counts == 0
    for without in (own, others):
        without[unseen], without[:, :, unseen] = torch.nan, torch.nan
    return own.float().numpy(), others.float().numpy()


def simultaneous_bands(
    matrix: NDArray[np.float64], moves: NDArray[np.float64], *, draws: int, level: float, seed: int
) -> NDArray[np.float64]:
    """The half widths of bands of all pairs of classes at once, (K, K) float64; NaN on the diagonal and where C is.

    With e[c, g] normal and independent, Z[i, j] = Σ_g e[i, g] moves[i, g, j] + e[j, g] moves[j, g, i] moves as C does
    with other images (a multiplier bootstrap; Chernozhukov, Chetverikov and Kato 2013). The half width is a multiple of
    each pair's standard deviation that the largest |Z| / sd of all pairs stays below in ``level`` of the draws (max-T,
    Westfall and Young 1993), wider as in ``interval_around``.

    Args:
        matrix: C, or a difference of two, (K, K).
        moves: ``deviations`` of it, (K, G, K).
        draws: two or more.
    """
    variance = np.square(moves).sum(1)
    sd = np.sqrt(variance + variance.T)
    varies = np.triu(sd > 0, 1)
    rng, at_once, largest = np.random.default_rng(seed), max(1, _AT_ONCE // len(sd) ** 2), []
    for first in range(0, draws, at_once):
        normal = rng.standard_normal((len(sd), min(at_once, draws - first), PARTS))
        half = np.matmul(normal, moves).transpose(1, 0, 2)
        moved = half + half.transpose(0, 2, 1)
        largest.append((np.abs(moved[:, varies]) / sd[varies]).max(1, initial=0.0))
    wider = student(level, PARTS - 1) / NormalDist().inv_cdf((1 + level) / 2)
    half_width = np.quantile(np.concatenate(largest), level) * wider * sd
    np.fill_diagonal(half_width, np.nan)
    return np.where(np.isnan(matrix), np.nan, half_width)
