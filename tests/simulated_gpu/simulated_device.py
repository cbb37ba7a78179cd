"""A CUDA device whose kernels run on the CPU: its tensors, its memory, its random numbers and what it records."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)

MEMORY = 2**34  # bytes
# Operations that read where the result's size or the host's next step depends on a tensor's numbers.
WAITS = {
    *(aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default),
    *(aten.masked_select.default, aten.bincount.default, aten.repeat_interleave.Tensor),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default),
}
INDEXES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
# They change running statistics, which their schemas do not say.
CHANGE_ARGUMENTS = {aten.native_batch_norm.default, aten.batch_norm_update_stats.default}


class CudaTensor(Tensor):
    """A tensor that says that it lies on ``cuda:0``. Its numbers are ``inner``, on the CPU.

    To torch's C++ code it is the CPU's, so that the autograd engine asks for no streams; what Python sees is CUDA's.
    """

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> CudaTensor:
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        outer = Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device="cpu", **place)
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE.run(function, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts: Any, *_: Any) -> CudaTensor:
        return CudaTensor(parts["inner"])

    def _set_data(self, value: CudaTensor) -> None:
        Tensor.data.__set__(self, value)
        self.inner = value.inner

    data = property(Tensor.data.__get__, _set_data)
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return self.to("cpu", memory_format=memory_format)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = twin = self.detach().clone(memory_format=torch.preserve_format)
            twin.requires_grad_(self.requires_grad)
            twin.__dict__.update({name: value for name, value in self.__dict__.items() if name != "inner"})
            if self.grad is not None:
                twin.grad = copy.deepcopy(self.grad, memo)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().inner.__reduce_ex__(protocol)  # as a file whose tensors were moved to the CPU

    def __repr__(self, **_: Any) -> str:
        return f"cuda:{self.inner!r}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)


class Moved(torch.autograd.Function):
    """A tensor from one device to the other; its gradient moves back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device, non_blocking: bool, layout: Any) -> Tensor:
        ctx.back = tensor.device
        if device.type == "cuda":
            if not non_blocking:
                DEVICE.wait("a copy from pageable memory")
            return CudaTensor(tensor.detach().clone(memory_format=layout))
        DEVICE.wait("a copy to the CPU")
        return tensor.detach().inner.clone(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.to(ctx.back), None, None, None


class Device:
    """What runs each operation: it refuses tensors of both devices, tells of waiting, and records."""

    def __init__(self) -> None:
        self.waited = 0
        self.sync_mode = 0  # torch.cuda.set_sync_debug_mode
        self.recording: Recording | None = None
        self.seed(0)

    def seed(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed).get_state()

    def wait(self, why: str) -> None:
        """What a call that waits for the device does, by what torch was told and by whether it records."""
        self.waited += 1
        if self.recording is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({why})")
        if self.sync_mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {why}")
        if self.sync_mode == 1:
            warnings.warn(f"called a synchronizing CUDA operation: {why}", stacklevel=2)

    def run(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        flat, spec = tree_flatten((args, kwargs))
        ours = [value for value in flat if isinstance(value, CudaTensor)]
        wanted = kwargs.get("device")
        is_made_here = not ours and wanted is not None and torch.device(wanted).type == "cuda"
        if not ours and not is_made_here:
            return function(*args, **kwargs)
        if function is aten.copy_.default and not isinstance(args[0], CudaTensor):
            self.wait("a copy to the CPU")
            args[0].copy_(args[1].inner)
            return args[0]
        self._check(function, flat)
        if is_made_here and function is aten.empty.memory_format and torch.Size(args[0]).numel() > MEMORY:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if function in WAITS or (function in INDEXES and _has_mask(args[1])):
            self.wait(str(function))
        inner_args, inner_kwargs = tree_unflatten([_inner(value) for value in flat], spec)
        if wanted is not None:  # of what C++ makes beside these tensors it says "cpu"
            inner_kwargs["device"] = torch.device("cpu")
        inner_kwargs.pop("pin_memory", None)
        if self.recording is not None:
            self.recording.before(function, flat)
        found = self.compute(function, inner_args, inner_kwargs)
        if self.recording is not None:
            self.recording.after(function, inner_args, inner_kwargs, found)
        if function is aten._local_scalar_dense.default:
            return found
        outer = tree_map(lambda value: CudaTensor(value) if isinstance(value, Tensor) else value, found)
        return return_and_correct_aliasing(function, args, kwargs, outer) if ours else outer

    def compute(self, function: Any, args: Any, kwargs: Any) -> Any:
        """On the CPU, with the device's own random numbers."""
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **kwargs)
        host = torch.get_rng_state()
        torch.set_rng_state(self.random)
        found = function(*args, **kwargs)
        self.random = torch.get_rng_state()
        torch.set_rng_state(host)
        return found

    def _check(self, function: Any, flat: list[Any]) -> None:
        others = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, CudaTensor)]
        if function not in COPIES | INDEXES and any(other.dim() for other in others):
            raise RuntimeError(f"Expected all tensors to be on the same device, found cpu and cuda:0 ({function})")


class Recording:
    """A CUDA graph: the operations of a captured block and their memory, computed anew by each replay.

    Capturing runs nothing: what the block changed in place is put back at its end, the random numbers too.
    """

    def __init__(self, device: Device) -> None:
        self._device, self._random = device, device.random
        self._calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._before: dict[int, tuple[Any, Any]] = {}
        self._made: set[int] = set()

    def before(self, function: Any, flat: list[Any]) -> None:
        if function._schema.is_mutable or function in CHANGE_ARGUMENTS:
            for tensor in flat:
                if isinstance(tensor, CudaTensor):
                    memory = tensor.inner.untyped_storage()
                    if memory.data_ptr() not in self._made:
                        self._before.setdefault(memory.data_ptr(), (memory, memory.clone()))

    def after(self, function: Any, args: Any, kwargs: Any, found: Any) -> None:
        self._made |= _memory(found) - _memory((args, kwargs))
        self._calls.append((function, args, kwargs, found))

    def end(self) -> None:
        for memory, was in self._before.values():
            memory.copy_(was)
        self._device.random = self._random
        if not self._calls:
            warnings.warn("The CUDA Graph is empty.", stacklevel=3)

    def replay(self) -> None:
        for function, args, kwargs, recorded in self._calls:
            found = self._device.compute(function, args, kwargs)
            for place, value in zip(tree_flatten(recorded)[0], tree_flatten(found)[0], strict=True):
                if isinstance(place, Tensor) and place.numel() and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, CudaTensor) else value


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def _memory(values: Any) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in tree_flatten(values)[0] if isinstance(value, Tensor)}


DEVICE = Device()
