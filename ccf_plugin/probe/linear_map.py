"""The linear map from features to logits in its one canonical form, read from a pass and checked against its logits.

logits = Σ_t f_t · (g_t W_tᵀ) + one constant row, over terms t: one run of a layer each, or a chain of runs that read
each other's outputs (a low-rank branch). The same function has the same features and weight however it is written:

- a chain B(A(g)) is the one matrix B·A on g, and a BatchNorm directly before a linear layer is folded into its matrix;
- terms that read the same tensor are one: their weights are added;
- terms of the same weight on different tensors are one: their features are added (one head over positions or views);
- what is left, different weights on different tensors, stands side by side: features (N, n1 + n2 + …).

Nothing in `read` waits for the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccf_plugin.probe.attribution import accumulator_dtype
from ccf_plugin.probe.calls import PassRecord
from ccf_plugin.probe.plan import Plan
from ccf_plugin.probe.rounding import constant_row, is_masked, relative, units
from ccf_plugin.probe.terms import TermValues, on_device, product, term_values

Item = TypeVar("Item")

# Factors are fitted anew where that explains this many times more than chance would (an F statistic).
_CLEARLY_BETTER = 25.0
EQUATIONS = 4  # for each factor that is fitted, so that none fits by chance
_SAMPLES = 256  # of which it is asked in how many ways their features vary
_FITTED = 2048  # units of roundoff by which fitted factors may be off


@dataclass(frozen=True)
class Reading:
    """What a plan reads from a pass.

    Attributes:
        features: g, (N, n).
        weight: W, (K, n).
        dtype: of the measured features, before anything was computed from them.
        factors: (m,) or (K, m).
        error: (), the largest difference of g Wᵀ + a constant row from the logits, relative to the sample's largest.
        missed: () bool, whether a difference is larger than float arithmetic explains.
        refitted: () bool, whether the factors are no longer the plan's.
        beside: the logits without g Wᵀ and the layers' own biases, (N, K): a constant row.
        offset: that row, (1, K).
        made: g Wᵀ as it is in the logits, (N, K).
        allowed: how far float arithmetic may put each of the logits from g Wᵀ + a constant row, (N, K).
    """

    features: Tensor
    weight: Tensor
    dtype: torch.dtype
    factors: Tensor
    error: Tensor
    missed: Tensor
    refitted: Tensor
    beside: Tensor
    offset: Tensor
    made: Tensor
    allowed: Tensor

    def is_informative(self) -> bool:
        """Whether the features tell the samples apart, so that the check means something. Waits for the device."""
        varied = self.made - constant_row(self.made, self.allowed) if len(self.made) > 1 else self.made
        return bool((varied.abs() > 4 * self.allowed).any())

    def is_explicit(self) -> bool:
        """Whether the constant row is that of the layers' own biases. Waits for the device."""
        return bool((self.beside.abs() <= self.allowed).all())


def read(plan: Plan, record: PassRecord, logits: Tensor, offset: Tensor | None = None) -> Reading:
    """Features and weight of this pass in canonical form, checked against its logits (N, K).

    Args:
        plan, record, logits: what to read, where, and what it must give.
        offset: for a pass of one sample, what the constant row was beside the layers' own biases in the last pass of
            several, (1, K); None: nothing.

    Raises:
        InputError: a layer did not run, ran on other rows than the logits have, or cannot be read.
    """
    dtype = accumulator_dtype(logits.device)
    wanted = logits.to(dtype)
    values = [term_values(term, record, wanted, _scalar(f)) for term, f in zip(plan.terms, plan.factors, strict=True)]
    products = torch.stack([value.made for value in values], 2)  # (N, K, m)
    biases = _biases(values, dtype)
    planned = on_device(plan.factors, dtype, logits.device)
    planned = planned.T if plan.per_class else planned
    returned = _returned_dtype(plan, record, logits)
    output_unit = torch.finfo(returned).eps / 2
    least = max(torch.finfo(dtype).tiny for dtype in {returned, *(v.outer.dtype or returned for v in values)})
    sizes = _sizes(wanted, products, biases, planned, least)
    factors, refitted = _fit(plan, planned, wanted, values, products, sizes, output_unit)
    features, weight, is_sum = _canonical(plan, values, factors)
    shares = products * factors
    made = shares[..., 0] if len(values) == 1 else shares.sum(2)
    residual = wanted - (made if is_sum else product(features, weight, dtype))
    by_rounding, of_size = _tolerance(values, shares, factors)
    beside = residual if biases is None else residual - (biases * factors).sum(1)
    sizes = _sizes(wanted, products, biases, factors, least)
    by_size = (of_size + 2 * output_unit) * sizes
    allowed = by_rounding + by_size
    # One sample alone is explained by any constant row: there it must be known.
    known = torch.zeros_like(beside) if offset is None else offset
    row = known if len(wanted) == 1 else constant_row(beside, allowed)
    difference = (beside - row).abs()
    missed = ~(difference <= allowed).all()
    if len(wanted) > 1:
        missed = missed | is_masked(wanted, made, row, by_rounding, by_size)
    for index, first in enumerate(plan.alike):  # what was a copy must be one in this pass
        if first != index and values[first].sources != values[index].sources:
            features_of = [values[term].features.to(dtype) for term in (first, index)]
            missed = missed | (features_of[0] != features_of[1]).any()
    largest = torch.maximum(wanted.abs(), made.abs()).amax(1)
    return Reading(
        features=features,
        weight=weight,
        dtype=values[0].features.dtype,
        factors=factors,
        error=(difference.amax(1) / largest.clamp(min=torch.finfo(dtype).tiny)).amax(),
        missed=missed,  # also where the difference is NaN, as a mask of -inf leaves it
        refitted=refitted,
        beside=beside,
        offset=row,
        made=made,
        allowed=allowed,
    )


def _scalar(factor: float | tuple[float, ...]) -> float:
    return 1.0 if isinstance(factor, tuple) or factor == 0 else factor


def _fit(
    plan: Plan,
    planned: Tensor,
    logits: Tensor,
    values: Sequence[TermValues],
    products: Tensor,
    sizes: Tensor,
    output_unit: float,
) -> tuple[Tensor, Tensor]:
    """The plan's factors, or those of least squares where these explain clearly more: (m,) or (K, m), and which.

    Clearly is more than chance and more than the logits' own rounding: of products that vary by less than it nothing is
    left in the logits, which a factor of 0 would explain.
    """
    rows, classes, number = products.shape
    fitted_number = number * (classes if plan.per_class else 1)
    equations = (rows - 1) * classes
    if equations < EQUATIONS * fitted_number:
        return planned, torch.zeros((), dtype=torch.bool, device=logits.device)
    # each logit is rounded in proportion to what it is made of: large ones, or a large constant, say little of factors
    sizes = sizes + (torch.stack([value.spread for value in values], 2) * planned.abs()).sum(2)
    compared = relative(torch.cat([logits.unsqueeze(2), products], 2), sizes.unsqueeze(2))
    wanted, columns = compared[..., 0], compared[..., 1:]
    # what rounding the means leaves of logits that are the same for all samples, it too might seem to be explained
    roundoff = 4 * torch.finfo(logits.dtype).eps ** 2 * equations
    unit = max(output_unit, *(units(value.outer)[1] for value in values))
    rounded = (logits * (unit / sizes)).square().sum()
    if fitted_number == 1:
        return _fit_one(planned, wanted.flatten(), columns.flatten(), roundoff, rounded)
    class_index = "k" if plan.per_class else ""
    gram = torch.einsum(f"nka,nkb->{class_index}ab", columns, columns)
    shares = torch.einsum(f"nka,nk->{class_index}a", columns, wanted)
    least = torch.finfo(logits.dtype).eps * 100
    ridge = gram.diagonal(dim1=-2, dim2=-1).mean(-1) * least + torch.finfo(logits.dtype).tiny
    ridged = gram + ridge[..., None, None] * torch.eye(number, dtype=gram.dtype, device=gram.device)
    shares = shares.unsqueeze(-1)
    fitted = torch.linalg.solve_ex(ridged, shares)[0]
    for _ in range(2):  # takes away what the ridge adds, where the products determine the factors
        fitted = fitted + torch.linalg.solve_ex(ridged, shares - gram @ fitted)[0]
    fitted = fitted.squeeze(-1)
    before = (wanted - (columns * planned).sum(2)).square().sum()
    after = (wanted - (columns * fitted).sum(2)).square().sum()
    chance = after / (equations - fitted_number) + roundoff * (1 + wanted.square().sum())
    chance = _CLEARLY_BETTER * fitted_number * chance
    better = (before - after > chance + rounded) & torch.isfinite(fitted).all()
    better = better & are_determined([value.features for value in values], number, classes, by_class=plan.per_class)
    return torch.where(better, fitted, planned), better


def are_determined(features: Sequence[Tensor], factors: int, classes: int, *, by_class: bool) -> Tensor:
    """Whether features (N, n) vary in more ways than there are factors, which else fit another head's logits; () bool.

    Logits of any matrix on features that vary in r ways have r K degrees of freedom, those of one class r. Of so many
    samples at most is it asked, by the rank of their inner products: nothing waits for the device.
    """
    dtype = accumulator_dtype(features[0].device)
    parts = [part[:_SAMPLES].detach().to(dtype) for part in features]
    least = torch.finfo(dtype).tiny
    # one size of each sample for all parts: means of different weights would differ in one way more
    sizes = torch.cat([part / part.abs().amax().clamp(min=least) for part in parts], 1).abs().amax(1, keepdim=True)
    centred = [relative(part, sizes) for part in parts]
    rows = torch.cat([part / part.abs().amax().clamp(min=least) for part in centred], 1)
    products = rows @ rows.T
    pivots = torch.linalg.lu_factor_ex(products)[0].diagonal().abs()
    eps = max(torch.finfo(part.dtype).eps for part in features)
    noise = products.diagonal().amax() * len(rows) * max(eps**2, 16 * torch.finfo(dtype).eps)
    ways: Tensor = (pivots > noise).sum()
    return ways > factors if by_class else ways * classes >= 2 * factors


def _fit_one(
    planned: Tensor, wanted: Tensor, column: Tensor, roundoff: float, rounded: Tensor
) -> tuple[Tensor, Tensor]:
    """`_fit` of one factor, in few kernels: (1,), from centred (N K,) vectors."""
    length, share, whole = torch.dot(column, column), torch.dot(column, wanted), torch.dot(wanted, wanted)
    fitted = share / length
    residual = (whole - fitted * share).clamp(min=0) / (len(wanted) - 1) + roundoff * (1 + whole)
    better = (fitted - planned).square() * length > _CLEARLY_BETTER * residual + rounded  # never where the length is 0
    return torch.where(better, fitted, planned), better[0]


def _canonical(plan: Plan, values: Sequence[TermValues], factors: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Features (N, n) and weight (K, n) of the whole map, see the module's description; and whether g Wᵀ is the sum of
    the terms as they are, or only where readings of one group still have factors in one proportion.
    """
    # Every different tensor that is read, with the terms on it; and those whose weights have the same proportions.
    reads = _grouped(range(len(values)), lambda first, index: _same_features(plan, values, first, index))
    groups = _grouped(reads, lambda first, together: _proportional(plan, first, together))
    features, weights = [], []
    for group in groups:
        first = group[0]
        if len(group) == 1:
            features.append(values[first[0]].features)
            weights.append(_weighted([values[index].weight for index in first], factors[..., first], plan.per_class))
            continue
        # the reading with the largest factors stands for the weights, the others for their share of it
        group = sorted(group, key=lambda together: -np.abs(_planned(plan, together)).sum())
        order = [plan.terms[index].matrices for index in group[0]]
        rows = [factors[..., _ordered(plan, together, order)].flatten() for together in group]
        shares = [(row @ rows[0]) / (rows[0] @ rows[0]) for row in rows]
        views = [values[together[0]].features.to(factors.dtype) for together in group]
        features.append(torch.stack([view * share for view, share in zip(views, shares, strict=True)]).sum(0))
        weights.append(_weighted([values[i].weight for i in group[0]], factors[..., group[0]], plan.per_class))
    is_sum = len(groups) == len(reads)
    if len(features) == 1:
        return features[0], weights[0], is_sum
    return torch.cat(features, 1), torch.cat(weights, 1), is_sum


def _grouped(items: Iterable[Item], belong: Callable[[Item, Item], bool]) -> list[list[Item]]:
    """The items in groups: each joins the first group to whose first item it belongs, or begins another."""
    groups: list[list[Item]] = []
    for item in items:
        group = next((group for group in groups if belong(group[0], item)), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    return groups


def _weighted(weights: list[Tensor], factors: Tensor, per_class: bool) -> Tensor:
    """Σ f_t W_t; factors (t,) or (K, t)."""
    columns = factors.unsqueeze(-1) if per_class else factors.view(1, -1, 1)
    if len(weights) == 1:
        return weights[0].to(factors.dtype) * columns[:, 0]
    return (torch.stack([weight.to(factors.dtype) for weight in weights], 1) * columns).sum(1)


def _same_features(plan: Plan, values: Sequence[TermValues], first: int, second: int) -> bool:
    left, right = values[first], values[second]
    same_place = plan.terms[first].position == plan.terms[second].position
    is_alike = len(plan.alike) > 0 and plan.alike[first] == plan.alike[second]
    return (left.sources == right.sources or is_alike) and same_place


def _ordered(plan: Plan, together: list[int], matrices: Sequence[object]) -> list[int]:
    """The reading's terms in the order of these weights."""
    return sorted(together, key=lambda index: matrices.index(plan.terms[index].matrices))


def _planned(plan: Plan, together: list[int]) -> NDArray[np.float64]:
    return np.array([plan.factors[index] for index in together], dtype=np.float64).ravel()


def _proportional(plan: Plan, first: list[int], second: list[int]) -> bool:
    """Whether two readings have the same weights, and factors in the same proportion."""
    matrices = [plan.terms[index].matrices for index in first]
    if sorted(map(str, matrices)) != sorted(str(plan.terms[index].matrices) for index in second):
        return False
    left, right = _planned(plan, first), _planned(plan, _ordered(plan, second, matrices))
    return (len(first) == 1 and not plan.per_class) or bool(
        abs(left @ right) >= (1 - 1e-8) * np.linalg.norm(left) * np.linalg.norm(right)
    )


def _biases(values: Sequence[TermValues], dtype: torch.dtype) -> Tensor | None:
    """Those of the terms' layers, (K, m), 0 where there is none; None where no layer has one."""
    if all(value.bias is None for value in values):
        return None
    return torch.stack(
        [value.made.new_zeros(value.made.shape[1]) if value.bias is None else value.bias.to(dtype) for value in values],
        1,
    )


def _sizes(logits: Tensor, products: Tensor, biases: Tensor | None, factors: Tensor, least: float) -> Tensor:
    """What nothing exceeds on the way to each logit, a constant row that is added and taken away neither: (N, K).

    Below ``least``, the smallest normal number of the dtypes on the way, nothing is rounded less than it is there.
    """
    terms = products.abs() + (least if biases is None else biases.abs() + least)
    return logits.abs() + least + (terms * factors.abs()).sum(2)


def _tolerance(values: Sequence[TermValues], shares: Tensor, factors: Tensor) -> tuple[Tensor, float]:
    """How far float arithmetic may put each of the logits from g Wᵀ + a constant row, (N, K).

    And beside it, as a share of what the logit and its terms are, what their size adds to that.

    With u the unit roundoff of a product's inputs, rounding them moves a sum of n products by about u √Σ g²w², since
    the errors have either sign; summing adds at most some √n times the sum's own unit, over partial sums of √n times
    the same; they begin with the bias, which is no larger than the logit and what is added to the bias. What is done to
    the terms afterwards rounds them a few times more.
    """
    parts, of_size = [], 0.0
    for index, value in enumerate(values):
        unit_in, unit = units(value.outer)
        width = value.features.shape[1]
        unit_sum = torch.finfo(torch.float64 if value.outer.dtype == torch.float64 else torch.float32).eps / 2
        rounding = 8 * unit_in + unit_sum * (8 + math.sqrt(width)) * math.sqrt(width)
        parts.append(value.spread * (factors[..., index].abs() * rounding))
        of_size = max(of_size, 8 * unit + unit_sum * math.sqrt(width))
    if len(values) > 1:  # the factors themselves are known as well as the dtype of the fit lets them be
        parts.append(_FITTED * torch.finfo(shares.dtype).eps * shares.abs().sum(2))
    return functools.reduce(torch.add, parts), of_size


def _returned_dtype(plan: Plan, record: PassRecord, logits: Tensor) -> torch.dtype:
    """Of the logits as the model returned them, which may be less precise than its head."""
    return next((entry.tensor for entry in record.entries if entry.path == plan.path), logits).dtype
