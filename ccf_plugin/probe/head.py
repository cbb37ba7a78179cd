"""The head (the linear map with logits = g(x) Wᵀ + b), and one layer's run as a candidate for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError

REDUCED_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Head:
    """The linear map that makes the logits: its layer's name and type, K classes, n features.

    ``history`` tells which heads were measured before this one, where the passes' head changed.
    """

    name: str
    kind: str
    classes: int
    features: int
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerCall:
    """One layer's run in a pass: its input (N, …), its output (where it is kept) and dtype, its tensors by name."""

    name: str
    module: nn.Module
    inputs: Tensor
    output: Any
    dtype: torch.dtype | None
    tensors: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """The layer's type; torch's parametrisations rename it."""
        return type(self.module).__name__.removeprefix("Parametrized")

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are a matrix (or a 1×1 kernel), ``weight`` first: old weight norms keep its parts beside."""
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[0] != "weight"):
            if is_matrix(tensor):
                yield name, tensor.reshape(tensor.shape[:2])

    def positions(self) -> Tensor:
        """The input as (N, T, n): T is 1 where the layer runs once per sample."""
        return _positions(self.module, self.inputs)

    def reduced_precision(self) -> bool:
        """Whether float arithmetic put less than float32's precision into the output."""
        return self.inputs.dtype in REDUCED_PRECISION or self.dtype in REDUCED_PRECISION


@dataclass(frozen=True)
class Part:
    """One layer's share in the logits: factor · (g Wᵀ + b)."""

    name: str
    kind: str
    call: int  # which of the layer's runs in the pass, from 0
    weight: str
    transposed: bool
    position: int | None = None  # of inputs (N, T, n): which of the T counts; None averages them
    factor: float = 1.0

    def features(self, call: LayerCall) -> Tensor:
        """g, (N, n)."""
        return at_position(call.positions(), self.position)

    def weight_of(self, call: LayerCall) -> Tensor:
        """W with the factor, (K, n)."""
        tensor = call.tensors[self.weight]
        matrix = tensor.reshape(tensor.shape[:2])
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.factor == 1 else matrix * self.factor


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is a matrix, or the kernel of a 1×1 convolution."""
    return tensor.ndim >= 2 and tensor.shape[2:].numel() == 1


def at_position(rows: Tensor, position: int | None) -> Tensor:
    """(N, T, ·) → (N, ·): one position, or their mean."""
    if position is not None:
        return rows[:, position]
    return rows.squeeze(1) if rows.shape[1] == 1 else rows.mean(1)


def output_positions(module: nn.Module, output: Tensor) -> Tensor:
    """A layer's output as (N, T, K)."""
    return _positions(module, output)


def find_logits(output: Any, entry: int | str | None = None) -> Tensor | None:
    """The first (N, K) logits in a model's output, or in the entry chosen of it, or None; see `logit_candidates`."""
    return next(iter(logit_candidates(chosen_entry(output, entry))), None)


def chosen_entry(output: Any, entry: int | str | None) -> Any:
    """The entry of a model's output that an index or a key chooses; the output itself where nothing is chosen.

    Raises:
        InputError: there is no such entry.
    """
    if entry is None:
        return output
    entries: dict[int | str, Any] = {}
    if isinstance(output, Mapping):
        entries = {**dict(enumerate(output.values())), **output}
    elif isinstance(output, (tuple, list)):
        entries = {
            **dict(enumerate(output)),
            **{name: getattr(output, name) for name in getattr(output, "_fields", ())},
        }
    elif not isinstance(output, Tensor):
        entries = dict(vars(output)) if hasattr(output, "__dict__") else {}
    if entry not in entries:
        known = ", ".join(map(repr, entries)) or f"no entries (it is of type {type(output).__name__})"
        raise InputError(f"expected output to choose an entry of the model's output, found {entry!r} for {known}")
    return entries[entry]


def logit_candidates(output: Any) -> list[Tensor]:
    """All that may be logits in a model's output, as (N, K): a tensor, ``.logits``, else every such entry in order."""
    if isinstance(output, Tensor):
        if output.ndim < 2 or not output.is_floating_point() or output.shape[2:].numel() != 1:
            return []
        return [output.flatten(1)]
    if isinstance(output, Mapping):
        entries = [output["logits"]] if "logits" in output else list(output.values())
    elif hasattr(output, "logits"):
        entries = [output.logits]
    elif isinstance(output, (tuple, list)):
        entries = list(output)
    else:
        entries = []
    return [logits for entry in entries for logits in logit_candidates(entry)]


def is_channel_first(module: nn.Module) -> bool:
    """Whether a layer's features stand in its input's second dimension, not its last."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _positions(module: nn.Module, tensor: Tensor) -> Tensor:
    if is_channel_first(module):
        return tensor.flatten(2).transpose(1, 2)
    return tensor.unsqueeze(1) if tensor.ndim == 2 else tensor.flatten(1, -2)
