"""How often the product's tests reject what is true: simulated data, the product's own functions, at 5 %.

    python tests/benchmarks/false_positives.py --runs 1000 --out tests/benchmarks/results/false_positives.json

Of CAS and single C[i, j]: attributions in no order that classes share, of several numbers of classes and features, even
and with few features that carry most. Of a grouping and of Mantel's test: a symmetric matrix that knows neither groups
nor confusions. Of McNemar's test: two models that are equally accurate. Of the ablation's Wilcoxon tests with Holm's
correction: margins that differ by nothing but noise, and that any of ten tests rejects. Of a study's correlation along
epochs: series that know nothing of each other; those with a trend, which the test does not know, stand by themselves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ccf_plugin.measuring.ablation_result import holm, wilcoxon
from ccf_plugin.measuring.few_seeds import shifts_p
from ccf_plugin.probe.attribution import correlation_matrix
from ccf_plugin.probe.confidence import mcnemar
from ccf_plugin.probe.groups import mantel, within_minus_between
from ccf_plugin.probe.null import permutation_null

LEVEL = 0.05
Draw = Callable[[np.random.Generator], NDArray[np.float64]]


def of_chance(classes: int, features: int, power: int, runs: int, permutations: int | None = None) -> dict[str, float]:
    """The shares of p below 5 % of CAS and of single C[i, j]."""
    cas, pairs = [], []
    for seed in range(runs):
        vectors = np.random.default_rng(seed).normal(0.3, 1.0, (classes, features)) ** power
        null = permutation_null(vectors, permutations=permutations)
        cas.append(null.cas_p <= LEVEL)
        pairs.append((null.p[np.triu_indices(classes, 1)] <= LEVEL).mean())
    return {"CAS": float(np.mean(cas)), "C[i, j]": float(np.mean(pairs))}


def of_arrangements(classes: int, runs: int) -> dict[str, float]:
    """Of within minus between, and of Mantel's test."""
    groups, confused = [], []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        matrix = correlation_matrix(torch.from_numpy(rng.normal(0.2, 1.0, (classes, 12)))).numpy()
        confusion = rng.poisson(3.0, (classes, classes)) + 50 * np.eye(classes)
        groups.append(within_minus_between(matrix, np.arange(classes) % 2, permutations=199, seed=seed).p <= LEVEL)
        confused.append(mantel(matrix, confusion, permutations=199, seed=seed).p <= LEVEL)
    return {"within minus between": float(np.mean(groups)), "Mantel": float(np.mean(confused))}


def of_pairs(images: int, runs: int) -> dict[str, float]:
    """Of McNemar's test, and of any of ten of the ablation's tests with Holm's correction."""
    models, margins = [], []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        chances = rng.random(images)
        models.append(mcnemar(rng.random(images) < chances, rng.random(images) < chances).p <= LEVEL)
        tests = [wilcoxon(rng.standard_t(3, images)) for _ in range(10)]
        margins.append(min(holm(tests)) <= LEVEL)
    return {"McNemar": float(np.mean(models)), "Wilcoxon, any of ten": float(np.mean(margins))}


def noise(rng: np.random.Generator, epochs: int, memory: float) -> NDArray[np.float64]:
    """A series of which each value holds this share of the one before."""
    values = rng.normal(size=epochs + 50)
    for place in range(1, len(values)):
        values[place] += memory * values[place - 1]
    return values[50:]


def trend(rng: np.random.Generator, epochs: int) -> NDArray[np.float64]:
    """A rise or a fall with noise of a tenth of its size."""
    return rng.choice([-1, 1]) * np.linspace(0, 1, epochs) + rng.normal(0, 0.1, epochs)


def of_epochs(epochs: int, runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Of the correlation along epochs: of series without a trend, and with one."""
    without: dict[str, Draw] = {
        "no memory": lambda rng: noise(rng, epochs, 0.0),
        "memory of 0.7": lambda rng: noise(rng, epochs, 0.7),
    }
    with_trend: dict[str, Draw] = {
        "random walk": lambda rng: rng.normal(size=epochs).cumsum(),
        "rise or fall": lambda rng: trend(rng, epochs),
    }

    def share(draw: Draw) -> float:
        found = []
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            found.append(shifts_p(draw(rng).tolist(), draw(rng).tolist()) < LEVEL)
        return float(np.mean(found))

    shares = [{name: share(draw) for name, draw in kind.items()} for kind in (without, with_trend)]
    return shares[0], shares[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found = {}
    for classes, features, power in ((2, 16, 1), (2, 128, 3), (3, 16, 1), (3, 128, 3), (10, 128, 1), (10, 128, 3)):
        kind = "a few large features" if power > 1 else "even features"
        found[f"{classes} classes, {features} features, {kind}"] = of_chance(classes, features, power, chosen.runs)
    for classes in (2, 3):
        name = f"{classes} classes, 2000 features, 20 permutations"
        found[name] = of_chance(classes, 2_000, 1, chosen.runs, permutations=20)
    trends = {}
    for epochs in (30, 100):
        found[f"{epochs} epochs"], trends[f"{epochs} epochs"] = of_epochs(epochs, chosen.runs)
    for classes in (4, 6, 10):
        found[f"{classes} classes"] = of_arrangements(classes, chosen.runs)
    for images in (20, 1_000):
        found[f"{images} images"] = of_pairs(images, chosen.runs)
    for name, shares in [*found.items(), *((f"with a trend, {name}", shares) for name, shares in trends.items())]:
        print(name, shares)
    if chosen.out is not None:
        described = {"level": LEVEL, "runs": chosen.runs, "numpy": np.__version__}
        described |= {"false_positives": found, "found_by_trends": trends}
        chosen.out.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
