"""The measurement's formulas as pure functions, each once (eqs. 5 to 7, Algorithm 1 and Section 5.3 of
"Identifying and Understanding Cross-Class Features in Adversarial Training", ICML 2025).

N samples, n features, K classes. Every function keeps its input's dtype and device, and the class-wise ones
keep gradients, so that CAS can be a term of a training loss. An undefined entry (a class without samples, a
vector without length) is NaN, and no gradient passes through it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_BLOCK_ROWS = 512


def attribution(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """A(x) = g(x) ⊙ W[y]: what each feature adds to the logit of the sample's true class y (eq. 5).

    Args:
        features: g(x), the head's input, (N, n) float.
        weight: W, (K, n) float.
        labels: y, (N,) int64 in 0..K-1.

    Returns:
        (N, n) of the features' dtype.
    """
    return features * weight[labels].to(features.dtype)


def class_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Σ / count per class, (K, n) from sums (K, n) and counts (K,); the row of a class without samples is NaN."""
    means = sums / counts.clamp(min=1).to(sums.dtype).unsqueeze(1)
    return torch.where(counts.unsqueeze(1) > 0, means, torch.nan)


def class_attribution(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The mean of A(x) over the samples of each class (Algorithm 1).

    Args:
        features: (N, n) float.
        weight: (K, n) float; its rows are the classes.
        labels: (N,) int64 in 0..K-1.

    Returns:
        (K, n) of the features' dtype; the row of a class without samples is NaN.
    """
    rows = attribution(features, weight, labels)
    sums = rows.new_zeros(weight.shape).index_add(0, labels, rows)
    return class_means(sums, torch.bincount(labels, minlength=len(weight)))


def correlation_matrix(vectors: Tensor) -> Tensor:
    """C[i, j]: the cosine between the class attributions of classes i and j (eq. 6).

    Args:
        vectors: class attributions, (K, n) float.

    Returns:
        (K, K) of the same dtype, symmetric, 1 on the diagonal; rows and columns of a class whose vector is NaN
        or has no length are NaN.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    defined = torch.isfinite(lengths) & (lengths > 0)
    # Undefined rows become zeros before any product: NaN times a zero gradient would still be NaN.
    units = _unit_rows(torch.where(defined, vectors, 0.0))
    return torch.where(defined & defined.T, units @ units.T, torch.nan)


def cas_contributions(matrix: Tensor) -> Tensor:
    """max(C[i, j], 0) off the diagonal, 0 on it and where C is NaN: (K, K), its sum is CAS (eq. 7)."""
    diagonal = torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return torch.where(diagonal | matrix.isnan(), 0.0, matrix).clamp(min=0)


def class_attribution_similarity(matrix: Tensor) -> Tensor:
    """CAS(C) = Σ_{i≠j} max(C[i, j], 0) (eq. 7); I-CAS when given an instance matrix (Section 5.3).

    Args:
        matrix: (K, K) float. NaN entries count as 0.

    Returns:
        A scalar from 0 to K(K-1), of the same dtype.
    """
    return cas_contributions(matrix).sum()


def instance_matrix(
    attributions: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    reduction: Literal["max", "mean"] = "max",
    max_bytes: int = 2**30,
) -> Tensor:
    """C_I[i, j]: the mean over samples x of class i of the largest cosine to a sample of class j (Section 5.3).

    A sample is not compared with itself. An attribution of length zero has cosine 0 to everything.

    Args:
        attributions: A(x), (N, n) float.
        labels: (N,) int64 in 0..num_classes-1.
        num_classes: K.
        reduction: "max" as above, in time O(N² n / 2); "mean" averages over all pairs instead, the paper's
            negative result, in time O(N n).
        max_bytes: bound on the working memory beyond the rows and a normalised copy of them.

    Returns:
        (K, K) of the same dtype. NaN in the row and column of a class without samples, and on the diagonal of a
        class of one sample.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    units = _unit_rows(attributions)
    if reduction == "mean":
        return _mean_pair_cosines(units, labels, counts)
    nearest = _nearest_cosines(units.detach(), labels, num_classes, max_bytes)
    sums = nearest.new_zeros(num_classes, num_classes).index_add(0, labels, nearest)
    means = class_means(sums, counts)
    return torch.where(means.isfinite(), means, torch.nan)


def _unit_rows(rows: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, 1.0)


def _mean_pair_cosines(units: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Mean cosine over all pairs of distinct samples, from one sum of unit vectors per class."""
    sums = units.new_zeros(len(counts), units.shape[1]).index_add(0, labels, units)
    own = units.new_zeros(len(counts)).index_add(0, labels, units.square().sum(1))
    numbers = counts.to(units.dtype)
    pairs = numbers.outer(numbers) - torch.diag(numbers)
    totals = sums @ sums.T - torch.diag(own)
    return torch.where(pairs > 0, totals / pairs.clamp(min=1), torch.nan)


def _nearest_cosines(units: Tensor, labels: Tensor, num_classes: int, max_bytes: int) -> Tensor:
    """The largest cosine of each sample to each class, (N, K); -inf where the class has no other sample.

    The rows are sorted by class and cut into chunks of one class each, the last chunk of a class padded, so that
    the maximum over a class is a maximum over whole chunks: strided reductions instead of a loop over pairs of
    classes. The similarity is symmetric, so only blocks from the diagonal to the right are multiplied, and each
    serves its rows and its columns.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    size = _chunk_rows(counts)
    chunks = (counts + size - 1) // size
    classes = torch.arange(num_classes, device=labels.device)
    chunk_class = torch.repeat_interleave(classes, chunks)
    # place[k] is where sample order[k] stands in the padded layout
    order = torch.argsort(labels, stable=True)
    shift = (chunks.cumsum(0) - chunks) * size - (counts.cumsum(0) - counts)
    place = torch.arange(len(order), device=labels.device) + shift[labels[order]]
    total = len(chunk_class) * size
    padded = units.new_zeros(total, units.shape[1])
    padded[place] = units[order]
    is_padding = torch.ones(total, dtype=torch.bool, device=units.device)
    is_padding[place] = False
    # the l-th chunks of all classes together: each class at most once, so plain indexing can update them
    nth = torch.arange(len(chunk_class), device=labels.device) - (chunks.cumsum(0) - chunks)[chunk_class]
    levels = [torch.nonzero(nth == level).squeeze(1) for level in range(int(chunks.max()))]
    class_of = chunk_class.tolist()

    # a block holds rows × total cosines, and its reductions at most half as much again
    rows = max(1, min(max_bytes // (total * units.element_size() * 2), _BLOCK_ROWS) // size) * size
    best = units.new_full((num_classes, total), -torch.inf)  # transposed, so that a column's update is contiguous
    for start in range(0, total, rows):
        stop = min(start + rows, total)
        block = padded[start:stop] @ padded[start:].T
        block.diagonal().fill_(-torch.inf)
        block[:, is_padding[start:]] = -torch.inf
        row_best = block.view(stop - start, -1, size).amax(2).T  # (chunks from start on, rows)
        for level in levels:
            here = level[level >= start // size]
            target = best[:, start:stop]
            target[chunk_class[here]] = torch.maximum(target[chunk_class[here]], row_best[here - start // size])
        if stop < total:
            block[is_padding[start:stop]] = -torch.inf
            column_best = (
                block[:, stop - start :].reshape(-1, size, total - stop).amax(1)
            )  # (chunks of the block, columns)
            for of_class, values in zip(class_of[start // size : stop // size], column_best, strict=True):
                torch.maximum(best[of_class, stop:], values, out=best[of_class, stop:])
    nearest = units.new_empty(len(units), num_classes)
    nearest[order] = best[:, place].T
    return nearest


def _chunk_rows(counts: Tensor) -> int:
    """The chunk size that pads least; of those near the least, the largest, whose reductions are quickest."""
    largest = max(1, int(counts.max()))
    sizes = sorted({min(size, largest) for size in (2, 4, 8, 16, 32, 64, largest if largest <= 128 else 64)})
    cost = {size: int(((counts + size - 1) // size).sum()) * (size + 1) for size in sizes}
    return min(sizes, key=lambda size: cost[size])
