"""Tensors of a host, of any kind: copies, values and identity that never fail its pass."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import torch
from torch import Tensor, nn


def snapshot(tensor: Tensor) -> Tensor:
    """A detached copy; the tensor itself where its type has none, or its memory is gone."""
    if torch.compiler.is_compiling():
        return tensor.detach().clone()
    try:
        if _is_freed(tensor):  # a copy of it would read what is not there
            return torch.empty_like(tensor, device="meta")
        return tensor.detach().clone()
    except Exception:  # a subclass without it: what can be read of it is decided by `to_plain`
        return tensor


def to_plain(tensor: Tensor) -> Tensor:
    """The values as an ordinary tensor: sharded ones are gathered, quantised ones dequantised.

    Gathering is a collective: every process of the tensor's mesh must ask.
    """
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    for how in ("full_tensor", "dequantize"):
        # torch's own `dequantize` makes float32 of any tensor
        if getattr(type(tensor), how, None) is not getattr(Tensor, how, None):
            with contextlib.suppress(Exception):  # not of this kind
                return cast(Tensor, getattr(tensor, how)().detach())
    # a subclass with memory of its own, whose values are what it holds; in a graph it has to stay the tensor that it is
    return tensor.as_subclass(Tensor) if memory(tensor) and not tensor.requires_grad else tensor


def version(tensor: Any) -> int | None:
    """How often a tensor was changed in place; None where that is not counted (inference mode, compiled code)."""
    if not isinstance(tensor, Tensor) or torch.compiler.is_compiling() or tensor.is_inference():
        return None
    return tensor._version


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor is one sample's in a function under torch.vmap."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def memory(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; 0 where it has no memory of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except Exception:  # fake, batched and wrapped tensors
        return 0


def _is_freed(tensor: Tensor) -> bool:
    """Whether a tensor's storage was taken from it, as sharded models do after a layer has run."""
    try:
        return bool(tensor.numel()) and not tensor.is_meta and tensor.untyped_storage().nbytes() == 0
    except Exception:  # fake, batched and wrapped tensors
        return False


def is_overwritten(tensor: Tensor, copy: Tensor) -> bool:
    """Whether a tensor holds other numbers than a ``snapshot`` of it; False where it has none, or no memory now.

    Waits for the device.
    """
    if copy is tensor or copy.is_meta or _is_freed(tensor):
        return False
    return not torch.equal(tensor.nan_to_num(), copy.nan_to_num())


def same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are one, or views of the same numbers in the same order."""
    if first is second:
        return True
    if torch.compiler.is_compiling() or first.numel() != second.numel() or first.numel() == 0:
        return False
    if first.is_meta or first.is_sparse or type(first) is not type(second):
        return False
    try:
        same = first.data_ptr() == second.data_ptr() != 0
    except Exception:  # no memory of its own: fake and batched tensors
        return False
    return same and first.is_contiguous() == second.is_contiguous()
