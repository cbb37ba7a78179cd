"""The measurement's formulas as pure functions, each once (eqs. 5 to 7, Algorithm 1 and Section 5.3 of
"Identifying and Understanding Cross-Class Features in Adversarial Training", ICML 2025).

N samples, n features, K classes. Every function keeps its input's dtype and device, and keeps gradients, so that CAS
and I-CAS can be terms of a training loss. An undefined entry (a class without samples, a vector without length) is
NaN, and no gradient passes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ccf_plugin.engine.gradients import leads_to

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


def gradient_attribution(
    features: Sequence[Tensor], logits: Tensor, labels: Tensor, *, rows: slice = slice(None)
) -> list[Tensor]:
    """A(x) = g(x) ⊙ ∂logit_y/∂g: eq. 5 where no linear head follows g; equal to it where one does.

    Of features that others of the ``features`` are computed from, what reaches the logit through those is left out: it
    is theirs. So is it where linear heads on both are added.

    Args:
        features: tensors g that the logits were computed from, each (N, …) float.
        logits: (N, K) float, with the graph back to the features; the graph is kept.
        labels: y, (N,) int64 in 0..K-1, or as many as ``rows`` has.
        rows: the samples to take.

    Returns:
        One detached tensor per feature tensor, of its shape (its ``rows`` only) and dtype, at least float32: in half
        precision the product would be rounded.

    Raises:
        RuntimeError: the graph is gone, or there is none.
    """
    with torch.enable_grad():
        true_logits = logits[rows].gather(1, labels.unsqueeze(1)).sum()
    slopes = _direct_slopes(features, torch.autograd.grad(true_logits, list(features), retain_graph=True))
    dtypes = [torch.promote_types(g.dtype, torch.float32) for g in features]
    return [
        g.detach()[rows].to(dtype) * slope[rows].to(dtype)
        for g, slope, dtype in zip(features, slopes, dtypes, strict=True)
    ]


def _direct_slopes(features: Sequence[Tensor], slopes: Sequence[Tensor]) -> list[Tensor]:
    """The gradients with respect to each of the features without what passes through others of them."""
    direct: dict[int, Tensor] = {}

    def without_others(index: int) -> Tensor:
        if index not in direct:
            slope, source = slopes[index], features[index]
            for other, later in enumerate(features):
                # parts of one tensor have one node, and no way between them
                if later is source or later.grad_fn is source.grad_fn or not leads_to([later], source):
                    continue
                (through,) = torch.autograd.grad(
                    later, source, without_others(other), retain_graph=True, allow_unused=True
                )
                slope = slope if through is None else slope - through
            direct[index] = slope
        return direct[index]

    return [without_others(index) for index in range(len(features))]


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
    return class_means(*class_sums(features, weight, labels))


def class_sums(features: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of A(x) over the samples of each class, (K, n), and how many there are, (K,) int64."""
    rows = attribution(features, weight, labels)
    sums = rows.new_zeros(weight.shape).index_add(0, labels, rows)
    return sums, labels.new_zeros(len(weight)).index_add(0, labels, torch.ones_like(labels))  # bincount would wait


def correlation_matrix(vectors: Tensor) -> Tensor:
    """C[i, j]: the cosine between the class attributions of classes i and j (eq. 6).

    Args:
        vectors: class attributions, (K, n) float.

    Returns:
        (K, K) of the same dtype, symmetric, 1 on the diagonal; rows and columns of a class whose vector is NaN
        or has no length are NaN.
    """
    units, defined = defined_units(vectors)
    return torch.where(defined & defined.T, units @ units.T, torch.nan)


def defined_units(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of (…, K, n) at length 1, and which have one, (…, K, 1) bool; rows that are NaN or zero become zeros."""
    largest = _largest(vectors)
    defined = torch.isfinite(largest) & (largest > 0)
    # Before any product: NaN times a zero gradient would still be NaN.
    return unit_rows(torch.where(defined, vectors, 0.0)), defined


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
        max_bytes: bound on the working memory beyond the rows, a normalised copy of them and N · K cosines. Where
            the rows require gradients, autograd keeps all N² cosines instead.

    Returns:
        (K, K) of the same dtype. NaN in the row and column of a class without samples, and on the diagonal of a
        class of one sample.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if reduction == "mean":
        return _mean_pair_cosines(unit_rows(attributions), labels, counts)
    if attributions.requires_grad and torch.is_grad_enabled():
        nearest = _nearest_with_gradient(unit_rows(attributions), labels, num_classes)
        sums = nearest.new_zeros(num_classes, num_classes).index_add(0, labels, nearest)
    else:
        sum_of_nearest = _sum_of_nearest_in_products if attributions.is_cuda else _sum_of_nearest
        sums = sum_of_nearest(attributions, labels, counts, max_bytes)
    means = class_means(sums, counts).to(attributions.dtype)
    return torch.where(means.isfinite(), means, torch.nan)


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """What sums over samples are held in: float64, but on Apple's GPU, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def unit_rows(rows: Tensor) -> Tensor:
    """The rows of (…, n) at length 1; those of zeros as they are."""
    rows = rows / _or_1(_largest(rows))  # else their squares may be too large or too small for the dtype
    return rows / _or_1(torch.linalg.vector_norm(rows, dim=-1, keepdim=True))


def _largest(rows: Tensor) -> Tensor:
    """The size of the largest entry of each row of (…, n), (…, 1): NaN where one is NaN."""
    largest: Tensor = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=-1, keepdim=True)
    return largest


def _or_1(sizes: Tensor) -> Tensor:
    return torch.where(sizes > 0, sizes, 1.0)


def _mean_pair_cosines(units: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Mean cosine over all pairs of distinct samples, from one sum of unit vectors per class."""
    sums = units.new_zeros(len(counts), units.shape[1]).index_add(0, labels, units)
    self_products = units.new_zeros(len(counts)).index_add(0, labels, units.square().sum(1))
    numbers = counts.to(units.dtype)
    pairs = numbers.outer(numbers) - torch.diag(numbers)
    totals = sums @ sums.T - torch.diag(self_products)
    return torch.where(pairs > 0, totals / pairs.clamp(min=1), torch.nan)


def _nearest_with_gradient(units: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The largest cosine of each sample to each class, (N, K); -inf where the class has no other sample."""
    samples = torch.arange(len(units), device=units.device)
    columns = []
    for label in range(num_classes):
        members = torch.nonzero(labels == label).squeeze(1)
        if len(members) == 0:
            columns.append(units.new_full((len(units),), -torch.inf))
            continue
        itself = samples.unsqueeze(1) == members
        columns.append((units @ units[members].T).masked_fill(itself, -torch.inf).amax(1))
    return torch.stack(columns, 1)


def _sum_of_nearest(attributions: Tensor, labels: Tensor, counts: Tensor, max_bytes: int) -> Tensor:
    """Over the samples of class i, the sum of the largest cosine of each to class j, (K, K).

    The rows are sorted by class and cut into chunks of one class each, the last chunk of a class padded, so that
    the maximum over a class is a maximum over whole chunks: strided reductions instead of a loop over pairs of
    classes. The similarity is symmetric, so only blocks from the diagonal to the right are multiplied, and each
    serves its rows and its columns.
    """
    num_classes, device = len(counts), attributions.device
    size = _chunk_rows(counts)
    chunks = (counts + size - 1) // size
    first_chunk = chunks.cumsum(0) - chunks
    chunk_class = torch.repeat_interleave(torch.arange(num_classes, device=device), chunks)
    total = len(chunk_class) * size
    # place[k] is where sample order[k] stands in the padded layout
    order = torch.argsort(labels, stable=True)
    shift = first_chunk * size - (counts.cumsum(0) - counts)
    place = torch.arange(len(order), device=device) + shift[labels[order]]
    padded = attributions.new_zeros(total, attributions.shape[1])
    padded[place] = attributions[order]
    padded /= _or_1(_largest(padded))
    padded /= _or_1(torch.linalg.vector_norm(padded, dim=1, keepdim=True))
    is_padding = torch.ones(total, dtype=torch.bool, device=device)
    is_padding[place] = False
    # the l-th chunks of all classes together: each class at most once, so plain indexing can update them
    nth = torch.arange(len(chunk_class), device=device) - first_chunk[chunk_class]
    levels = [torch.nonzero(nth == level).squeeze(1) for level in range(int(chunks.max()))]
    class_of = chunk_class.tolist()

    # a block holds rows × total cosines, and its reductions at most half as much again
    rows = max(1, min(max_bytes // (total * padded.element_size() * 2), _BLOCK_ROWS) // size) * size
    best = padded.new_full((num_classes, total), -torch.inf)  # transposed, so that a column's update is contiguous
    for start in range(0, total, rows):
        stop = min(start + rows, total)
        block = padded[start:stop] @ padded[start:].T
        block.diagonal().fill_(-torch.inf)
        block[:, is_padding[start:]] = -torch.inf
        row_best = block.view(stop - start, -1, size).amax(2).T  # (chunks from start on, rows)
        target = best[:, start:stop]
        for level in levels:
            reached = level[level >= start // size]
            target[chunk_class[reached]] = torch.maximum(
                target[chunk_class[reached]], row_best[reached - start // size]
            )
        if stop < total:
            block[is_padding[start:stop]] = -torch.inf
            column_best = block[:, stop - start :].reshape(-1, size, total - stop).amax(1)  # (chunks, columns)
            for label, values in zip(class_of[start // size : stop // size], column_best, strict=True):
                torch.maximum(best[label, stop:], values, out=best[label, stop:])
        del block  # before the next is made
    best[:, is_padding] = 0
    # a chunk's few cosines in their own dtype: summing as float64 at once would copy all of `best`
    by_chunk = best.view(num_classes, -1, size).sum(2).to(accumulator_dtype(device))
    return by_chunk.new_zeros(num_classes, num_classes).index_add_(0, chunk_class, by_chunk.T)


def _sum_of_nearest_in_products(attributions: Tensor, labels: Tensor, counts: Tensor, max_bytes: int) -> Tensor:
    """The same in few kernels, for a GPU: twice the products, reduced over the columns of a class at once."""
    order = torch.argsort(labels, stable=True)
    units, classes = unit_rows(attributions[order]), labels[order]
    sizes = counts.tolist()
    rows = max(1, max_bytes // (len(units) * units.element_size()))  # of a block of cosines
    sums = torch.zeros(len(sizes), len(sizes), dtype=accumulator_dtype(units.device), device=units.device)
    for start in range(0, len(units), rows):
        block = units[start : start + rows] @ units.T
        block.diagonal(start).fill_(-torch.inf)
        columns = [
            class_block.amax(1) if class_block.shape[1] else class_block.new_full((len(block),), -torch.inf)
            for class_block in torch.split(block, sizes, 1)
        ]
        sums.index_add_(0, classes[start : start + rows], torch.stack(columns, 1).to(sums.dtype))
        del block, columns  # before the next is made
    return sums


def _chunk_rows(counts: Tensor) -> int:
    """The chunk size that pads least; of those near the least, the largest, whose reductions are quickest."""
    largest = max(1, int(counts.max()))
    sizes = sorted({min(size, largest) for size in (2, 4, 8, 16, 32, 64, largest if largest <= 128 else 64)})
    cost = {size: int(((counts + size - 1) // size).sum()) * (size + 1) for size in sizes}
    return min(sizes, key=lambda size: cost[size])
