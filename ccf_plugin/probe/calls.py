"""What a pass shows of itself: the runs of its layers, and the entries of its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.outputs import Entry
from ccf_plugin.probe.tensors import is_overwritten, snapshot, to_plain, version

REDUCED_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LayerCall:
    """One run of a layer (or of a function such as ``F.linear``) in a pass.

    Attributes:
        name: the layer's; "" is the model itself.
        kind: the layer's type.
        serial: the run's number in the pass.
        inputs: what it read, (N, …); None where it took too much memory to keep.
        output: what it made, where that is kept.
        dtype: of what it made.
        tensors: the layer's own tensors by name, at that time.
        channel_first: whether features stand in the input's second dimension, not its last.
        reads: the serial of the run whose output this one read, unchanged; None where there is none.
        source: the serial of the first run that read the same tensor, which may be this one.
        root: where the tensor lies that this one's input is a copy or a cast of, or where it lies itself; 0: unknown.
        slope: a BatchNorm's factor per feature, (n,), where the layer is one.
        version: how often the input had been changed in place; None where that is not counted, -1 where it was
            changed again before it was copied.
        is_function: whether no layer ran, but a function of torch that was called with a matrix.
        gathered: whether its tensors lay in parts among processes, and were put together.
        held: its input and matrices, where a graph holds them, each with a copy from the pass's end.
    """

    name: str
    kind: str
    serial: int
    inputs: Tensor | None
    output: Any
    dtype: torch.dtype | None
    tensors: Mapping[str, Tensor]
    channel_first: bool = False
    reads: int | None = None
    source: int = -1
    root: int = 0
    slope: Tensor | None = None
    version: int | None = None
    is_function: bool = False
    gathered: bool = False
    held: tuple[tuple[Tensor, Tensor], ...] = ()

    def with_copies(self) -> LayerCall:
        """The run with copies of what the graph holds, which tell changes that no version counts (``p.data.copy_``)."""
        matrices = [tensor for tensor in self.tensors.values() if is_matrix(tensor)]
        tensors = matrices if self.inputs is None else [self.inputs, *matrices]
        return replace(self, held=tuple((tensor.detach(), snapshot(tensor)) for tensor in tensors))

    def is_overwritten(self) -> bool:
        """Whether what the graph holds is not what it was at the pass's end. Waits for the device."""
        return any(is_overwritten(tensor, copy) for tensor, copy in self.held)

    def to_plain(self) -> LayerCall:
        """The run with ordinary tensors: sharded ones gathered, quantised ones dequantised."""
        tensors = {name: to_plain(tensor) for name, tensor in self.tensors.items()}
        inputs = None if self.inputs is None else to_plain(self.inputs)
        output = to_plain(self.output) if isinstance(self.output, Tensor) else self.output
        gathered = any(hasattr(tensor, "full_tensor") for tensor in self.tensors.values())
        return replace(self, tensors=tensors, inputs=inputs, output=output, gathered=self.gathered or gathered)

    def is_changed(self) -> bool:
        """Whether the input that is kept is not what the layer read, since it was changed in place after."""
        return self.version is not None and (version(self.inputs) or 0) > self.version

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are a matrix (or a 1×1 kernel), ``weight`` first: old weight norms keep its parts beside."""
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[0] != "weight"):
            if is_matrix(tensor):
                yield name, tensor.reshape(tensor.shape[:2])

    def biases(self, size: int) -> list[Tensor]:
        """The tensors that may be a bias of ``size`` entries, as (size,)."""
        return [t.flatten() for t in self.tensors.values() if t.shape[-1:] == (size,) and t.numel() == size]

    def positions(self) -> Tensor:
        """The input as (N, T, n): T is 1 where the layer runs once per sample."""
        assert self.inputs is not None  # noqa: S101  (only asked of runs whose input was kept)
        return to_positions(self.inputs, self.channel_first)

    def output_positions(self) -> Tensor:
        """The output as (N, T, K)."""
        return to_positions(self.output, self.channel_first)

    def reduced_precision(self) -> torch.dtype | None:
        """The dtype of less than float32's precision that took part, if one did."""
        dtypes = (None if self.inputs is None else self.inputs.dtype, self.dtype)
        return next((dtype for dtype in dtypes if dtype in REDUCED_PRECISION), None)


@dataclass
class PassRecord:
    """A complete forward pass: its layers' runs in order, its output, and which run made which entry.

    Attributes:
        calls: the runs of layers and functions, in order.
        entries: of the output, copied.
        makers: for each entry the serial of the run whose output it is (the same tensor or a view of it), or None.
        origins: the same where it was computed from one run's output; known of first passes with a graph alone.
        training: whether the model was in train mode.
        described: the output, in words.
        fault: why the pass cannot be read, as an error says it; "" where it can.
        distances: torch's functions that compare with prototypes, where the pass called such.
        alike: how many passes in this mode on images without a gradient there were, with this one, since one was taken;
            0 where the images have one, as inside an attack, and in compiled passes.
        compiled: whether compiled code noted it.
        thread: in which it ran; 0 for compiled passes.
    """

    calls: list[LayerCall]
    entries: list[Entry]
    makers: list[int | None]
    origins: list[int | None]
    training: bool
    described: str
    fault: str = ""
    distances: tuple[str, ...] = ()
    alike: int = 0
    compiled: bool = False
    thread: int = 0

    def is_empty(self) -> bool:
        """Whether it was a pass of no samples."""
        return bool(self.entries) and all(len(entry.logits) == 0 for entry in self.entries)

    def runs(self, name: str) -> list[LayerCall]:
        """The layer's runs in order."""
        return [call for call in self.calls if call.name == name]

    def by_serial(self, serial: int | None) -> LayerCall | None:
        """The run of this number, or None."""
        return next((call for call in self.calls if call.serial == serial), None)

    def signature(self) -> tuple[Any, ...]:
        """What tells passes of another structure apart without looking at values: runs, entries and their makers."""
        runs = tuple((call.name, call.reads is not None) for call in self.calls)
        from_end = [call.serial for call in reversed(self.calls)]
        made = tuple(from_end.index(serial) if serial in from_end else None for serial in self.makers)
        outputs = tuple((entry.path, entry.logits.shape[1]) for entry in self.entries)
        return runs, outputs, made, self.training


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is a matrix, or the kernel of a 1×1 convolution."""
    return tensor.ndim >= 2 and tensor.shape[2:].numel() == 1


def is_channel_first(module: nn.Module) -> bool:
    """Whether a layer's features stand in its input's second dimension, not its last."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def to_positions(tensor: Tensor, channel_first: bool) -> Tensor:
    """(N, n), (N, …, n) or channel-first (N, n, …) as (N, T, n)."""
    if channel_first:
        return tensor.flatten(2).transpose(1, 2)
    return tensor.unsqueeze(1) if tensor.ndim == 2 else tensor.flatten(1, -2)
