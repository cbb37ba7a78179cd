"""Which entries of a model's output may be its logits, and which one they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from ccf_plugin.errors import Fault, InputError, some_of

Choice = int | str | tuple[int | str, ...]  # an index or a key of an output, or several, one inside the other


@dataclass(frozen=True)
class Entry:
    """A tensor in a model's output that may be logits.

    Attributes:
        path: indices and keys that lead to it; () where the output is the tensor itself.
        tensor: as the model returned it.
        logits: the same as (N, K).
    """

    path: tuple[int | str, ...]
    tensor: Tensor
    logits: Tensor

    @property
    def name(self) -> str:
        """The path as Python would write it, such as ``[1]`` or ``['out']``; "" for the output itself."""
        return path_name(self.path)


def path_name(path: tuple[int | str, ...]) -> str:
    """``[1]['out']`` for (1, "out")."""
    return "".join(f"[{step!r}]" for step in path)


def output_entries(output: Any, chosen: Choice | None = None, model: nn.Module | None = None) -> list[Entry]:
    """All that may be logits in a model's output, in order.

    ``.logits``, and the key "logits" of a mapping, stand alone, as do the logits of torchvision's and timm's own
    output types; otherwise every (N, K) float tensor is listed, also those of containers and dataclasses inside.

    Args:
        output: what the model returned.
        chosen: an index or a key of the output, where the user named one; without such an entry nothing is listed.
        model: whose output it is, where that decides.
    """
    if chosen is not None:
        return _entries(output_part(output, chosen), chosen if isinstance(chosen, tuple) else (chosen,))
    model = getattr(model, "module", model)  # of DistributedDataParallel, of an average
    distilled = model is not None and model.training and getattr(model, "distilled_training", False)
    if distilled and isinstance(output, tuple):
        # timm's distilled models in train mode: (logits, the distillation token's), as its DistillationLoss reads them
        return _entries(output[0], (0,))
    return _entries(output, ())


def output_part(output: Any, chosen: Choice) -> Any:
    """The part of an output with this index or key, or None; a tensor alone is the part that was meant."""
    if isinstance(output, Tensor):
        return output
    if isinstance(chosen, tuple):
        return output_part(output_part(output, chosen[0]), chosen[1:]) if chosen else output
    if isinstance(output, Mapping):
        if chosen in output:
            return output[chosen]
        output = list(output.values())  # an index counts the entries in order
    if isinstance(chosen, str):
        return getattr(output, chosen, None)
    if is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    if isinstance(output, (tuple, list)) and -len(output) <= chosen < len(output):
        return output[chosen]
    return None


def logits_of(
    output: Any, chosen: Choice | None = None, *, classes: int | None = None, model: nn.Module | None = None
) -> Tensor:
    """The logits (N, K) in a model's output, of its dtype and with its graph.

    Args:
        output, chosen, model: as `output_entries` takes them.
        classes: K, where it is known; it decides between several entries.

    Raises:
        InputError: nothing may be the logits, or several entries may.
    """
    if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point():
        return output
    entries = output_entries(output, chosen, model)
    entries = [e for place, e in enumerate(entries) if all(e.tensor is not other.tensor for other in entries[:place])]
    if len(entries) > 1:
        entries = [entry for entry in entries if entry.logits.shape[1] == classes] or entries
    if not entries:
        raise InputError(no_logits(describe_output(output), chosen))
    if len(entries) > 1:
        raise InputError(which_logits(entries))
    return entries[0].logits


def are_probabilities(logits: Tensor) -> bool:
    """Whether outputs (N, K) look like probabilities: none is negative, and each sample's add up to 1."""
    return bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())


def no_logits(described: str, chosen: Choice | None, remedy: str = "let the model return them") -> Fault:
    """That an output, as `describe_output` described it, holds no logits."""
    if chosen is not None:
        return Fault("", f"logits of shape (N, K) in the model's output at output={chosen!r}", described)
    return Fault("", "a classifier's logits of shape (N, K)", f"an output of {described}", remedy)


def which_logits(entries: Sequence[Entry], note: str = "", remedy: str = "") -> Fault:
    """Which of several entries the logits are, asked of the user; ``note`` and ``remedy`` follow what is said here."""
    listed = ", ".join(f"output{entry.name} of shape {tuple(entry.tensor.shape)}" for entry in entries)
    paths = [entry.path[0] if len(entry.path) == 1 else entry.path for entry in entries]
    choices = " or ".join(f"{{output}}={path!r}" for path in paths)
    return Fault(
        "",
        "one entry of the output that may be the logits",
        f"{len(entries)}: {listed}{note}",
        f"choose the logits with {choices}{remedy}",
    )


def describe_output(output: Any) -> str:
    """An output in words: its shape, or its type and what it holds."""
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)}"
    if isinstance(output, (tuple, list)) and output:
        return f"type {type(output).__name__} of {some_of([describe_output(part) for part in output], 5)}"
    if isinstance(output, Mapping) and output:
        parts = [f"{key!r}: {describe_output(value)}" for key, value in output.items()]
        return f"type {type(output).__name__} of {some_of(parts, 5)}"
    return f"type {type(output).__name__}"


def _entries(output: Any, path: tuple[int | str, ...]) -> list[Entry]:
    if isinstance(output, Tensor):
        if output.ndim < 2 or not output.is_floating_point() or output.shape[2:].numel() != 1:
            return []
        return [Entry(path, output, output.flatten(1))]
    parts: list[tuple[int | str, Any]]
    if isinstance(output, Mapping):
        parts = [("logits", output["logits"])] if "logits" in output else list(output.items())
    elif hasattr(output, "logits"):  # Hugging Face's outputs, and torchvision's with auxiliary heads
        parts = [("logits", output.logits)]
    elif isinstance(output, (tuple, list)):
        parts = list(enumerate(output))
    elif is_dataclass(output):
        parts = [(field.name, getattr(output, field.name)) for field in fields(output)]
    else:
        parts = []
    return [entry for step, part in parts for entry in _entries(part, (*path, step))]
