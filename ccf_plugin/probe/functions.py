"""Linear heads without a layer: calls of torch's functions with a matrix (``F.linear``, ``@``, ``einsum``), noted.

A function mode sees such calls in eager code alone. It is switched on while the head is unknown, and stays on where
the head turned out to be such a call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PRODUCTS: dict[Callable[..., Any], str] = {
    F.linear: "F.linear",
    torch.matmul: "matmul",
    Tensor.matmul: "matmul",
    Tensor.__matmul__: "matmul",
    Tensor.__rmatmul__: "matmul",
    torch.mm: "mm",
    Tensor.mm: "mm",
    torch.bmm: "bmm",
    Tensor.bmm: "bmm",
    torch.addmm: "addmm",
    Tensor.addmm: "addmm",
    torch.baddbmm: "baddbmm",
    Tensor.baddbmm: "baddbmm",
    torch.einsum: "einsum",
    torch.tensordot: "tensordot",
    torch.inner: "inner",
    Tensor.inner: "inner",
    F.conv1d: "conv1d",
    F.conv2d: "conv2d",
}


_probing = threading.local()


@contextlib.contextmanager
def not_recorded() -> Iterator[None]:
    """Another probe of the model, whose pass goes on, does not note the products in this block: they are a probe's."""
    before, _probing.now = getattr(_probing, "now", False), True
    try:
        yield
    finally:
        _probing.now = before


COPY = "copy"
_DISTANCES: dict[Callable[..., Any], str] = {
    torch.cdist: "torch.cdist",
    F.pairwise_distance: "F.pairwise_distance",
    F.cosine_similarity: "F.cosine_similarity",
}


_COPIES = {
    *(Tensor.to, Tensor.clone, torch.clone, Tensor.contiguous, Tensor.type, Tensor.type_as),
    *(Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16),
}


class ProductMode(TorchFunctionMode):
    """Calls ``note(function's name, first operand, second operand, output)`` for every product of two tensors.

    Also for copies and casts, as `COPY` of the first operand, and for distances, by their name.

    It is entered when a pass begins and left when it ends, which are two hooks, so no ``with`` can hold it.
    """

    def __init__(self, note: Callable[[str, Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._note = note

    @staticmethod
    def leave(note: Callable[[str, Tensor, Tensor, Tensor], None]) -> None:
        """Leave this thread's modes with such a ``note``, also beneath others, as passes that were broken off leave."""
        modes = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
        for mode in reversed(modes):
            if not (isinstance(mode, ProductMode) and mode._note is note):
                torch._C._push_on_torch_function_stack(mode)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _COPIES and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self._note(COPY, args[0], args[0], output)
        if func in _DISTANCES and isinstance(output, Tensor):
            self._note(_DISTANCES[func], output, output, output)
        name = _PRODUCTS.get(func)
        if name is not None and isinstance(output, Tensor) and not getattr(_probing, "now", False):
            operands = [value for value in _flat((*args, *(kwargs or {}).values())) if isinstance(value, Tensor)]
            # addmm's and baddbmm's first tensor is added to the product of the other two
            operands = operands[1:3] if name in ("addmm", "baddbmm") else operands[:2]
            if len(operands) == 2:
                self._note(name, operands[0], operands[1], output)
        return output


def split_operands(name: str, first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The ways to read a product's operands as features (N, …, n) and a matrix of (K, n) or (n, K)."""
    if name in ("conv1d", "conv2d"):
        # a 1×1 kernel on (N, n, …): its channels stand second
        is_point = second.shape[2:].numel() == 1 and first.ndim == second.ndim
        if is_point:
            yield first.flatten(2).transpose(1, 2), second.flatten(1)
        return
    for features, matrix in ((first, second), (second, first)):
        if features.ndim == 3 and features.shape[2] == 1 and features.shape[1] > 1:  # bmm(W, g as a column)
            features = features.transpose(1, 2)
        if matrix.ndim == 3 and (matrix.shape[0] == 1 or matrix.stride(0) == 0):  # one matrix for all
            matrix = matrix[0]
        if features.ndim == 3 and features.shape[0] == 1 and matrix.ndim == 2:
            features = features[0]
        if matrix.ndim == 2 and features.ndim >= 2:
            yield features, matrix
            if features.ndim == 2:
                yield features.T, matrix  # W gᵀ, transposed afterwards


def _flat(values: tuple[Any, ...]) -> list[Any]:
    parts: list[Any] = []
    for value in values:
        parts += list(value) if isinstance(value, (tuple, list)) else [value]
    return parts
