"""CUDA graphs: a function of tensors, recorded once and replayed with neither Python nor launches between its kernels.

A replay repeats what the device was given while it was recorded, at the same addresses. Random numbers are drawn anew,
and tensors that are changed in place (weights, BatchNorm's statistics) are read as they are by then. What happens in
Python (hooks, counters, warnings) happens while recording alone; a Python value that decides what is computed makes
another graph where it is an attribute of a module or of the attack, and is not seen elsewhere (in a list, a global).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccf_plugin.engine.switches import float32_products

_log = logging.getLogger(__name__)

_KEPT = 6  # graphs of one function: whole batches and the last smaller one, in a few modes
_TRIES = 2  # watched calls: compiling in the first may itself wait for the device
_PLAIN = {bool, int, float, str, type(None), FunctionType, BuiltinFunctionType}  # of an attribute
_WAITS = "called a synchronizing CUDA operation"  # what torch warns of in its sync debug mode


class Replayed:
    """``function`` of tensors, which gives a tensor, as one graph for each kind of inputs and state.

    The first call of a kind runs the function as it is: that compiles, searches and allocates what it needs, and tells
    whether a replay would be the same. A later one records it, and from then on it is replayed. What cannot be
    recorded runs as it is for good, which is logged once at level debug.

    Args:
        function: changes no tensors but in place, and does the same at every call with the same state.
        name: of the function, in the log.
        state: all that decides what the function does, beside the inputs' shapes and dtypes.
        graphs: records and replays.
    """

    def __init__(
        self, function: Callable[..., Tensor], name: str, state: Callable[[], Hashable], graphs: CudaGraphs
    ) -> None:
        self._function, self._name, self._state, self._graphs = function, name, state, graphs
        self._known: OrderedDict[Hashable, _Recording | _Watched] = OrderedDict()
        self._has_logged = False
        self._restless = 0  # calls in a row that left another kind of state than they found

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._restless == _KEPT or not self._graphs.can_record(inputs):
            return self._function(*inputs)
        kind = self._kind(inputs)
        known = self._known.get(kind, _Watched(0, "it has not run yet"))
        if isinstance(known, _Watched) and known.left_out and known.calls < _TRIES:
            return self._watched(kind, known.calls + 1, inputs)
        if isinstance(known, _Watched) and not known.left_out:
            known = self._known[kind] = self._record(inputs)
        self._known.move_to_end(kind)
        return known(inputs) if isinstance(known, _Recording) else self._function(*inputs)

    def _kind(self, inputs: tuple[Tensor, ...]) -> Hashable:
        return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs), self._state()

    def _watched(self, kind: Hashable, calls: int, inputs: tuple[Tensor, ...]) -> Tensor:
        with self._graphs.watch() as left_out:
            result = self._function(*inputs)
        is_changed = self._kind(inputs) != kind
        self._restless = self._restless + 1 if is_changed else 0
        if is_changed:
            left_out.append("it leaves other tensors, modes or attributes behind than it found")
        if kind not in self._known and len(self._known) == _KEPT:
            self._known.popitem(last=False)
        self._known[kind] = _Watched(calls, "; ".join(left_out))
        if left_out and (calls == _TRIES or self._restless == _KEPT):
            self._log_once("; ".join(left_out))
        return result

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording | _Watched:
        try:
            return _Recording(self._function, inputs, self._graphs)
        except Exception as error:  # whatever CUDA or the function refuses: it runs without a graph then
            first = error.__context__ or error  # ending a recording that failed fails too
            reason = f"{type(first).__name__}: {' '.join(str(first).split())[:200]}"
            self._log_once(reason)
            return _Watched(_TRIES, reason)

    def _log_once(self, reason: str) -> None:
        if not self._has_logged:
            _log.debug("%s is not replayed as a CUDA graph: %s", self._name, reason)
        self._has_logged = True


@dataclass(frozen=True)
class _Watched:
    """So many calls of a kind ran as they are; what a replay of the last would leave out, "" for nothing."""

    calls: int
    left_out: str


class _Recording:
    """One graph, with the memory that its inputs are read from."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], graphs: CudaGraphs) -> None:
        self._inputs = tuple(tensor.detach().clone() for tensor in inputs)
        self._replay = graphs.record(lambda: function(*self._inputs), inputs[0].device)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for recorded, tensor in zip(self._inputs, inputs, strict=True):
            recorded.copy_(tensor)
        return self._replay().clone()


class CudaGraphs:
    """What records and replays. All graphs of a device share their memory, since none is replayed while another is."""

    def __init__(self) -> None:
        self._places: dict[torch.device, tuple[Any, torch.cuda.Stream]] = {}  # a pool of memory, a stream

    def can_record(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether a function of these tensors can be recorded at present."""
        return all(tensor.is_cuda for tensor in inputs) and not torch.cuda.is_current_stream_capturing()

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[str]]:
        """Gives a list, which after the block holds what of it a replay would leave out."""
        left_out: list[str] = []
        host, mode = _host_random_state(), torch.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")  # which itself warns that it is a prototype
                caught.clear()
                yield left_out
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        for warning in caught:
            if _WAITS not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if any(_WAITS in str(warning.message) for warning in caught):
            left_out.append("it waits for the device")
        if _host_random_state() != host:
            left_out.append("it draws random numbers on the host")

    def record(self, run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        """Record ``run`` without running it; the replay gives its result, which the next replay overwrites.

        Raises where the recording fails, or would leave less memory than it takes to whatever else runs.
        """
        with torch.cuda.device(device):
            before = torch.cuda.current_stream()
            if device not in self._places:
                self._places[device] = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            pool, stream = self._places[device]
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            reserved = torch.cuda.memory_reserved()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    result = run()
            except BaseException:
                del self._places[device]
                _clean_up(before, pool)
                raise
            taken, left = torch.cuda.memory_reserved() - reserved, torch.cuda.mem_get_info()[0]
            if taken > left:
                raise MemoryError(f"its graph would take {taken / 2**20:.0f} MiB and leave {left / 2**20:.0f}")

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


CUDA_GRAPHS = CudaGraphs()


def graphs_are_wanted() -> bool:
    """Whether attacks are replayed: where CCF_CUDA_GRAPHS=1. Replays are tested with a stand-in, not yet on a GPU."""
    return os.environ.get("CCF_CUDA_GRAPHS") == "1"


def model_state(model: nn.Module) -> Hashable:
    """What a recorded pass of a model depends on beside its inputs, as far as the model's modules and torch tell.

    Of each module: its type, its `plain_attributes`, the addresses of its tensors, and its hooks but those that say of
    themselves that they only read (``only_reads``). And torch's switches.
    """
    modules = []
    for module in model.modules():
        hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
        acting = [key for each in hooks for key, hook in each.items() if not getattr(hook, "only_reads", False)]
        owned = [value for names in (module._parameters, module._buffers, vars(module)) for value in names.values()]
        places = [(tensor.data_ptr(), tensor.dtype) for tensor in owned if isinstance(tensor, Tensor)]
        modules.append((type(module), plain_attributes(module), tuple(places), tuple(acting)))
    return (
        tuple(modules),
        *(torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")),
        *(torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        torch.backends.cudnn.benchmark,
        tuple(float32_products().items()),
    )


def plain_attributes(owner: object) -> Hashable:
    """The numbers, words and functions among an object's attributes: a recording goes on with those that it found."""
    return tuple((name, value) for name, value in vars(owner).items() if type(value) in _PLAIN)


def _host_random_state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def _clean_up(stream: torch.cuda.Stream, pool: Any) -> None:
    """Make CUDA work as before a recording that failed.

    torch 2.11 leaves its own stream current then, its allocator giving out the graph's memory, and its generator
    refusing to draw, which an empty recording that succeeds brings back.
    """
    torch.cuda.set_stream(stream)
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):  # the latter before torch 2.8
        with contextlib.suppress(AttributeError, RuntimeError):
            getattr(torch._C, name)(torch.cuda.current_device(), pool)
    with warnings.catch_warnings(action="ignore"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        pass  # torch warns that nothing was recorded
    torch.cuda.synchronize()
