"""One of one or two processes of test_hosts: models whose weights torch.distributed splits among processes.

Arguments: rank, number of processes, a file to meet at. Every scenario prints one line of JSON as soon as it is done,
so that a crash takes no earlier one along.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from ccf_plugin import CrossClassProbe, InputError
from ccf_plugin.cli.console import leave_job
from probe.conftest import small_batch, small_network

Split = Callable[[nn.Module, DeviceMesh], nn.Module]
STEPS, PASSES = 2, 2


def head_in_its_own_group(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    fully_shard(model[2], mesh=mesh, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def root_only(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def every_layer(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for module in (*model[0], model[2]):
        if list(module.parameters()):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def body_and_head_together(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """One group of several modules: its hooks are set by another way than a single module's."""
    fully_shard([model[0], model[2]], mesh=mesh, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def in_bfloat16(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP casts the head's weight and input before, and its output after."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    fully_shard(model[2], mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def flat(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), device_mesh=mesh)


def flat_with_parameters(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), device_mesh=mesh, use_orig_params=True)


SHARDED: dict[str, Split] = {
    split.__name__: split for split in (head_in_its_own_group, root_only, every_layer, body_and_head_together)
}
OTHER_SHARDED: dict[str, Split] = {split.__name__: split for split in (in_bfloat16, flat, flat_with_parameters)}
ATTACH = ("before", "after")

PARALLEL: dict[str, dict[str, ParallelStyle]] = {
    "columns": {"2": ColwiseParallel(output_layouts=Replicate())},
    "rows": {"2": RowwiseParallel(input_layouts=Replicate())},
    "columns as DTensor": {"2": ColwiseParallel(output_layouts=Replicate(), use_local_output=False)},
    "columns left apart": {"2": ColwiseParallel()},
}


def network() -> nn.Module:
    """In eval mode: dropout would draw other numbers in each process."""
    return small_network().eval()


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    return small_batch(8, seed=10 * step + rank)


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def driven(model: nn.Module, probe: CrossClassProbe | None, rank: int, lr: float = 0.5) -> Iterator[Tensor]:
    """Training steps, then passes without gradients: the outputs, and at last the gradients' sums and the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(STEPS + PASSES):
        images, labels = batch(step, rank)
        with torch.set_grad_enabled(step < STEPS):
            logits = model(images)
        yield whole(logits)
        if step < STEPS:
            nn.functional.cross_entropy(logits, labels).backward()
            if step % 2:
                optimizer.step()
        if probe is not None:
            probe.update(labels)
        if step < STEPS:
            if not step % 2:
                optimizer.step()
            optimizer.zero_grad()
    for parameter in model.parameters():
        yield whole(parameter)


def expected(processes: int) -> list[list[float]]:
    """The same of one whole model: passes of every rank's batch, gradients averaged over ranks."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with CrossClassProbe(model) as probe:
        for step in range(STEPS + PASSES):
            for rank in range(processes):
                images, labels = batch(step, rank)
                logits = model(images)
                probe.update(labels)
                (nn.functional.cross_entropy(logits, labels) / processes).backward()
            if step < STEPS:
                optimizer.step()
            optimizer.zero_grad()
        return probe.compute(sync=False).matrix.tolist()


def sharded(split: Split, mesh: DeviceMesh, attach: str, rank: int) -> dict[str, Any]:
    plain = list(driven(split(network(), mesh), None, rank))
    model = network()
    probe = CrossClassProbe(model) if attach == "before" else None
    model = split(model, mesh)
    probe = probe or CrossClassProbe(model)
    found = list(driven(model, probe, rank))
    identical = all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    result = probe.compute()
    return {
        "identical": identical,
        "matrix": result.matrix.tolist(),
        "counts": result.counts.tolist(),
        "kind": probe.head.kind,
        "expected": expected(dist.get_world_size()),
    }


def parallel(plan: dict[str, ParallelStyle], mesh: DeviceMesh, attach: str) -> dict[str, Any]:
    """A tensor-parallel head: every process sees the same images."""
    images, labels = small_batch()
    plain = whole(parallelize_module(network(), mesh, copy.deepcopy(plan))(images))
    model = network()
    probe = CrossClassProbe(model) if attach == "before" else None
    model = parallelize_module(model, mesh, copy.deepcopy(plan))
    probe = probe or CrossClassProbe(model)
    logits = whole(model(images))
    again = whole(model(images))
    found = {"identical": torch.equal(plain, logits) and torch.equal(plain, again), "shape": list(logits.shape)}
    with CrossClassProbe(network()) as other:
        other.model(images)
        other.update(labels)
        found["expected"] = other.compute(sync=False).matrix.tolist()
    try:
        probe.update(labels)
    except InputError as error:
        return {**found, "refused": str(error)}
    return {**found, "matrix": probe.compute(sync=False).matrix.tolist()}


def main() -> None:
    rank, processes = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    work: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for attach in ATTACH:
        if processes > 1:
            for name, plan in PARALLEL.items():
                work.append((f"{name}, {attach}", lambda plan=plan, attach=attach: parallel(plan, mesh, attach)))
        for name, split in {**SHARDED, **OTHER_SHARDED}.items():
            run = lambda split=split, attach=attach: sharded(split, mesh, attach, rank)  # noqa: E731
            work.append((f"{name}, {attach}", run))
    for name, scenario in work:
        try:
            found = scenario()
        except Exception as error:
            found = {"fault": f"{type(error).__name__}: {error}"}
        print(json.dumps({name: found}), flush=True)
    leave_job()


if __name__ == "__main__":
    main()
