"""Which layer makes the logits, decided from the values of one forward pass.

The layer nearest the output (the last to run) for which g Wᵀ + b reproduces the logits is the head; a constant factor
after it (a temperature) is folded into W. Where no single layer does, a linear combination of several is tried (deit's
two heads, averaged): their g are concatenated, and their W with the factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.head import LayerCall, Part, at_position, logit_candidates, output_positions

_NOT_SEEN = (
    "F.linear with a bare parameter, TorchScript, exported and quantised layers, and code that torch.compile made "
    "before the probe was attached (torch._dynamo.reset() drops it) show nothing to hooks"
)


@dataclass(frozen=True)
class _Reading:
    """A way to read a call as g Wᵀ + b, and what it gives at each position, (N, T, K) float64."""

    call: LayerCall
    part: Part
    produced: Tensor


def detect_head(calls: Sequence[LayerCall], logits: Tensor) -> tuple[Part, ...]:
    """The layer, or the few layers combined linearly, whose g Wᵀ + b gives the logits.

    Args:
        calls: the layers that ran, in order.
        logits: (N, K) float.

    Raises:
        InputError: none does; the message names the layers considered and why none qualifies.
    """
    wanted = _checked(logits)
    readings: list[_Reading] = []
    for reading in _readings(calls, wanted.shape):
        if (found := _explained_alone(reading, wanted)) is not None:
            return (found,)
        readings.append(reading)
    if combined := _explained_together(readings, wanted):
        return combined
    raise InputError(_refusal(calls, readings, wanted))


def detect_in_output(calls: Sequence[LayerCall], output: object) -> tuple[int, tuple[Part, ...]]:
    """Which entry of the output is logits that a head makes (the first such), and the head.

    Raises:
        InputError: as `detect_head`, of the first entry that may be logits; or there is none.
    """
    candidates = logit_candidates(output)
    if not candidates:
        raise InputError(
            f"expected a classifier's logits of shape (N, K), found an output of {_describe(output)}; "
            "name the classification head by hand with head='its.name'"
        )
    first: InputError | None = None
    for index, logits in enumerate(candidates):
        try:
            return index, detect_head(calls, logits)
        except InputError as error:
            first = first or error
    raise first or InputError("expected logits, found none")


def head_by_name(calls: Sequence[LayerCall]) -> tuple[Part, ...]:
    """The named layer's last run as the head, checked against that layer's own output (its mean over positions)."""
    call = calls[-1]
    if not isinstance(call.output, Tensor) or call.output.ndim < 2:
        raise InputError(f"expected layer {call.name!r} to give (N, K) logits, found {_describe(call.output)}")
    parts = detect_head([call], at_position(output_positions(call.module, call.output), None))
    return tuple(replace(part, call=len(calls) - 1) for part in parts)


def gradient_members(calls: Sequence[LayerCall], logits: Tensor) -> tuple[Part, ...]:
    """The heads of a mixture's members: the layers of K outputs that the logits follow from with no other between.

    Args:
        calls: the layers that ran, in order, with their graph.
        logits: (N, K) float, with its graph.

    Raises:
        InputError: there is none, or the pass kept no graph.
    """
    wanted = _checked(logits)
    members: dict[int, Part] = {}
    for reading in _readings(calls, wanted.shape):
        members.setdefault(id(reading.call), reading.part)
    candidates = [call for call in calls if id(call) in members and call.inputs.requires_grad]
    if not logits.requires_grad or not candidates:
        raise InputError(
            "expected a pass with gradients through a layer of K outputs for head='gradient', found none; "
            "run it outside torch.no_grad, on inputs or weights that require gradients"
        )
    found = []
    for call, reached in zip(candidates, _depends(logits, [call.inputs for call in candidates]), strict=True):
        later = [other for other in candidates if other is not call]
        hidden = isinstance(call.output, Tensor) and any(_depends(o.inputs, [call.output])[0] for o in later)
        if reached and not hidden:
            found.append(members[id(call)])
    return tuple(found)


def _depends(result: Tensor, sources: list[Tensor]) -> list[bool]:
    gradients = torch.autograd.grad(result.sum(), sources, retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in gradients]


def _checked(logits: Tensor) -> Tensor:
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
    return wanted


def _readings(calls: Sequence[LayerCall], shape: torch.Size) -> Iterator[_Reading]:
    """Every way to read the calls as g Wᵀ + b of (N, K), the last call first."""
    runs: dict[str, int] = {}
    for call in calls:
        runs[call.name] = runs.get(call.name, 0) + 1
    for call in reversed(calls):
        runs[call.name] -= 1
        inputs = call.positions().detach()
        if inputs.shape[0] != shape[0]:
            continue
        biases = [tensor for tensor in call.tensors.values() if tensor.shape == shape[1:]]
        for name, tensor in call.matrices():
            for transposed in (False, True):
                matrix = tensor.T if transposed else tensor
                if matrix.shape != (shape[1], inputs.shape[-1]):
                    continue
                product = inputs.double() @ matrix.detach().double().T
                for bias in [*biases, None]:
                    produced = product if bias is None else product + bias.detach().double()
                    yield _Reading(call, Part(call.name, call.kind, runs[call.name], name, transposed), produced)


def _explained_alone(reading: _Reading, wanted: Tensor) -> Part | None:
    tolerance = _tolerance(reading.call, wanted)
    produced = reading.produced
    mean = produced.mean(1)
    factor = float((mean * wanted).sum() / mean.square().sum().clamp(min=1e-300))
    if factor and _relative_error(mean * factor, wanted) <= tolerance:
        return replace(reading.part, factor=1.0 if abs(factor - 1) <= tolerance else factor)
    if produced.shape[1] > 1:  # a position picked after the head
        errors = (produced - wanted.unsqueeze(1)).abs().amax((0, 2)) / wanted.abs().max()
        nearest = int(errors.argmin())
        if errors[nearest] <= tolerance:
            return replace(reading.part, position=nearest)
    return None


def _explained_together(readings: Sequence[_Reading], wanted: Tensor) -> tuple[Part, ...]:
    """The factors with Σ factor · produced = wanted, by least squares over one reading per call; () if none fit."""
    by_call: dict[int, _Reading] = {}
    for reading in readings:
        by_call.setdefault(id(reading.call), reading)
    chosen = list(reversed(by_call.values()))
    # as many equations as make a fit by chance impossible
    if len(chosen) < 2 or wanted.numel() < 4 * len(chosen):
        return ()
    columns = torch.stack([reading.produced.mean(1).flatten() for reading in chosen], 1)
    driver = None if columns.is_cuda else "gelsd"
    factors = torch.linalg.lstsq(columns, wanted.reshape(-1, 1), driver=driver).solution.squeeze(1)
    tolerance = max(_tolerance(reading.call, wanted) for reading in chosen)
    kept = columns.abs().amax(0) * factors.abs() / wanted.abs().max() > tolerance
    if not kept.any() or _relative_error(columns[:, kept] @ factors[kept], wanted.flatten()) > tolerance:
        return ()
    shares = zip(chosen, factors.tolist(), kept.tolist(), strict=True)
    return tuple(replace(reading.part, factor=factor) for reading, factor, keep in shares if keep)


def _tolerance(call: LayerCall, wanted: Tensor) -> float:
    """How far float arithmetic may put g Wᵀ + b from the logits, relative to the largest logit."""
    if call.reduced_precision():
        return 2e-2
    return 2e-3 if wanted.is_cuda else 1e-5  # TF32 products, where the host allows them, keep ten bits


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _describe(output: object) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"


def _refusal(calls: Sequence[LayerCall], readings: Sequence[_Reading], wanted: Tensor) -> str:
    nearest: dict[str, float] = {}
    for reading in readings:
        error = _relative_error(reading.produced.mean(1), wanted)
        name = reading.call.name
        nearest[name] = min(error, nearest.get(name, error))
    if nearest:
        found = ", ".join(f"{name!r} (off by {error:.0e} of the largest logit)" for name, error in nearest.items())
        found = f"none among {found}{_reason(readings, wanted)}"
    elif others := sorted({call.inputs.shape[0] for call in calls} - {wanted.shape[0]}):
        found = (
            f"that the layers ran on {others[0]} rows, where the logits have {wanted.shape[0]} "
            "(probe the module inside, which sees them together)"
        )
    elif calls:
        found = f"none: no layer that ran has a weight for {wanted.shape[1]} classes ({_NOT_SEEN})"
    else:
        found = f"that no layer with a weight ran ({_NOT_SEEN})"
    return (
        f"expected a layer whose g Wᵀ + b is the logits, found {found}. Return the logits of one linear layer, "
        "name one by hand with head='its.name', or measure a mixture with head='gradient'"
    )


def _reason(readings: Sequence[_Reading], wanted: Tensor) -> str:
    if bool((wanted >= 0).all()) and bool(((wanted.sum(1) - 1).abs() < 1e-3).all()):
        return "; the output looks like probabilities, not logits"
    if bool(((wanted.exp().sum(1) - 1).abs() < 1e-3).all()):
        return "; the output looks like log-probabilities (a mixture, or log_softmax)"
    if any(reading.produced.shape[1] > 1 for reading in readings):
        return "; a layer runs at several positions, and neither one of them nor their mean is the output"
    if len({reading.call.name for reading in readings}) > 1:
        return "; nor do they combine linearly"
    return ""
