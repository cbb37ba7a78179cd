"""Whether C goes with what else is known of the classes: groups of them, or how often they are taken for each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import InputError

_MOST_GROUPINGS = 20_000
_ROUNDING = 1e-12  # a statistic that is smaller by no more counts as equal


@dataclass(frozen=True)
class Association:
    """A statistic, and the probability ``p`` of one as large or larger where the classes are arranged at random.

    ``exact``: p is of all ``arrangements`` that there are, this one among them; otherwise they are random ones, and
    p = (1 + how many are as large) / (1 + arrangements).
    """

    statistic: float
    p: float
    arrangements: int
    exact: bool


def within_minus_between(
    matrix: NDArray[Any], groups: Sequence[Hashable], *, permutations: int = 9_999, seed: int = 0
) -> Association:
    """The mean of C[i, j] over pairs of classes of one group, minus that over pairs of different groups.

    p is exact, over all groupings of the same sizes, where there are at most 20,000 of them; otherwise it is of random
    ones. CIFAR-10's four vehicles and six animals are one grouping of 210: p is at least 0.005 there.

    Args:
        matrix: C or C_I, (K, K); the diagonal is not read, and classes without a row are left out.
        groups: the group of each class, K of any kind.
        permutations, seed: of random groupings.

    Raises:
        InputError: another number of groups than classes; no pair within groups, or none between.
    """
    values, has_row = _off_diagonal(matrix)
    if len(groups) != len(has_row):
        raise InputError(f"expected the groups of {len(has_row)} classes, found {len(groups)}; give one for each class")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of = np.array([numbers[group] for group in groups])[has_row]
    sizes = np.bincount(group_of)
    pairs_within = int((sizes * (sizes - 1)).sum())
    pairs_between = len(group_of) * (len(group_of) - 1) - pairs_within
    if not pairs_within or not pairs_between:
        raise InputError("expected pairs of classes within groups and between them, found one kind; group otherwise")
    total = values.sum()

    def statistic(group_of: NDArray[np.int64]) -> float:
        within = values[group_of[:, None] == group_of].sum()
        return float(within / pairs_within - (total - within) / pairs_between)

    number = math.factorial(len(group_of)) // math.prod(math.factorial(size) for size in sizes.tolist())
    if number <= _MOST_GROUPINGS:
        measured = statistic(group_of)
        as_large = sum(statistic(other) >= measured - _ROUNDING for other in _groupings(sizes.tolist(), len(group_of)))
        return Association(measured, as_large / number, number, exact=True)
    return _by_permutations(statistic, group_of, permutations, seed)


def mantel(
    matrix: NDArray[Any],
    confusion: NDArray[Any],
    *,
    method: Literal["spearman", "pearson"] = "spearman",
    permutations: int = 9_999,
    seed: int = 0,
) -> Association:
    """Mantel's test (1967): whether classes with a large C[i, j] are taken for each other.

    The statistic is the correlation, over pairs of classes, of C with how often one is taken for the other: rows of
    ``confusion`` are divided by their sums, and the two directions averaged. p is of random arrangements of one matrix'
    classes, since entries of one class are not independent.

    Args:
        matrix: C or C_I, (K, K); classes without a row are left out. Both directions are averaged.
        confusion: (K, K), rows the true classes: counts of predictions (hard), or sums or means of the softmax (soft,
            which has fewer ties).
        method: "spearman" correlates ranks (equal values share their mean rank), "pearson" the values.
        permutations, seed: of the random arrangements.

    Raises:
        InputError: matrices of different shapes; fewer than three classes; values that are all the same.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    values, has_row = _off_diagonal(matrix)
    if confusion.shape != (len(has_row), len(has_row)) or has_row.sum() < 3:
        raise InputError(
            f"expected two matrices of the same three classes or more, found shapes {np.shape(matrix)} and "
            f"{confusion.shape}, of which {has_row.sum()} classes have a row in C"
        )
    rates = confusion / np.maximum(confusion.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    rates = rates[np.ix_(has_row, has_row)]
    upper = np.triu_indices(len(values), 1)
    scale = _ranks if method == "spearman" else np.asarray
    first, second = (_standardised(scale(((m + m.T) / 2)[upper])) for m in (values, rates))
    if first is None or second is None:
        raise InputError("expected values that differ between pairs of classes, found all equal; nothing correlates")
    square = np.zeros_like(values)
    square[upper] = second
    square += square.T

    def statistic(order: NDArray[np.int64]) -> float:
        return float(first @ square[np.ix_(order, order)][upper])

    return _by_permutations(statistic, np.arange(len(values)), permutations, seed)


def _off_diagonal(matrix: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The classes that have a row, of K: their values, 0 on the diagonal, and which they are, (K,) bool."""
    values = np.array(matrix, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise InputError(f"expected a matrix of shape (K, K), found {values.shape}; give result.matrix")
    np.fill_diagonal(values, np.nan)
    has_row = np.array(~np.isnan(values).all(axis=1))
    np.fill_diagonal(values, 0.0)
    return values[np.ix_(has_row, has_row)], has_row


def _by_permutations(
    statistic: Callable[[NDArray[np.int64]], float], arranged: NDArray[np.int64], permutations: int, seed: int
) -> Association:
    rng = np.random.default_rng(seed)
    measured = statistic(arranged)
    as_large = sum(statistic(rng.permutation(arranged)) >= measured - _ROUNDING for _ in range(permutations))
    return Association(measured, (1 + as_large) / (1 + permutations), permutations, exact=False)


def _groupings(sizes: list[int], classes: int) -> Iterator[NDArray[np.int64]]:
    """All ways to give ``classes`` classes the groups 0, 1, … of these sizes: (classes,) each."""

    def rest(free: tuple[int, ...], group: int) -> Iterator[dict[int, int]]:
        if group == len(sizes):
            yield {}
            return
        for members in combinations(free, sizes[group]):
            remaining = tuple(index for index in free if index not in members)
            for others in rest(remaining, group + 1):
                yield {**dict.fromkeys(members, group), **others}

    for group_of in rest(tuple(range(classes)), 0):
        yield np.array([group_of[index] for index in range(classes)])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, times = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(times)
    return np.asarray((last - (times - 1) / 2)[inverse])


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Less its mean, of length 1; None where all are the same."""
    centred = values - values.mean()
    length = np.linalg.norm(centred)
    return None if length <= _ROUNDING * np.abs(values).max() else centred / length
