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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import accumulator_dtype
from ccf_plugin.probe.calls import LayerCall, PassRecord, is_matrix

# Factors are fitted anew where that explains so many times more than chance would (an F statistic).
_CLEARLY_BETTER = 25.0
_EQUATIONS = 4  # for each factor that is fitted, so that none fits by chance
_FITTED = 2048  # units of roundoff by which fitted factors may be off


@dataclass(frozen=True)
class Link:
    """One matrix of one run of a layer, found again in other passes by the run's number from the pass's end.

    Attributes:
        name: the layer's.
        run: -1 is its last run in a pass; None stands for all of them, averaged.
        matrix: the tensor's name among the layer's; "" is a BatchNorm's slope.
        transposed: whether it is (n, K).
        alike: a function's product has a matrix in each call; this is the last run with an equal one. None: a layer.
    """

    name: str
    run: int | None
    matrix: str
    transposed: bool = False
    alike: int | None = None

    @property
    def weight(self) -> tuple[object, ...]:
        """What tells its matrix from others: a layer's is that of all its runs."""
        return self.name, self.matrix, self.transposed, self.alike


@dataclass(frozen=True)
class Term:
    """A chain of links from the logits inwards, its positions, and the rows of its matrix that are the classes.

    Attributes:
        links: the head first, then what it reads.
        position: which of the positions (N, T, n) counts: "mean", "nearest" (for each sample the one that gives its
            logits), or weights, one for each position.
        rows: the rows of the matrix that are the classes, where these are not all.
    """

    links: tuple[Link, ...]
    position: str | tuple[float, ...] = "mean"
    rows: tuple[int, ...] | None = None

    @property
    def matrices(self) -> tuple[object, ...]:
        """What tells its weight from other terms' weights, whichever run it is of."""
        return tuple(link.weight for link in self.links), self.rows


@dataclass(frozen=True)
class Plan:
    """Which terms make which entry of the output.

    Attributes:
        path: of the entry; None where a head named by hand is measured for its own output.
        terms: in the order of their layers.
        factors: f_t as they were found: one for each term, or for each term one for each of the K classes.
        explicit: whether the constant row is the sum of the layers' own biases.
    """

    path: tuple[int | str, ...] | None
    terms: tuple[Term, ...]
    factors: tuple[float | tuple[float, ...], ...]
    explicit: bool = True

    @property
    def per_class(self) -> bool:
        """Whether each class has its own factor."""
        return any(isinstance(factor, tuple) for factor in self.factors)

    @property
    def used(self) -> tuple[Term, ...]:
        """The terms that have a share; others read the same features and may get one."""
        return tuple(term for term, factor in zip(self.terms, self.factors, strict=True) if factor != 0)


@dataclass(frozen=True)
class TermValues:
    """A term in one pass, without its factor.

    Attributes:
        features: (N, n).
        weight: (K, n).
        bias: of its layers, (K,), or None.
        sources: which tensors its runs read.
        outer: the run whose output the term is.
        spread: √Σ g²w² over the products behind each logit, (N, K): the scale of their rounding errors.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    sources: tuple[int, ...]
    outer: LayerCall
    spread: Tensor


@dataclass(frozen=True)
class Reading:
    """What a plan reads from a pass.

    Attributes:
        features: g, (N, n).
        weight: W, (K, n).
        dtype: of the measured features, before anything was computed from them.
        factors: (m,) or (K, m).
        error: (), the largest difference of g Wᵀ + a constant row from the logits, relative to the largest logit.
        missed: () bool, whether a difference is larger than float arithmetic explains.
        refitted: () bool, whether the factors are no longer the plan's.
        informative: () bool, whether the features tell the samples apart, so that the check means something.
        explicit: () bool, whether the constant row is that of the layers' own biases.
    """

    features: Tensor
    weight: Tensor
    dtype: torch.dtype
    factors: Tensor
    error: Tensor
    missed: Tensor
    refitted: Tensor
    informative: Tensor
    explicit: Tensor


def read(plan: Plan, record: PassRecord, logits: Tensor) -> Reading:
    """Features and weight of this pass in canonical form, checked against its logits (N, K).

    Raises:
        InputError: a layer did not run, ran on other rows than the logits have, or cannot be read.
    """
    dtype = accumulator_dtype(logits.device)
    wanted = logits.to(dtype)
    values = [_term_values(term, record, wanted, _scalar(f)) for term, f in zip(plan.terms, plan.factors, strict=True)]
    products = torch.stack([product(value.features, value.weight, dtype) for value in values], 2)  # (N, K, m)
    factors, refitted = _fit(plan, wanted, products)
    features, weight = _canonical(plan, values, factors)
    residual = wanted - product(features, weight, dtype)
    allowed = _tolerance(values, products, factors, wanted)
    own = wanted.new_zeros(())  # the constant row that the layers' own biases make
    for index, value in enumerate(values):
        if value.bias is not None:
            own = own + value.bias.to(dtype) * factors[..., index]
    explicit = ((residual - own).abs() <= allowed).all()
    centred = residual - residual[:1]  # the constant row first, whose size would round the mean
    centred = centred - centred.mean(0, keepdim=True)
    # One sample alone is explained by any constant row: there the layers' own biases must be it.
    difference = (residual - own).abs() if len(wanted) == 1 and plan.explicit else centred.abs()
    made = (products * factors).sum(2)
    varied = (made - made.mean(0, keepdim=True)).abs() if len(wanted) > 1 else made.abs()
    return Reading(
        features=features,
        weight=weight,
        dtype=values[0].features.dtype,
        factors=factors,
        error=difference.amax() / wanted.abs().amax(),
        missed=(difference > allowed).any(),
        refitted=refitted,
        informative=(varied > 4 * allowed).any(),
        explicit=explicit,
    )


def term_product(term: Term, record: PassRecord, dtype: torch.dtype) -> Tensor:
    """g Wᵀ of a term in its place, (N, K); not of one whose place is that nearest to the logits."""
    links = [_runs_of(link, record) for link in term.links]
    return product(_placed(_positions(links[-1]), term.position), _weight_and_bias(term, links)[0], dtype)


def products_at_positions(term: Term, record: PassRecord, dtype: torch.dtype) -> Tensor:
    """g Wᵀ of a term at all its positions, (N, T, K)."""
    links = [_runs_of(link, record) for link in term.links]
    return product(_positions(links[-1]), _weight_and_bias(term, links)[0], dtype)


def product(features: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """g Wᵀ in this dtype: (…, n) and (K, n) to (…, K)."""
    return features.to(dtype) @ weight.to(dtype).T


def link_holds(link: Link, call: LayerCall) -> bool:
    """Whether a run's output is its matrix times its input plus a constant row, so that a chain may go through it."""
    if call.inputs is None or not isinstance(call.output, Tensor) or call.output.ndim != call.inputs.ndim:
        return False
    matrix = _matrix(link, call)
    rows, made = call.positions(), call.output_positions()
    if rows.shape[-1] != matrix.shape[-1] or made.shape[:2] != rows.shape[:2]:
        return False
    dtype = accumulator_dtype(made.device)
    exact = rows.to(dtype) * matrix.to(dtype) if matrix.ndim == 1 else product(rows, matrix, dtype)
    if exact.shape != made.shape:
        return False
    residual = (made.to(dtype) - exact).flatten(0, 1)
    spread = (rows.to(dtype) * matrix.to(dtype)).abs() if matrix.ndim == 1 else _spread(rows, matrix, dtype)
    allowed = spread.flatten(0, 1) * _units(call)[0] * 64 + made.to(dtype).abs().amax() * 16 * _units(call)[1]
    return bool(((residual - residual.mean(0)).abs() <= allowed).all())


def _term_values(term: Term, record: PassRecord, logits: Tensor, factor: float) -> TermValues:
    links = [_runs_of(link, record) for link in term.links]
    weight, bias = _weight_and_bias(term, links)
    positions = _positions(links[-1])
    outer = links[0][-1]
    if len(positions) != len(logits):
        raise InputError(
            f"expected the head to see the batch as the logits show it, found that it ran on {len(positions)} "
            f"rows, where the logits have {len(logits)}; probe the module inside, which sees them together"
        )
    features = _at(positions, term.position, weight, bias, logits, factor)
    spread = _spread(features, weight, logits.dtype)
    if len(links) > 1 and outer.inputs is not None:  # what a chain cancels is rounded all the same
        own = _matrix(term.links[0], outer)
        own = own if term.rows is None else own.index_select(0, _index(term.rows, own))
        spread = spread + _spread(at_mean(outer.positions()), own, logits.dtype)
    return TermValues(features, weight, bias, tuple(call.source for call in links[-1]), outer, spread)


def _runs_of(link: Link, record: PassRecord) -> list[LayerCall]:
    runs = record.runs(link.name)
    if not runs or (link.run is not None and len(runs) < -link.run):
        raise InputError(
            f"expected the head {link.name!r} to run in every pass, found that the last pass went around it; "
            "probe the part of the model that always runs, or attach before torch.compile's first call"
        )
    return runs if link.run is None else [runs[link.run]]


def _weight_and_bias(term: Term, links: list[list[LayerCall]]) -> tuple[Tensor, Tensor | None]:
    """B·A…, (K, n), and what the layers' biases add to the logits, (K,)."""
    outer = links[0][-1]
    weight = _matrix(term.links[0], outer)
    bias = bias_of(outer, len(weight))
    for link, runs in zip(term.links[1:], links[1:], strict=True):
        matrix = _matrix(link, runs[-1])
        dtype = torch.promote_types(accumulator_dtype(weight.device), weight.dtype)
        # a BatchNorm's shift is left to the constant row
        shift = None if matrix.ndim == 1 else bias_of(runs[-1], len(matrix))
        if shift is not None:
            added = weight.to(dtype) @ shift.to(dtype)
            bias = added if bias is None else bias + added
        weight = weight.to(dtype) * matrix.to(dtype) if matrix.ndim == 1 else weight.to(dtype) @ matrix.to(dtype)
    if term.rows is not None:
        index = _index(term.rows, weight)
        weight, bias = weight.index_select(0, index), None if bias is None else bias.index_select(0, index)
    return weight, bias


def _matrix(link: Link, call: LayerCall) -> Tensor:
    """(rows, columns), or a BatchNorm's slope (n,)."""
    if link.matrix == "" and call.slope is not None:
        return call.slope
    tensor = call.tensors.get(link.matrix)
    if tensor is None or not is_matrix(tensor):
        raise InputError(
            f"expected layer {link.name!r} to keep its matrix {link.matrix!r}, found none in the last pass"
        )
    if tensor.is_meta:
        raise InputError(
            f"expected the weight of {link.name!r} to be readable when the pass has ended, found it on the meta device "
            "(offloaded); give it with head=LinearHead(features=…, weight=…)"
        )
    matrix = tensor.reshape(tensor.shape[:2])
    return matrix.T if link.transposed else matrix


def bias_of(call: LayerCall, size: int) -> Tensor | None:
    """The layer's own bias of so many entries, or None."""
    named = call.tensors.get("bias")
    if named is not None and named.numel() == size:
        return named.flatten()
    return next(iter(call.biases(size)), None)


def _index(rows: tuple[int, ...], like: Tensor) -> Tensor:
    return _on_device(rows, torch.int64, like.device)


@functools.lru_cache(maxsize=64)
def _on_device(numbers: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers of a plan, brought to the device once: each copy would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


def _positions(runs: list[LayerCall]) -> Tensor:
    """(N, T, n); several runs of a layer are positions too."""
    for call in runs:
        if call.inputs is None:
            raise InputError(
                f"expected the features of {call.name!r} to be kept until the pass's end, found that they took too "
                "much memory beside those of other layers; run another pass, which keeps the head's alone, then update"
            )
    stacked = [call.positions() for call in runs]
    if len({len(rows) for rows in stacked}) > 1:
        raise InputError(
            f"expected all runs of {runs[0].name!r} to see the batch, found runs on {[len(rows) for rows in stacked]} "
            "rows"
        )
    return stacked[0] if len(stacked) == 1 else torch.stack([at_mean(rows) for rows in stacked], 1)


def at_mean(rows: Tensor) -> Tensor:
    """The mean over positions, (N, T, ·) to (N, ·)."""
    return rows.squeeze(1) if rows.shape[1] == 1 else rows.mean(1)


def _at(
    rows: Tensor, position: str | tuple[float, ...], weight: Tensor, bias: Tensor | None, logits: Tensor, factor: float
) -> Tensor:
    if position != "nearest":
        return _placed(rows, position)
    made = product(rows, weight, logits.dtype)
    if bias is not None:
        made = made + bias.to(logits.dtype)
    nearest = (made * factor - logits.unsqueeze(1)).abs().amax(2).argmin(1)
    return rows.gather(1, nearest.view(-1, 1, 1).expand(-1, 1, rows.shape[2])).squeeze(1)


def _placed(rows: Tensor, position: str | tuple[float, ...]) -> Tensor:
    """(N, T, n) at the mean of its positions, or at these weights of them."""
    if isinstance(position, str):
        return at_mean(rows)
    weights = _on_device(position, rows.dtype, rows.device)
    if len(weights) != rows.shape[1]:
        raise InputError(
            f"expected the head at {len(weights)} positions in every pass, found {rows.shape[1]} in the last"
        )
    return torch.einsum("ntd,t->nd", rows, weights)


def _spread(features: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return (features.to(dtype).square() @ weight.to(dtype).square().T).sqrt()


def _scalar(factor: float | tuple[float, ...]) -> float:
    return 1.0 if isinstance(factor, tuple) or factor == 0 else factor


def _fit(plan: Plan, logits: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """The plan's factors, or those of least squares where these explain clearly more: (m,) or (K, m), and which."""
    planned = _on_device(plan.factors, logits.dtype, logits.device)
    planned = planned.T if plan.per_class else planned
    rows, classes, number = products.shape
    fitted_number = number * (classes if plan.per_class else 1)
    never = torch.zeros((), dtype=torch.bool, device=logits.device)
    equations = (rows - 1) * classes
    if equations < _EQUATIONS * fitted_number:
        return planned, never
    wanted = logits - logits.mean(0)
    columns = products - products.mean(0)
    which = "k" if plan.per_class else ""
    gram = torch.einsum(f"nka,nkb->{which}ab", columns, columns)
    shares = torch.einsum(f"nka,nk->{which}a", columns, wanted)
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
    noise = wanted.square().sum() * torch.finfo(logits.dtype).eps ** 2 * equations
    chance = _CLEARLY_BETTER * fitted_number * (after / (equations - fitted_number) + noise)
    better = (before - after > chance) & torch.isfinite(fitted).all()
    return torch.where(better, fitted, planned), better


def _canonical(plan: Plan, values: Sequence[TermValues], factors: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, n) and weight (K, n) of the whole map; see the module's description."""
    # Every different tensor that is read, with the terms on it.
    reads: list[list[int]] = []
    for index in range(len(values)):
        for together in reads:
            if _same_features(plan, values, together[0], index):
                together.append(index)
                break
        else:
            reads.append([index])
    groups: list[list[list[int]]] = []  # readings whose terms have the same weights in the same proportions
    for together in reads:
        for group in groups:
            if _proportional(plan, group[0], together):
                group.append(together)
                break
        else:
            groups.append([together])
    features, weights = [], []
    for group in groups:
        first = group[0]
        if len(group) == 1:
            features.append(values[first[0]].features)
            weights.append(_weighted([values[index].weight for index in first], factors[..., first], plan.per_class))
            continue
        # the reading with the largest factors stands for the weights, the others for their share of it
        group = sorted(group, key=lambda together: -_size(plan, together))
        order = [plan.terms[index].matrices for index in group[0]]
        rows = [factors[..., _ordered(plan, together, order)].flatten() for together in group]
        shares = [(row @ rows[0]) / (rows[0] @ rows[0]) for row in rows]
        views = [values[together[0]].features.to(factors.dtype) for together in group]
        features.append(torch.stack([view * share for view, share in zip(views, shares, strict=True)]).sum(0))
        weights.append(_weighted([values[i].weight for i in group[0]], factors[..., group[0]], plan.per_class))
    if len(features) == 1:
        return features[0], weights[0]
    return torch.cat(features, 1), torch.cat(weights, 1)


def _weighted(weights: list[Tensor], factors: Tensor, per_class: bool) -> Tensor:
    """Σ f_t W_t; factors (t,) or (K, t)."""
    columns = factors.unsqueeze(-1) if per_class else factors.view(1, -1, 1)
    if len(weights) == 1:
        return weights[0].to(factors.dtype) * columns[:, 0]
    return (torch.stack([weight.to(factors.dtype) for weight in weights], 1) * columns).sum(1)


def _same_features(plan: Plan, values: Sequence[TermValues], first: int, second: int) -> bool:
    own, other = values[first], values[second]
    same_place = plan.terms[first].position == plan.terms[second].position
    return own.sources == other.sources and same_place


def _ordered(plan: Plan, together: list[int], matrices: Sequence[object]) -> list[int]:
    """The reading's terms in the order of these weights."""
    return sorted(together, key=lambda index: matrices.index(plan.terms[index].matrices))


def _size(plan: Plan, together: list[int]) -> float:
    return float(np.abs(_planned(plan, together)).sum())


def _planned(plan: Plan, together: list[int]) -> NDArray[np.float64]:
    return np.array([plan.factors[index] for index in together], dtype=np.float64).ravel()


def _proportional(plan: Plan, first: list[int], second: list[int]) -> bool:
    """Whether two readings have the same weights, and factors in the same proportion."""
    matrices = [plan.terms[index].matrices for index in first]
    if sorted(map(str, matrices)) != sorted(str(plan.terms[index].matrices) for index in second):
        return False
    own, other = _planned(plan, first), _planned(plan, _ordered(plan, second, matrices))
    return (len(first) == 1 and not plan.per_class) or bool(
        abs(own @ other) >= (1 - 1e-8) * np.linalg.norm(own) * np.linalg.norm(other)
    )


def _tolerance(values: Sequence[TermValues], products: Tensor, factors: Tensor, logits: Tensor) -> Tensor:
    """How far float arithmetic may put each of the logits from g Wᵀ + a constant row, (N, K).

    With u the unit roundoff of a product's inputs, rounding them moves a sum of n products by about u √Σ g²w², since
    the errors have either sign; summing adds at most some √n times the sum's own unit, over partial sums of √n times
    the same; they begin with the bias, which may be as large as the largest logit. What is done to the terms
    afterwards rounds them a few times more.
    """
    allowed = torch.zeros_like(logits)
    of_largest = 0.0
    for index, value in enumerate(values):
        unit_in, unit = _units(value.outer)
        width = value.features.shape[1]
        unit_sum = torch.finfo(torch.float64 if value.outer.dtype == torch.float64 else torch.float32).eps / 2
        rounding = 8 * unit_in + unit_sum * (8 + math.sqrt(width)) * math.sqrt(width)
        allowed = (
            allowed + (value.spread * rounding + products[..., index].abs() * 8 * unit) * factors[..., index].abs()
        )
        of_largest = max(of_largest, 8 * unit + unit_sum * 2 * math.sqrt(width))
    if len(values) > 1:  # the factors themselves are known as well as the dtype of the fit lets them be
        allowed = allowed + _FITTED * torch.finfo(logits.dtype).eps * (products * factors).abs().sum(2)
    return allowed + of_largest * logits.abs().amax()


def _units(call: LayerCall) -> tuple[float, float]:
    """Unit roundoff of the product's inputs, and of its output, in this run."""
    low = call.reduced_precision()
    if low is not None:
        return torch.finfo(low).eps / 2, torch.finfo(low).eps / 2
    if call.dtype == torch.float64:
        return torch.finfo(torch.float64).eps / 2, torch.finfo(torch.float64).eps / 2
    single = torch.finfo(torch.float32).eps / 2
    if torch.get_float32_matmul_precision() == "medium":
        return torch.finfo(torch.bfloat16).eps / 2, single
    on_gpu = call.inputs is not None and call.inputs.is_cuda
    # TF32 products, where the host allows them, keep ten bits
    return 2.0**-11 if on_gpu or torch.get_float32_matmul_precision() == "high" else single, single
