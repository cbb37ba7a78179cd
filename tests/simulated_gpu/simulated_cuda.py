"""CUDA for tests where there is none: ``torch.cuda`` as on a machine with one GPU, computed on the CPU.

It shows what a CPU cannot: tensors of two devices in one operation, calls that wait for the device, what a CUDA graph
leaves out (Python, random numbers of the host) and keeps (memory, tensors changed in place, random numbers anew), and
whatever asks ``torch.cuda`` or a tensor for its device. It does not show CUDA's own kernels, autocast's choice of
operations (the CPU's), streams that overtake each other, nor how fast anything is; ``torch.compile`` runs what it is
given as it is, and there is no NCCL.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.profiler
from simulated_device import CUDA, DEVICE, MEMORY, CudaTensor, Moved, Recording
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAME = "simulated CUDA"


class Stream:
    """All of one device run one after another."""

    _numbers = itertools.count(1)

    def __init__(self, *_: Any, number: int | None = None, **__: Any) -> None:
        self._number = next(self._numbers) if number is None else number
        self.device = CUDA

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other._number == self._number

    def __hash__(self) -> int:
        return self._number

    def __enter__(self) -> Stream:
        self._before = torch.cuda.current_stream()
        torch.cuda.set_stream(self)
        return self

    def __exit__(self, *_: Any) -> None:
        torch.cuda.set_stream(self._before)

    def is_capturing(self) -> bool:
        return DEVICE.recording is not None

    def wait_stream(self, _: Any) -> None: ...

    def synchronize(self) -> None:
        DEVICE.wait("a stream is waited for")


class CUDAGraph:
    """As ``torch.cuda.CUDAGraph``."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def capture_begin(self, *_: Any, **__: Any) -> None:
        DEVICE.recording = self._recording = Recording(DEVICE)

    def capture_end(self) -> None:
        DEVICE.recording = None
        self._recording.end()

    def replay(self) -> None:
        self._recording.replay()


@contextlib.contextmanager
def graph(recorded: CUDAGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "") -> Iterator[None]:
    """As ``torch.cuda.graph``."""
    with stream or Stream():
        recorded.capture_begin()
        try:
            yield
        finally:
            recorded.capture_end()


class Factories(TorchDispatchMode):
    """Tensors that are made on the device."""

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE.run(function, args, kwargs or {})


def to(self: Tensor, *args: Any, before: Any = Tensor.to, **kwargs: Any) -> Tensor:
    """As ``Tensor.to``."""
    like = next((value for value in args if isinstance(value, Tensor)), None)
    flags = [value for value in args if isinstance(value, bool)]
    rest = [value for value in args if not isinstance(value, Tensor | bool)]
    options = {name: value for name, value in kwargs.items() if name != "copy"}
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*rest, **options) if rest or options else (None,) * 4
    if like is not None:
        device, dtype = like.device, like.dtype
    device, dtype = torch.device(device or self.device), dtype or self.dtype
    if "cuda" not in (device.type, self.device.type):
        return before(self, *args, **kwargs)
    if device.type == self.device.type:
        copy = kwargs.get("copy", len(flags) > 1 and flags[1])
        given = {} if layout is None else {"memory_format": layout}
        return before(self, dtype=dtype, copy=copy, **given)
    if dtype != self.dtype:
        self = before(self, dtype=dtype)
    non_blocking = bool(non_blocking or (flags and flags[0]))
    return Moved.apply(self, CUDA if device.type == "cuda" else device, non_blocking, layout or torch.preserve_format)


def one_hot(labels: Tensor, num_classes: int = -1) -> Tensor:
    """As ``F.one_hot``, whose C++ code makes its tensors for the CPU here."""
    zeros = torch.zeros(*labels.shape, num_classes, dtype=torch.int64, device=labels.device)
    return zeros.scatter_(-1, labels.unsqueeze(-1), 1)


class Generator(torch._C.Generator):
    """A generator of any device; its numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> torch._C.Generator:
        return torch._C.Generator.__new__(torch._C.Generator, "cpu")


def _sync_mode(mode: Any) -> None:
    DEVICE.sync_mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)


def _random(state: Tensor) -> None:
    DEVICE.random = state.clone()


def _functions() -> dict[str, Any]:
    """Those of ``torch.cuda``."""
    streams = [Stream(number=0)]
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "device": lambda _: contextlib.nullcontext(),
        "synchronize": lambda _=None: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda _=None: 0,
        "max_memory_allocated": lambda _=None: 2**20,
        "memory_reserved": lambda _=None: 0,
        "reset_peak_memory_stats": lambda _=None: None,
        "mem_get_info": lambda _=None: (MEMORY // 2, MEMORY),
        "get_device_name": lambda _=None: NAME,
        "get_device_capability": lambda _=None: (9, 0),
        "get_device_properties": lambda _=None: SimpleNamespace(
            name=NAME, total_memory=MEMORY, major=9, minor=0, multi_processor_count=1
        ),
        "is_bf16_supported": lambda *_, **__: True,
        "Stream": Stream,
        "current_stream": lambda _=None: streams[0],
        "set_stream": lambda stream: streams.__setitem__(0, stream),
        "stream": lambda stream: stream or contextlib.nullcontext(),
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 0),
        "is_current_stream_capturing": lambda: DEVICE.recording is not None,
        "get_sync_debug_mode": lambda: DEVICE.sync_mode,
        "set_sync_debug_mode": _sync_mode,
        "manual_seed": DEVICE.seed,
        "manual_seed_all": DEVICE.seed,
        "get_rng_state": lambda _=None: DEVICE.random.clone(),
        "set_rng_state": lambda state, _=None: _random(state),
        "get_rng_state_all": lambda: [DEVICE.random.clone()],
        "set_rng_state_all": lambda states: _random(states[0]),
    }


def _on_the_cpu(make: Any) -> Any:
    """A function that makes a tensor of numbers, which it does on the CPU for any device."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, CudaTensor):
            return data.to(device, **kwargs) if device is not None else data.to(**kwargs)
        return make(data, *args, **kwargs) if device is None else make(data, *args, **kwargs).to(device)

    return made


def _grouped(group: Any) -> Any:
    """A function that groups tensors by where they lie, which C++ takes for the CPU."""

    def grouped(tensors: Any, with_indices: bool = False) -> Any:
        is_cuda = any(isinstance(value, CudaTensor) for value in tree_leaves(tensors))
        found = group(tensors, with_indices)
        return {(CUDA if is_cuda else device, dtype): rest for (device, dtype), rest in found.items()}

    return grouped


def _as_the_cpus(function: Any) -> Any:
    """A function of a kind of device that knows autocast's settings: CUDA has those of the CPU."""
    return lambda kind="cuda", *args, **kwargs: function("cpu" if kind == "cuda" else kind, *args, **kwargs)


def install() -> None:
    """Give this process a GPU, for good."""
    functions = _functions()
    for module in (torch.cuda, torch.cuda.random, torch.cuda.graphs):
        for name, value in functions.items():
            if hasattr(module, name) or module is torch.cuda:
                setattr(module, name, value)
    torch._C._cuda_getDevice = torch._C._accelerator_getDeviceIndex = functions["current_device"]
    torch.accelerator.current_stream = functions["current_stream"]
    torch.accelerator.current_device_index = functions["current_device"]
    torch._C._group_tensors_by_device_and_dtype = _grouped(torch._C._group_tensors_by_device_and_dtype)
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _on_the_cpu(getattr(torch, name)))
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        setattr(torch, name, _as_the_cpus(getattr(torch, name)))
    begin = torch.autocast.__init__

    def autocast(self: Any, kind: str, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
        if kind == "cuda":
            kind, dtype = "cpu", dtype or torch.float16
        begin(self, kind, dtype, *args, **kwargs)

    torch.autocast.__init__ = autocast
    profile = torch.profiler.profile
    torch.profiler.profile = lambda **_: profile(activities=[torch.profiler.ProfilerActivity.CPU])  # finds no kernels
    torch.Generator = Generator
    torch.nn.functional.one_hot = one_hot
    Tensor.to, Tensor.cuda = to, lambda self, *_, **__: self.to("cuda")
    Tensor.pin_memory = lambda self, *_: self
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter cannot change its class otherwise
    Factories().__enter__()
