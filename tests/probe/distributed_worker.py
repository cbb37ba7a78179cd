"""One of two processes of test_distributed: runs every scenario and prints what it found as JSON.

Arguments: rank, number of processes, a file to meet at.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, CrossClassResult, InputError
from ccf_plugin.cli.console import leave_job
from probe.conftest import small_batch, small_network

Batch = tuple[Tensor, Tensor]

# which of the batches 0, 1, 2 … each rank sees
SHARES = {"equal": ([0, 1], [2, 3]), "unequal": ([0, 1, 2], [3]), "one empty": ([], [0, 1, 2]), "all empty": ([], [])}
SIZES = [12, 8, 5, 16]
IMAGES = small_batch(13, seed=7)


def batches(numbers: list[int]) -> list[Batch]:
    return [small_batch(SIZES[number], seed=number) for number in numbers]


def measured(passes: list[Batch], **options: Any) -> CrossClassResult:
    model = small_network().eval()
    with CrossClassProbe(model, **options) as probe:
        for images, labels in passes:
            model(images)
            probe.update(labels)
        return probe.compute()


def trained(rank: int) -> CrossClassResult:
    """DistributedDataParallel, two passes per step, probed from outside."""
    model = nn.parallel.DistributedDataParallel(small_network(), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with CrossClassProbe(model, instances=True) as probe:
        for number in SHARES["equal"][rank]:
            images, labels = small_batch(12, seed=number)
            with probe.capture():
                adversarial = model(images + 0.1)
            clean = model(images)
            (nn.functional.cross_entropy(adversarial, labels) + clean.square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.update(labels)
        return probe.compute()


def under_attack(passes: list[Batch]) -> CrossClassResult:
    with CrossClassProbe(small_network().eval()) as probe:
        return probe.run(passes, lambda x, y: x.flip(-1), seed=0)


def records(passes: list[Batch]) -> dict[str, list[bool] | None]:
    result = under_attack(passes)
    found = {"correct": result.correct, "correct_clean": result.correct_clean}
    return {name: None if record is None else record.tolist() for name, record in found.items()}


def bad_labels(rank: int) -> CrossClassResult:
    images, labels = small_batch()
    return measured([(images, labels), (images, labels + rank)])


def other_head(rank: int) -> CrossClassResult:
    model = small_network(classes=4 + rank).eval()
    images, labels = small_batch()
    with CrossClassProbe(model) as probe:
        model(images)
        probe.update(labels)
        return probe.compute()


def local(passes: list[Batch]) -> CrossClassResult:
    model = small_network().eval()
    with CrossClassProbe(model, instances=True) as probe:
        for images, labels in passes:
            model(images)
            probe.update(labels)
        return probe.compute(sync=False)


def as_metric(passes: list[Batch]) -> float:
    """torchmetrics' own synchronisation."""
    from ccf_plugin.integrations.torchmetrics import ClassAttributionSimilarity

    model = small_network().eval()
    metric = ClassAttributionSimilarity(model, 4, 24)
    for images, labels in passes:
        model(images)
        metric.update(labels)
    return float(metric.compute())


def described(scenario: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return scenario(*arguments, **options).to_json()
    except InputError as error:
        return str(error)


def main() -> None:
    rank, processes = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=processes)
    found = {}
    for name, shares in SHARES.items():
        found[name] = described(measured, batches(shares[rank]), instances=True)
    mine = batches(SHARES["unequal"][rank])
    found["capped"] = described(measured, mine, instances=True, max_per_class=2)
    found["too large together"] = described(measured, mine, instances=True, max_bytes=2500)
    found["local"] = described(local, mine)
    found["under attack"] = described(under_attack, mine)
    dealt = [tensor[rank::processes] for tensor in IMAGES]
    found["dealt out"] = records([(dealt[0][:4], dealt[1][:4]), (dealt[0][4:], dealt[1][4:])])
    found["shares of another kind"] = records(mine)
    found["bad labels"] = described(bad_labels, rank)
    found["other head"] = described(other_head, rank)
    found["trained"] = described(trained, rank)
    if importlib.util.find_spec("torchmetrics"):
        found["metric"] = as_metric(mine)
    print(json.dumps(found))
    leave_job()


if __name__ == "__main__":
    main()
