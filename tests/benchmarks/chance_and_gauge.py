"""CAS of two networks beside what chance gives, and of one classifier written in different ways.

    python tests/benchmarks/chance_and_gauge.py --data cifar10_test1000.npz \\
        --narrow runs/overfit_small/best.safetensors --narrow-data folder:PATH --out …

The trained ResNet-18 (n = 512) on clean images, and a narrow adversarially trained network (n = 128, a checkpoint of
the recipe overfit_small) on clean images and under its PGD-20. Each has its own head, with CAS by chance, and 20 random
heads on the same features. Of the ResNet-18, the same classifier with one row added to all of W, the mean features at
-1 to 2 times the length that W's rows have in the mean (of squares); and with the features, and W with them, rotated.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import torch
from ablation_definitions import features_of, head_of
from torch import Tensor, nn

from ccf_plugin import class_attribution, class_attribution_similarity, correlation_matrix, load_data, load_model
from ccf_plugin.probe.null import permutation_null
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attacks import build_attack

DRAWS, LENGTHS = 20, (-1.0, -0.5, 0.5, 1.0, 2.0)


def cas(features: Tensor, weight: Tensor, labels: Tensor) -> float:
    return float(class_attribution_similarity(correlation_matrix(class_attribution(features, weight, labels))))


def beside_chance(features: Tensor, weight: Tensor, labels: Tensor) -> dict[str, Any]:
    """CAS of the head and of random ones, each with what permuted attributions give."""
    null = permutation_null(class_attribution(features, weight, labels).numpy())
    heads = [torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(DRAWS)]
    return {
        "features": features.shape[1],
        "cas": cas(features, weight, labels),
        "by_chance": null.cas_mean,
        "by_chance_sd": null.cas_sd,
        "random_heads": mean_and_sd([cas(features, head.double(), labels) for head in heads]),
    }


def rewritten(features: Tensor, weight: Tensor, labels: Tensor, bias: Tensor) -> dict[str, Any]:
    """CAS of one classifier, by how it is written; each is checked to give the same predictions."""
    predictions = (features @ weight.T + bias).argmax(1)
    direction = features.mean(0) / features.mean(0).norm()
    row = direction * weight.norm() / math.sqrt(len(weight))

    def of_the_same(features: Tensor, weight: Tensor) -> float:
        if not torch.equal((features @ weight.T + bias).argmax(1), predictions):
            raise RuntimeError("expected the same predictions, found others")
        return cas(features, weight, labels)

    turned = []
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        turn = torch.linalg.qr(torch.randn(2 * direction.shape, generator=generator).double())[0]
        turned.append(of_the_same(features @ turn, weight @ turn))
    return {
        "row_added": {str(length): of_the_same(features, weight + length * row) for length in LENGTHS},
        "rotated": mean_and_sd(turned),
    }


def of_network(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    return beside_chance(features_of(model, images), head_of(model).weight.detach().double(), labels)


def mean_and_sd(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)), "draws": len(values)}


def attacked(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    attack = build_attack(None, model, ThreatModel("Linf", 8 / 255, 2 / 255, 20), num_classes=10)
    torch.manual_seed(0)
    return torch.cat([attack(x, y) for x, y in zip(images.split(250), labels.split(250), strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--narrow", required=True, help="MODEL as ccf probe takes it")
    parser.add_argument("--narrow-data", required=True, help="CIFAR-10 as --data of ccf probe")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
    wide = load_model("python:pyautoattack.examples.resnet:ResNet18", checkpoint=checkpoint).model
    narrow = load_model(chosen.narrow).model
    split = load_data(f"npz:{chosen.data}", splits=("test",)).test
    small = load_data(chosen.narrow_data, splits=("test",), downscale=2, test_limit=1000).test
    images, labels = next(split.batches(len(split), torch.device("cpu")))
    small_images, small_labels = next(small.batches(len(small), torch.device("cpu")))
    weight, bias = (tensor.detach().double() for tensor in head_of(wide).parameters())
    under_attack = attacked(narrow, small_images, small_labels)
    described = {
        "torch": torch.__version__,
        "resnet18": of_network(wide, images, labels) | rewritten(features_of(wide, images), weight, labels, bias),
        "narrow": of_network(narrow, small_images, small_labels),
        "narrow_attacked": of_network(narrow, under_attack, small_labels),
    }
    print(json.dumps(described, indent=1))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
