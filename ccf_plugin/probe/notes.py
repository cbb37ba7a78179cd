"""What a pass has shown so far: the runs of its layers, and which of them read what others made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccf_plugin.probe.calls import LayerCall, to_positions
from ccf_plugin.probe.tensors import memory, same_memory, snapshot, version

# Until the head is known, what layers read is kept to the end of the pass. Beyond this the oldest are let go; should
# the head have been among them, the next pass finds it.
_FIRST_PASS_BYTES = 2 * 2**30


class _Raw(NamedTuple):
    """What a noted run read and made, as they were; how often the latter had been changed; the memory that it holds.

    And of a function's product where its matrix lies.
    """

    read: Tensor
    made: Any
    version: int | None
    nbytes: int
    matrix: int = 0


class Notes:
    """The runs of one pass, in order, each with what it read and made, as they were.

    Args:
        keeps_graph: tensors are kept with their graph, uncopied.
        is_bounded: whether the oldest are let go where all take too much memory: while the head is unknown.
    """

    def __init__(self, keeps_graph: bool, is_bounded: bool) -> None:
        self.calls: list[LayerCall] = []
        self._raw: list[_Raw] = []
        self._keeps_graph, self._is_bounded = keeps_graph, is_bounded
        self._copied_from: dict[int, int] = {}  # of copies and casts, by where they lie

    def add(
        self,
        inputs: Tensor,
        output: Any,
        *,
        copies: bool,
        name: str,
        kind: str,
        tensors: dict[str, Tensor],
        made: Any = None,
        channel_first: bool = False,
        slope: Tensor | None = None,
        is_function: bool = False,
    ) -> None:
        """Note a run: `LayerCall` tells what the arguments are.

        Args:
            inputs: what it read, as it was.
            output: what it made, as it was.
            copies: whether to copy its tensors now.
            made: its output as it is to be kept.
        """
        source = self._source_of(inputs, channel_first)
        call = LayerCall(
            name=name,
            kind=kind,
            serial=len(self.calls),
            inputs=self._kept_input(inputs, source, copies),
            output=made,
            dtype=output.dtype if isinstance(output, Tensor) else None,
            tensors={key: snapshot(tensor) for key, tensor in tensors.items()} if copies else tensors,
            channel_first=channel_first,
            reads=self.maker_of(inputs),
            source=source,
            root=self._root_of(inputs),
            slope=slope,
            version=version(inputs),
            is_function=is_function,
        )
        self.calls.append(call)
        self._keep(inputs, output, memory(tensors["weight"]) if is_function else 0)

    def drop_products_of_layer(self, inputs: Tensor, output: Any, tensors: dict[str, Tensor]) -> None:
        """Forget the product that a layer which just ran consists of: it shows nothing more.

        Not one with a matrix that the layer computed from its ``tensors``, such as a masked or a noisy weight.
        """
        first = len(self.calls)
        own = {0, *map(memory, tensors.values())} if first and self.calls[-1].is_function else set()
        while first and self.calls[first - 1].is_function and isinstance(output, Tensor):
            raw = self._raw[first - 1]
            if not same_memory(self.calls[first - 1].output, output) or not {memory(raw.read), raw.matrix} & own:
                break
            first -= 1
        if any(memory(raw.read) == memory(inputs) for raw in self._raw[first:]):
            del self.calls[first:], self._raw[first:]

    def add_copy(self, copied: Tensor, output: Tensor) -> None:
        """Note that a tensor is a copy or a cast of another."""
        if memory(output) != memory(copied):
            self._copied_from[memory(output)] = memory(copied)

    def _root_of(self, tensor: Tensor) -> int:
        if torch.compiler.is_compiling():
            return 0
        place, visited = memory(tensor), set()
        while place in self._copied_from and place not in visited:
            visited.add(place)
            place = self._copied_from[place]
        return place

    def _source_of(self, inputs: Tensor, channel_first: bool) -> int:
        """The serial of the first run that read these rows of features; that of the next run where none did."""
        for index in range(len(self.calls) - 1, -1, -1):
            call, read = self.calls[index], self._raw[index].read
            if version(read) == version(inputs) and _same_rows(read, call.channel_first, inputs, channel_first):
                return call.source
        return len(self.calls)

    def _kept_input(self, inputs: Tensor, source: int, copies: bool) -> Tensor:
        """The input as it is kept: copied once, where several layers read it."""
        if self._keeps_graph:  # a view of the same numbers has its own gradient
            return inputs
        copied = self.calls[source].inputs if source < len(self.calls) else None
        if copied is not None and self._raw[source].read.shape == inputs.shape:
            return copied
        # One vector a sample costs little, and of tensors of inference mode nobody knows whether they change later.
        at_once = copies or inputs.ndim == 2 or (not torch.compiler.is_compiling() and inputs.is_inference())
        return snapshot(inputs) if at_once else inputs.detach()

    def maker_of(self, tensor: Tensor) -> int | None:
        """The serial of the run whose output this tensor is, unchanged."""
        for index in range(len(self.calls) - 1, -1, -1):
            made = self._raw[index].made
            if isinstance(made, Tensor) and same_memory(made, tensor) and version(tensor) == self._raw[index].version:
                while index and self._raw[index - 1].made is made:  # other ways to read the same product
                    index -= 1
                return self.calls[index].serial
        return None

    def origin_of(self, tensor: Tensor) -> int | None:
        """The serial of the run whose output is nearest behind a tensor in its graph, where it has one."""
        serial_of = {
            raw.made.grad_fn: call.serial
            for call, raw in zip(self.calls, self._raw, strict=True)
            if isinstance(raw.made, Tensor) and raw.made.grad_fn is not None and not call.is_function
        }
        visited, front = set(), [tensor.grad_fn]
        while serial_of and front:
            serials = [serial_of[node] for node in front if node in serial_of]
            if serials:
                return serials[-1] if len(serials) == 1 else None
            visited.update(front)
            front = [node for at in front if at is not None for node, _ in at.next_functions if node not in visited]
        return None

    def _keep(self, inputs: Tensor, output: Any, matrix: int) -> None:
        """Keep what the run that was noted last read and made, as they were.

        Before the head is known: let go of the oldest that ran at several positions, where all take too much.
        """
        size, noted = 0, self.calls[-1]
        if self._is_bounded and not torch.compiler.is_compiling():
            first = noted.reads is None and noted.source == noted.serial  # no other run holds the input
            held_by_it = [tensor for tensor in (output, *([inputs] if first else [])) if isinstance(tensor, Tensor)]
            size = sum(tensor.nbytes for tensor in held_by_it if tensor.ndim > 2)
        self._raw.append(_Raw(inputs, output, version(output), size, matrix))
        held = sum(raw.nbytes for raw in self._raw)
        for index, raw in enumerate(self._raw[:-1]):
            if held <= _FIRST_PASS_BYTES:
                return
            if raw.nbytes and not same_memory(raw.read, inputs):
                held -= raw.nbytes
                self.calls[index] = replace(self.calls[index], inputs=None, output=None)
                self._raw[index] = _Raw(torch.empty(0, dtype=torch.float32, device="cpu"), None, None, 0)


def _same_rows(first: Tensor, first_channels: bool, second: Tensor, second_channels: bool) -> bool:
    """Whether two layers read the same rows of features in memory, whichever dimension the features stand in."""
    if first_channels == second_channels and first.shape == second.shape:
        return same_memory(first, second)
    if torch.compiler.is_compiling() or first.numel() != second.numel() or not memory(first) == memory(second) != 0:
        return False
    layouts = [
        (rows.data_ptr(), [(size, step) for size, step in zip(rows.shape, rows.stride(), strict=True) if size > 1])
        for tensor, channel_first in ((first, first_channels), (second, second_channels))
        for rows in [to_positions(tensor, channel_first and tensor.ndim > 2)]
    ]
    return layouts[0] == layouts[1]


def relevant(calls: list[LayerCall], sizes: set[int]) -> list[LayerCall]:
    """The runs with a matrix of such a size and those they read from; all where there is none."""
    wanted: list[int] = []
    for call in reversed(calls):
        sized = any(size in sizes for _, matrix in call.matrices() for size in matrix.shape)
        if sized or call.serial in wanted:
            wanted.append(call.serial)
            if call.reads is not None:
                wanted.append(call.reads)
    return [call for call in calls if call.serial in wanted] if wanted else calls


def copied_calls(calls: list[LayerCall]) -> list[LayerCall]:
    """The runs with copies of their tensors; what was one object stays one."""
    copies: list[tuple[Tensor, Tensor]] = []

    def copied(tensor: Tensor) -> Tensor:
        for original, copy in copies:
            if original is tensor:
                return copy
        copies.append((tensor, snapshot(tensor)))
        return copies[-1][1]

    return [
        replace(
            call,
            inputs=None if call.inputs is None else copied(call.inputs),
            tensors={name: copied(tensor) for name, tensor in call.tensors.items()},
            version=-1 if call.is_changed() else call.version,
        )
        for call in calls
    ]
