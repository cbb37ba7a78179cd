"""How far float arithmetic puts what a model computed from what its weights and features give exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from ccf_plugin.engine.switches import float32_products
from ccf_plugin.probe.calls import LayerCall

_TF32 = 2.0**-11  # unit roundoff: products in it, where the host allows them, keep ten bits
_MASK = 8.0  # times the largest of g Wᵀ: a constant row is so large seldom but where it is a mask's


def units(call: LayerCall) -> tuple[float, float]:
    """Unit roundoff of the product's inputs, and of its output, in this run."""
    low = call.reduced_precision()
    if low is not None:
        return torch.finfo(low).eps / 2, torch.finfo(low).eps / 2
    if call.dtype == torch.float64:
        return torch.finfo(torch.float64).eps / 2, torch.finfo(torch.float64).eps / 2
    single = torch.finfo(torch.float32).eps / 2
    if call.inputs is not None and call.inputs.is_cuda:
        return _TF32, single
    allowed = [precision for name, precision in float32_products().items() if name.startswith("mkldnn")]
    if "bf16" in allowed:
        return torch.finfo(torch.bfloat16).eps / 2, single
    return _TF32 if "tf32" in allowed else single, single


def spread_of(features: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """√Σ g²w² over the products behind each logit: (…, n) and (K, n) to (…, K)."""
    return (features.to(dtype).square() @ weight.to(dtype).square().T).sqrt()


def constant_row(values: Tensor, sizes: Tensor) -> Tensor:
    """The row that the values of all samples share, (1, …), where each counts by the inverse square of its size.

    A huge sample, whose rounding exceeds what the others are, moves nothing.

    Args:
        values: (N, …).
        sizes: what the rounding of each is proportional to, (N, …); where it is 0 the values are exact.
    """
    sizes = sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    least, index = sizes.min(0, keepdim=True)
    weights = (least / sizes).square()
    start = values.gather(0, index.expand_as(values[:1]))  # of equal values nothing is left
    return start + (weights * (values - start)).sum(0, keepdim=True) / weights.sum(0, keepdim=True)


def relative(values: Tensor, sizes: Tensor) -> Tensor:
    """Values without the row that all samples share, relative to their sizes: (N, …)."""
    return (values - constant_row(values, sizes)) / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)


def is_masked(logits: Tensor, made: Tensor, row: Tensor, by_rounding: Tensor, by_size: Tensor) -> Tensor:
    """Whether a constant row (1, K) beside the layers' biases leaves nothing of g Wᵀ in some class; () bool.

    Of half the samples or more: one may have features of any size.
    """
    place = by_rounding.argmin(0, keepdim=True)
    varied = (made - made.gather(0, place)).abs()
    is_lost = (varied < by_size / 4) | (logits == logits.gather(0, place))
    is_large = row.abs() > torch.maximum(_MASK * made.abs().amax(1, keepdim=True), 4 * by_size)
    return (((varied > 4 * by_rounding) & is_lost & is_large).sum(0) * 2 >= len(made)).any()
