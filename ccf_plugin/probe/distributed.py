"""Adding a probe's sums over the processes of a job: one exchange of shapes, one of the (K, n) sums."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ccf_plugin.errors import InputError

_S = TypeVar("_S")


def num_processes() -> int:
    """How many processes torch.distributed runs; 1 where it does not."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(sums: _S | None) -> _S | None:
    """Add a dataclass of tensors over all processes; a process that has none (None) takes part with zeros.

    Fields named ``*_batch`` take the minimum instead, plain integers are added. Returns None where no process has any.
    """
    shapes: list[Any] = [None] * num_processes()
    own = None
    if sums is not None:
        own = [(f.name, _describe(getattr(sums, f.name))) for f in fields(sums)]  # type: ignore[arg-type]
    dist.all_gather_object(shapes, (own, type(sums)))
    present = [(shape, kind) for shape, kind in shapes if shape is not None]
    if not present:
        return None
    if any(shape[0] != present[0][0][0] for shape, _ in present):
        raise InputError(f"expected the same head in every process, found {[shape[0][1][1] for shape, _ in present]}")
    added: dict[str, Any] = {}
    for name, (dtype, shape) in present[0][0]:
        smallest = name.endswith("_batch")
        value = getattr(sums, name, None)
        if dtype is int:
            tensor = torch.tensor(0 if value is None else value)
        elif value is None:
            tensor = torch.full(shape, torch.iinfo(dtype).max if smallest else 0, dtype=dtype)
        else:
            tensor = value.clone()
        tensor = tensor.to(_exchange_device())
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN if smallest else dist.ReduceOp.SUM)
        added[name] = int(tensor) if dtype is int else tensor
    return present[0][1](**added) if sums is None else replace(sums, **added)  # type: ignore[type-var]


def gather_rows(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (N, n) and labels (N,) of all processes together, in the order of ranks, on every process."""
    gathered: list[Any] = [None] * num_processes()
    dist.all_gather_object(gathered, (rows.cpu(), labels.cpu()))
    present = [(r, y) for r, y in gathered if len(r)]
    return torch.cat([r for r, _ in present]).to(rows.device), torch.cat([y for _, y in present]).to(labels.device)


def _describe(value: Any) -> tuple[Any, tuple[int, ...]]:
    return (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else (int, ())


def _exchange_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
