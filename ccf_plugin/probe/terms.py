"""What a term of a plan is in one pass: its features, its weight, its bias, and the scale of their rounding errors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import accumulator_dtype
from ccf_plugin.probe.calls import LayerCall, PassRecord, is_matrix
from ccf_plugin.probe.plan import Link, Term
from ccf_plugin.probe.rounding import constant_row, spread_of, units


@dataclass(frozen=True)
class TermValues:
    """A term in one pass, without its factor.

    Attributes:
        features: (N, n).
        weight: (K, n).
        bias: of its layers, (K,), or None.
        sources: which tensors its runs read.
        outer: the run whose output the term is.
        made: g Wᵀ, (N, K), in the dtype of the check.
        spread: √Σ g²w² over the products behind each logit, (N, K): the scale of their rounding errors.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    sources: tuple[int, ...]
    outer: LayerCall
    made: Tensor
    spread: Tensor


def term_product(term: Term, record: PassRecord, dtype: torch.dtype) -> Tensor:
    """g Wᵀ of a term in its place, (N, K); not of one whose place is that nearest to the logits."""
    links = [runs_of(link, record) for link in term.links]
    return product(_placed(_positions(links[-1]), term.position), _weight_and_bias(term, links)[0], dtype)


def products_at_positions(term: Term, record: PassRecord, dtype: torch.dtype) -> Tensor:
    """g Wᵀ of a term at all its positions, (N, T, K)."""
    links = [runs_of(link, record) for link in term.links]
    return product(_positions(links[-1]), _weight_and_bias(term, links)[0], dtype)


def product(features: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """g Wᵀ in this dtype: (…, n) and (K, n) to (…, K)."""
    return features.to(dtype) @ weight.to(dtype).T


def link_holds(link: Link, call: LayerCall) -> bool:
    """Whether a run's output is its matrix times its input plus a constant row, so that a chain may go through it."""
    if call.inputs is None or not isinstance(call.output, Tensor) or call.output.ndim != call.inputs.ndim:
        return False
    matrix = matrix_of(link, call)
    rows, made = call.positions(), call.output_positions()
    if rows.shape[-1] != matrix.shape[-1] or made.shape[:2] != rows.shape[:2]:
        return False
    dtype = accumulator_dtype(made.device)
    exact = rows.to(dtype) * matrix.to(dtype) if matrix.ndim == 1 else product(rows, matrix, dtype)
    if exact.shape != made.shape:
        return False
    made = made.to(dtype)
    products = exact.abs() if matrix.ndim == 1 else spread_of(rows, matrix, dtype)
    allowed = (products * (64 * units(call)[0]) + (made.abs() + exact.abs()) * (16 * units(call)[1])).flatten(0, 1)
    residual = (made - exact).flatten(0, 1)
    return bool(((residual - constant_row(residual, allowed)).abs() <= allowed).all())


def term_values(term: Term, record: PassRecord, logits: Tensor, factor: float) -> TermValues:
    """A term in this pass, whose logits are (N, K); its factor tells which position is the nearest to them.

    Raises:
        InputError: a layer did not run, ran on other rows than the logits have, or cannot be read.
    """
    links = [runs_of(link, record) for link in term.links]
    weight, bias = _weight_and_bias(term, links)
    positions = _positions(links[-1])
    outer = links[0][-1]
    check_rows(positions, logits)
    features = _at(positions, term.position, weight, bias, logits, factor)
    wide = features.to(logits.dtype), weight.to(logits.dtype)
    made = product(*wide, logits.dtype)
    spread = spread_of(_magnitudes(positions, term.position, wide[0]), wide[1], logits.dtype)
    if len(links) > 1 and outer.inputs is not None:  # what a chain cancels is rounded all the same
        matrix = matrix_of(term.links[0], outer)
        matrix = matrix if term.rows is None else matrix.index_select(0, _index(term.rows, matrix))
        spread = spread + spread_of(at_mean(outer.positions()), matrix, logits.dtype)
    return TermValues(features, weight, bias, tuple(call.source for call in links[-1]), outer, made, spread)


def check_rows(positions: Tensor, logits: Tensor) -> None:
    """Raise InputError where a layer's positions (N, T, n) are not of the rows that the logits (N, K) have."""
    if len(positions) != len(logits):
        raise InputError(
            f"expected the head to see the batch as the logits show it, found that it ran on {len(positions)} "
            f"rows, where the logits have {len(logits)}; probe the module inside, which sees them together"
        )


def runs_of(link: Link, record: PassRecord) -> list[LayerCall]:
    """The runs of a link's layer in a pass. Raises InputError where there are none."""
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
    weight = matrix_of(term.links[0], outer)
    bias = bias_of(outer, len(weight))
    for link, runs in zip(term.links[1:], links[1:], strict=True):
        matrix = matrix_of(link, runs[-1])
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


def matrix_of(link: Link, call: LayerCall) -> Tensor:
    """The matrix that a link names, (rows, columns), or a BatchNorm's slope (n,).

    Raises:
        InputError: the run has none, or it is not to be read.
    """
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
    """The layer's own bias of ``size`` entries, or None."""
    named = call.tensors.get("bias")
    if named is not None and named.numel() == size:
        return named.flatten()
    return next(iter(call.biases(size)), None)


def _index(rows: tuple[int, ...], like: Tensor) -> Tensor:
    return on_device(rows, torch.int64, like.device)


@functools.lru_cache(maxsize=64)
def on_device(numbers: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
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
    distances = (made * factor - logits.unsqueeze(1)).abs().amax(2)
    nearest = distances.nan_to_num(nan=torch.inf).argmin(1)  # padding may be NaN
    return rows.gather(1, nearest.view(-1, 1, 1).expand(-1, 1, rows.shape[2])).squeeze(1)


def _placed(rows: Tensor, position: str | tuple[float, ...]) -> Tensor:
    """(N, T, n) at the mean of its positions, or at these weights of them."""
    if isinstance(position, str):
        return at_mean(rows)
    weights = on_device(position, rows.dtype, rows.device)
    if len(weights) != rows.shape[1]:
        raise InputError(
            f"expected the head at {len(weights)} positions in every pass, found {rows.shape[1]} in the last"
        )
    return torch.einsum("ntd,t->nd", rows, weights)


def _magnitudes(rows: Tensor, position: str | tuple[float, ...], features: Tensor) -> Tensor:
    """What the features (N, n) are where they are read, √ of the mean of squares: at positions, whose mean cancels."""
    if rows.shape[1] == 1 or position == "nearest":
        return features
    squares = rows.to(features.dtype).square()
    if isinstance(position, str):
        return squares.mean(1).sqrt()
    weights = on_device(position, features.dtype, rows.device).abs()
    return (torch.einsum("ntd,t->nd", squares, weights) * weights.sum()).sqrt()
