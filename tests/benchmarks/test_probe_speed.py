"""What the probe costs, as ratios within one run, so that they hold on any machine (``-m slow -s`` shows them)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ccf_plugin import CrossClassProbe
from ccf_plugin.probe.hook import Hook

from .instance_cas import instance_cas

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("count", "features", "classes"), [(10000, 512, 10), (10000, 512, 100), (8000, 512, 10), (10000, 2048, 200)]
)
def test_instance_matrix_takes_no_longer_than_one_full_similarity_product(
    count: int, features: int, classes: int
) -> None:
    found = instance_cas(count, features, classes)
    print(f"\n{found}")
    assert found["ratio"] <= 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_instance_matrix_stays_within_its_memory_bound() -> None:
    """ImageNet's 50,000 samples of 1,000 classes, with few features to be quick; the copy of 2,048 is added."""
    code = """
import torch
from ccf_plugin import instance_matrix
torch.set_num_threads(1)
N, n, K = 50_000, 64, 1000
rows, labels = torch.randn(N, n), torch.arange(N) % K
kilobytes = lambda key: int(open("/proc/self/status").read().split(key + ":")[1].split()[0])
before = kilobytes("VmRSS")
instance_matrix(rows, labels, K)
print((kilobytes("VmHWM") - before) * 1024)  # not getrusage, which also counts the parent's peak
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    copy = 50_000 * (2048 - 64) * 4
    beyond = int(done.stdout) + copy
    print(f"\n{beyond / 2**20:.0f} MiB beyond the rows, {copy / 2**20:.0f} of it the rows' normalised copy")
    assert copy < beyond <= 2**30


@pytest.mark.parametrize(("count", "repeats"), [(16, 3), (128, 1)], ids=["batch of 16", "batch of 128"])
def test_probe_costs_at_most_a_hundredth_of_a_pgd_10_step(
    count: int, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time in the probe's hooks and in `update`, which checks the pass, against the rest of a PreActResNet-18
    PGD-10 training step. Smaller batches are the harder case, since most of the hooks' time is the same for all.
    """
    from ccf_plugin.zoo.models import build_model

    spent = {"hooks": 0.0, "update": 0.0}

    def timed(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[what] += time.perf_counter() - start

        return wrapper

    monkeypatch.setattr(Hook, "__call__", timed("hooks", Hook.__call__))
    torch.manual_seed(0)
    model = build_model("preact_resnet18", num_classes=10, input_size=(3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, labels = torch.rand(count, 3, 32, 32), torch.arange(count) % 10

    def step(probe: CrossClassProbe) -> None:
        adversarial = images.clone()
        for _ in range(10):
            adversarial.requires_grad_()
            loss = nn.functional.cross_entropy(model(adversarial), labels)
            (gradient,) = torch.autograd.grad(loss, adversarial)
            adversarial = (adversarial + 0.01 * gradient.sign()).clamp(0, 1).detach()
        nn.functional.cross_entropy(model(adversarial), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        timed("update", probe.update)(labels)

    with CrossClassProbe(model) as probe:
        model(images[:16])  # finds the head
        probe.update(labels[:16])
        shares = []
        for _ in range(repeats):
            spent.update(hooks=0.0, update=0.0)
            start = time.perf_counter()
            step(probe)
            whole = time.perf_counter() - start
            shares.append({what: seconds / (whole - sum(spent.values())) for what, seconds in spent.items()})
        probe.compute()  # raises where a pass's logits were not the head's
    least = min(shares, key=lambda share: sum(share.values()))
    print(
        f"\ntorch {torch.__version__}, one thread, batch of {count}: hooks {least['hooks']:.4%} and update "
        f"{least['update']:.4%} of a step of {whole:.1f} s; {spent['hooks'] / 11 * 1e6:.0f} µs of hooks a pass"
    )
    assert sum(least.values()) <= 0.01


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
@pytest.mark.parametrize("count", [8, 64])
def test_the_first_pass_keeps_at_most_its_bound(count: int) -> None:
    """A vision transformer without gradients, which itself keeps nothing: what the probe adds to the peak."""
    code = f"""
import sys, torch, timm
from ccf_plugin import CrossClassProbe
torch.set_num_threads(1)
model = timm.create_model("vit_small_patch16_224").eval()
images = torch.rand({count}, 3, 224, 224)
def peak():
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) * 1024
with torch.no_grad():
    model(images)
    alone = peak()
    probe = CrossClassProbe(model)
    model(images)
    first = peak()
    for _ in range(2):
        model(images)
assert probe.head is not None
print(alone, first, peak())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    alone, first, later = map(int, done.stdout.split())
    print(f"\nbatch of {count}: peak {alone / 2**20:.0f} MiB alone, {first / 2**20:.0f} in the probe's first pass")
    assert first - alone <= 2 * 2**30 + 256 * 2**20
    assert later <= first + 64 * 2**20
