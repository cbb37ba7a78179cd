"""How often the product's 95 % intervals hold what they are of: simulated images, and the product's own functions.

    python tests/benchmarks/interval_coverage.py --runs 1000 --out tests/benchmarks/results/interval_coverage.json

Two heads read the same features of K classes, with parts that neighbouring classes share, ReLU's zeros and images' own
noise. An interval of CAS, of CAS beyond chance, of I-CAS or of a difference holds where the figure's mean over many
draws of as many images lies in it; an I-CAS that may be 0 has none, which is left out. Bands hold where those means of
C_first − C_second all lie in theirs. Accuracies are of images that are right with one probability, or, of two models,
with three.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, CrossClassResult
from ccf_plugin.measuring.paired import paired_intervals
from ccf_plugin.probe.confidence import tango, wilson


@dataclass(frozen=True)
class Setting:
    """K classes of so many images each (of several numbers in turn), n features, and the size of the images' noise."""

    classes: int
    images: tuple[int, ...]
    features: int
    noise: float

    def draw(self, seed: int, times: int = 1) -> tuple[CrossClassResult, CrossClassResult]:
        """Two models' results on the same images, ``times`` as many as there are."""
        fixed, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        counts = torch.tensor([times * self.images[c % len(self.images)] for c in range(self.classes)])
        labels = torch.repeat_interleave(torch.arange(self.classes), counts)
        parts = torch.randn(self.classes, self.features, generator=fixed).abs()
        shared = parts + 0.7 * parts.roll(1, 0)
        weight = shared - shared.mean(0) + 0.3 * torch.randn(parts.shape, generator=fixed)
        other = weight + 0.3 * torch.randn(parts.shape, generator=fixed)
        noise = self.noise * torch.randn(len(labels), self.features, generator=generator)
        features = (shared[labels] + noise).relu()
        return _measured(features, weight, labels), _measured(features, other, labels)


SETTINGS = {
    "2 classes": Setting(2, (50,), 16, 2.0),
    "3 classes of 20 images": Setting(3, (20,), 16, 1.0),
    "4 classes": Setting(4, (100,), 8, 1.5),
    "10 classes of 20 images": Setting(10, (20,), 64, 3.0),
    "10 classes of 100 images": Setting(10, (100,), 64, 3.0),
    "10 classes of 20 to 200 images": Setting(10, (20, 60, 200), 64, 3.0),
}


def _measured(features: Tensor, weight: Tensor, labels: Tensor) -> CrossClassResult:
    head = nn.Linear(weight.shape[1], len(weight), bias=False)
    head.weight = nn.Parameter(weight)
    with CrossClassProbe(head, inputs="clean", instances=True) as probe, torch.no_grad():
        head(features)
        probe.update(labels)
        return probe.compute()


def similarities(setting: Setting, runs: int, draws: int) -> dict[str, float]:
    """The shares of ``runs`` in which the intervals of CAS and what is made of it hold."""
    names = ("cas", "cas_excess", "instance_cas")
    found = [setting.draw(1_000_000 + seed) for seed in range(draws)]
    truth = {name: np.mean([getattr(first, name) for first, _ in found]) for name in names}
    apart = {name: np.mean([getattr(a, name) - getattr(b, name) for a, b in found]) for name in names}
    differences = np.mean([a.matrix - b.matrix for a, b in found], axis=0)
    held: dict[str, list[bool]] = {}
    for seed in range(runs):
        first, second = setting.draw(seed)
        paired = paired_intervals(first, second, seed=seed, bootstrap=400)
        assert paired is not None
        for name in names:
            if (interval := first.interval(name)) is not None:
                held.setdefault(name, []).append(interval[0] <= truth[name] <= interval[1])
        for name, intervals in zip(names, (paired.cas, paired.excess, paired.instance_cas), strict=True):
            if intervals is not None:
                low, high = intervals[2]
                held.setdefault(f"difference of {name}", []).append(low <= apart[name] <= high)
        upper = np.triu_indices(setting.classes, 1)
        within = np.abs(paired.bands.difference - differences) <= paired.bands.half_width
        held.setdefault("bands of all pairs", []).append(bool(within[upper].all()))
    return {name: float(np.mean(values)) for name, values in held.items()}


def accuracies(runs: int) -> dict[str, float]:
    """The same for accuracies (Wilson) and differences of accuracies (the paired score interval)."""
    rng, held = np.random.default_rng(0), {}
    for images in (100, 1_000, 10_000):
        for accuracy in (0.02, 0.5, 0.93):
            drawn = rng.binomial(images, accuracy, runs)
            inside = [low <= accuracy <= high for low, high in (wilson(int(right), images) for right in drawn)]
            held[f"accuracy {accuracy:.0%} of {images} images"] = float(np.mean(inside))
        for only_first, only_second in ((0.1, 0.1), (0.2, 0.05), (0.1, 0.02), (0.02, 0.0)):
            inside = []
            for _ in range(runs):
                u = rng.random(images)
                first = (u < 0.5) | (u > 1 - only_first)
                second = (u < 0.5) | ((u > 0.5) & (u < 0.5 + only_second))
                low, high = tango(first, second)
                inside.append(low <= only_first - only_second <= high)
            held[f"difference {only_first:.0%} − {only_second:.0%} of {images} images"] = float(np.mean(inside))
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--draws", type=int, default=2_000, help="from which a figure's mean is known")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"accuracies": accuracies(chosen.runs)}
    for name, setting in SETTINGS.items():
        found[name] = similarities(setting, chosen.runs, chosen.draws)
        print(name, found[name], flush=True)
    lowest = min(share for group in found.values() for share in group.values())
    error = math.sqrt(0.95 * 0.05 / chosen.runs)
    print(f"lowest coverage {lowest:.1%}; one standard error of a share of 95 % is {error:.1%}")
    if chosen.out is not None:
        described = {"level": 0.95, "runs": chosen.runs, "torch": torch.__version__, "numpy": np.__version__}
        chosen.out.write_text(json.dumps({**described, "coverage": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
