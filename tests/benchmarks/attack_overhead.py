"""What torchattacks' PGD costs beside the model's passes: seconds of a PGD-10 call whose model does almost nothing.

    python tests/benchmarks/attack_overhead.py --threads 2

The same arithmetic written as one bare loop is timed in turn. What both take is clamps, signs and sums of images; what
the call takes beyond is torchattacks' and ours (modes, gradients switched off and on).
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccf_plugin.engine.memory import keep_freed_memory
from ccf_plugin.threat import ThreatModel, threat_model
from ccf_plugin.zoo.attacks import build_attack


class FirstPixels(nn.Module):
    """Ten pixels as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :10]


def bare(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    adversarial = (images + torch.empty_like(images).uniform_(-threat.eps, threat.eps)).clamp(0, 1)
    for _ in range(threat.steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(adversarial), labels), adversarial)
        moved = adversarial.detach() + threat.step_size * gradient.sign()
        adversarial = (images + (moved - images).clamp(-threat.eps, threat.eps)).clamp(0, 1).detach()
    return adversarial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    model, threat = FirstPixels(), threat_model(norm="Linf", eps=8 / 255, steps=10)
    images, labels = torch.rand(arguments.batch_size, 3, 32, 32), torch.randint(10, (arguments.batch_size,))
    attack = build_attack("PGD", model, threat)
    sides = {"call": lambda: attack(images, labels), "bare loop": lambda: bare(model, images, labels, threat)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(50):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    call, loop = (1e3 * median(seconds[name][5:]) for name in sides)
    print(f"PGD-10 of {arguments.batch_size} images: call {call:.1f} ms, bare loop {loop:.1f} ms")


if __name__ == "__main__":
    main()
