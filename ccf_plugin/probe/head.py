"""Which layer makes the logits, decided from the values of one forward pass.

The head is the linear map with logits = g(x) Wᵀ + b. The layer nearest the output for which g Wᵀ + b reproduces the
logits is the head; a constant factor after it (a temperature) is folded into W. Where no single layer does, a linear
combination of several is tried (deit's two heads, averaged): their g are concatenated, and their W with the factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError

_BY_HAND = "name one by hand with head='its.name'"
_REDUCED_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Head:
    """The linear map that makes the logits: its layer's name and type, K classes, n features."""

    name: str
    kind: str
    classes: int
    features: int


@dataclass(frozen=True)
class LayerCall:
    """One layer's run in a pass: its input, its output, and its tensors by name."""

    name: str
    module: nn.Module
    inputs: Tensor
    output: Tensor
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One layer's share in the logits: factor · (g Wᵀ + b)."""

    name: str
    kind: str
    weight: str
    transposed: bool
    position: int | None  # of inputs (N, T, n): which of the T counts; None averages them
    factor: float

    def features(self, call: LayerCall) -> Tensor:
        """g, (N, n)."""
        return _at_position(_positions(call), self.position)

    def weight_of(self, call: LayerCall) -> Tensor:
        """W with the factor, (K, n): a copy, since an optimiser may change the layer's own in place."""
        matrix = _as_matrix(call.tensors[self.weight]).detach()
        return (matrix.T if self.transposed else matrix) * self.factor


def find_logits(output: Any) -> Tensor | None:
    """The (N, K) logits in a model's output (a tensor, ``.logits``, or the first such entry), or None."""
    if isinstance(output, Tensor):
        if output.ndim < 2 or not output.is_floating_point() or output.shape[2:].numel() != 1:
            return None
        return output.flatten(1)
    if isinstance(output, Mapping):
        entries = [output["logits"]] if "logits" in output else list(output.values())
    elif isinstance(output, (tuple, list)):
        entries = list(output)
    else:
        entries = [getattr(output, "logits", None)]
    return next((logits for entry in entries if (logits := find_logits(entry)) is not None), None)


def detect_head(calls: Sequence[LayerCall], logits: Tensor) -> tuple[Part, ...]:
    """The layer, or the few layers combined linearly, whose g Wᵀ + b gives the logits.

    Args:
        calls: the layers that ran, in order, each with a two-dimensional weight.
        logits: (N, K) float.

    Raises:
        InputError: none does; the message names the layers considered and why none qualifies.
    """
    if logits.shape[1] < 2:
        raise InputError(
            f"expected logits of 2 or more classes, found an output of shape {tuple(logits.shape)}; "
            "CrossClassProbe measures classifiers (a single logit can be written as two)"
        )
    wanted = logits.detach().double()
    if not torch.isfinite(wanted).all():
        raise InputError("expected finite logits, found NaN or infinity in the first pass; check weights and inputs")
    if not wanted.any():
        raise InputError(
            "expected logits that tell layers apart, found all zeros (the head's weights are zero); "
            "load or train weights before the first probed pass"
        )
    readings = [(call, *reading) for call in reversed(calls) for reading in _readings(call, wanted.shape)]
    for call, part, produced in readings:
        if (found := _explained_alone(call, part, produced, wanted)) is not None:
            return (found,)
    if combined := _explained_together(readings, wanted):
        return combined
    raise InputError(_refusal([(call, produced) for call, _, produced in readings], wanted))


def head_by_name(call: LayerCall) -> tuple[Part, ...]:
    """The named layer as the head, checked against that layer's own output."""
    own = find_logits(call.output)
    if own is None:
        raise InputError(f"expected layer {call.name!r} to give (N, K) logits, found {_describe_output(call.output)}")
    return detect_head([call], own)


def _readings(call: LayerCall, shape: torch.Size) -> Iterator[tuple[Part, Tensor]]:
    """Every way to read the call as g Wᵀ + b of (N, K): the part, and what it gives at each position, (N, T, K)."""
    inputs = _positions(call)
    if inputs.shape[0] != shape[0]:
        return
    biases = [tensor for tensor in call.tensors.values() if tensor.shape == shape[1:]]
    # The attribute `weight` first: old-style weight norms keep its ingredients beside it.
    for name, tensor in sorted(call.tensors.items(), key=lambda item: item[0] != "weight"):
        if (tensor.ndim < 2) or tensor.shape[2:].numel() != 1:
            continue
        for transposed in (False, True):
            matrix = _as_matrix(tensor).T if transposed else _as_matrix(tensor)
            if matrix.shape != (shape[1], inputs.shape[-1]):
                continue
            product = inputs.double() @ matrix.detach().double().T
            for bias in [*biases, None]:
                produced = product if bias is None else product + bias.detach().double()
                yield Part(call.name, type(call.module).__name__, name, transposed, None, 1.0), produced


def _explained_alone(call: LayerCall, part: Part, produced: Tensor, wanted: Tensor) -> Part | None:
    tolerance = _tolerance(call, wanted)
    mean = produced.mean(1)
    factor = float((mean * wanted).sum() / mean.square().sum().clamp(min=1e-300))
    if factor and _relative_error(mean * factor, wanted) <= tolerance:
        return _with(part, factor=1.0 if abs(factor - 1) <= tolerance else factor)
    if produced.shape[1] > 1:  # a position picked after the head
        errors = (produced - wanted.unsqueeze(1)).abs().amax((0, 2)) / wanted.abs().max()
        nearest = int(errors.argmin())
        if errors[nearest] <= tolerance:
            return _with(part, position=nearest)
    return None


def _explained_together(readings: Sequence[tuple[LayerCall, Part, Tensor]], wanted: Tensor) -> tuple[Part, ...]:
    """The factors with Σ factor · produced = wanted, by least squares over one reading per call; () if none fit."""
    by_call: dict[int, tuple[LayerCall, Part, Tensor]] = {}
    for call, part, produced in readings:
        by_call.setdefault(id(call), (call, part, produced))
    chosen = list(by_call.values())
    if len(chosen) < 2 or wanted.numel() < 4 * len(chosen):
        return ()
    columns = torch.stack([produced.mean(1).flatten() for _, _, produced in chosen], 1)
    factors = torch.linalg.lstsq(columns, wanted.reshape(-1, 1), driver="gelsd" if not columns.is_cuda else None)
    solution = factors.solution.squeeze(1)
    tolerance = max(_tolerance(call, wanted) for call, _, _ in chosen)
    if _relative_error(columns @ solution, wanted.flatten()) > tolerance:
        return ()
    shares = (columns.abs().amax(0) * solution.abs() / wanted.abs().max()).tolist()
    kept = [
        _with(part, factor=float(factor))
        for (_, part, _), factor, share in zip(chosen, solution, shares, strict=True)
        if share > tolerance
    ]
    return tuple(reversed(kept))


def _with(part: Part, *, position: int | None = None, factor: float = 1.0) -> Part:
    return Part(part.name, part.kind, part.weight, part.transposed, position, factor)


def _tolerance(call: LayerCall, wanted: Tensor) -> float:
    """How far float arithmetic may put g Wᵀ + b from the logits, relative to the largest logit."""
    output = find_logits(call.output)
    if call.inputs.dtype in _REDUCED_PRECISION or (output is not None and output.dtype in _REDUCED_PRECISION):
        return 2e-2
    return 2e-3 if wanted.is_cuda else 1e-5  # TF32 products, where the host allows them, keep ten bits


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _is_channel_first(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _positions(call: LayerCall) -> Tensor:
    """The layer's input as (N, T, n)."""
    if _is_channel_first(call.module):
        return call.inputs.flatten(2).transpose(1, 2)
    return call.inputs.unsqueeze(1) if call.inputs.ndim == 2 else call.inputs.flatten(1, -2)


def _at_position(rows: Tensor, position: int | None) -> Tensor:
    if position is not None:
        return rows[:, position]
    return rows.squeeze(1) if rows.shape[1] == 1 else rows.mean(1)


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[:2])


def _describe_output(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def _refusal(considered: Sequence[tuple[LayerCall, Tensor]], wanted: Tensor) -> str:
    nearest: dict[str, float] = {}
    for call, produced in considered:
        error = _relative_error(produced.mean(1), wanted)
        nearest[call.name] = min(error, nearest.get(call.name, error))
    layers = ", ".join(f"{name!r} (off by {error:.0e} of the largest logit)" for name, error in nearest.items())
    looks = ""
    if bool((wanted >= 0).all()) and bool(((wanted.sum(1) - 1).abs() < 1e-3).all()):
        looks = " The output looks like probabilities, not logits."
    return (
        f"expected a layer whose g Wᵀ + b is the logits, found none among "
        f"{layers or 'the layers that ran (none has a weight for this many classes)'}.{looks} "
        f"Return the logits of one linear layer, or {_BY_HAND}"
    )
