"""Adding what probes saw over the processes of a job; every process ends with the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.instances import check_row_memory
from ccf_plugin.probe.sums import Sums


def num_processes() -> int:
    """How many processes torch.distributed runs; 1 where it does not."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def gather_objects(value: Any) -> list[Any]:
    """A small picklable object of every process, in the order of ranks."""
    gathered: list[Any] = [None] * num_processes()
    dist.all_gather_object(gathered, value)
    return gathered


def sum_over_processes(sums: Sums | None) -> Sums | None:
    """Add over all processes; one that has none (None) takes part with zeros. None where no process has any.

    Raises:
        InputError: (in every process) the processes' heads differ in shape.
    """
    shapes = gather_objects(None if sums is None else sums.shape)
    distinct = sorted({shape for shape in shapes if shape is not None})
    if not distinct:
        return None
    if len(distinct) > 1:
        raise InputError(f"expected heads of one shape (K, n) in every process, found {distinct}")
    local = Sums.zeros(distinct[0], torch.device("cpu")) if sums is None else sums
    added: dict[str, Any] = {}
    for field in fields(local):
        value = getattr(local, field.name)
        if value is None:  # in no process, since the shapes are the same
            added[field.name] = None
            continue
        tensor = value.clone() if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
        tensor = tensor.to(_exchange_device())
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, _REDUCTIONS.get(field.name, "SUM")))
        added[field.name] = tensor if isinstance(value, Tensor) else int(tensor)
    return Sums(**added)


def gather_rows(rows: Tensor | None, labels: Tensor | None, max_bytes: int) -> tuple[Tensor, Tensor]:
    """The rows (N, n) and labels (N,) of all processes, in the order of ranks, on every process.

    Raises:
        InputError: (in every process) together they take more than ``max_bytes``.
    """
    local = None if rows is None else (tuple(rows.shape), rows.dtype)
    described = gather_objects(local)
    present = [entry for entry in described if entry is not None]
    counts = [0 if entry is None else entry[0][0] for entry in described]
    width, dtype = present[0][0][1], _widest(entry[1] for entry in present)
    check_row_memory(sum(counts) * width * torch.empty((), dtype=dtype, device="cpu").element_size(), max_bytes)
    device = _exchange_device()
    # collectives want equal shapes: the labels travel as one more tensor, and both are padded to the largest count
    values = torch.zeros(max(counts), width, dtype=dtype, device=device)
    owners = torch.zeros(max(counts), dtype=torch.int64, device=device)
    if rows is not None and labels is not None:
        values[: len(rows)], owners[: len(rows)] = rows.to(device, dtype), labels.to(device)
    all_values = [torch.empty_like(values) for _ in counts]
    all_owners = [torch.empty_like(owners) for _ in counts]
    dist.all_gather(all_values, values)
    dist.all_gather(all_owners, owners)
    gathered = [(v[:count], o[:count]) for v, o, count in zip(all_values, all_owners, counts, strict=True)]
    return torch.cat([v for v, _ in gathered]), torch.cat([o for _, o in gathered])


# the first batch with a fault is the least
_REDUCTIONS = {
    "first_faults": "MIN",
    "largest_miss": "MAX",
}


def _widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    widest = torch.float32
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return widest


def _exchange_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
