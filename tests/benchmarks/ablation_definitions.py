"""How much accuracy airplanes and ships lose without their shared features, by what "without" and "lose" may mean.

    python tests/benchmarks/ablation_definitions.py --data cifar10_test1000.npz --out …

The trained ResNet-18, m = 26, PGD-20 at 1/255. A feature becomes its mean over all images, over the pair's, over the
others', its mean under attack, its median, or 0. The attack meets the network as it is (and what it found is shown to
the one without the features), or the one without the features at their means or at 0. Accuracy is of the pair against
the rest (the larger of both logits), of the true class against the rest, of the true class against the other, or of
both, as a difference or as what only the whole network has right.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyautoattack
import torch
from torch import Tensor, nn

from ccf_plugin import class_attribution, load_data, load_model
from ccf_plugin.probe.ablation import AblationLayer
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attacks import build_attack

FIRST, SECOND, M = 0, 8, 26  # airplane, ship


def head_of(model: nn.Module) -> nn.Linear:
    """The only linear layer that both networks of these scripts have."""
    (head,) = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    return head


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """g(x), (N, n) float64."""
    read: list[Tensor] = []
    handle = head_of(model).register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        for batch in images.split(250):
            model(batch)
    handle.remove()
    return torch.cat(read).double()


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Which images are right, by what is to be right, (N,) bool each."""
    others = torch.ones(logits.shape[1], dtype=torch.bool)
    others[[FIRST, SECOND]] = False
    own, other = logits.gather(1, labels[:, None])[:, 0], logits.gather(1, (FIRST + SECOND - labels)[:, None])[:, 0]
    rest = logits[:, others].amax(1)
    return {
        "pair against rest": torch.maximum(own, other) > rest,
        "own against rest": own > rest,
        "own against other": own > other,
        "all": (own > rest) & (own > other),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
    model = load_model("python:pyautoattack.examples.resnet:ResNet18", checkpoint=checkpoint).model
    split = load_data(f"npz:{chosen.data}", splits=("test",)).test
    images, labels = next(split.batches(len(split), torch.device("cpu")))
    of_pair = (labels == FIRST) | (labels == SECOND)
    pair, own = images[of_pair], labels[of_pair]
    g, layer = features_of(model, images), AblationLayer(model, images[:16])
    weight, bias = (tensor.detach().double() for tensor in head_of(model).parameters())
    vectors = class_attribution(g, weight, labels)
    shared = torch.argsort(-(vectors[FIRST] * vectors[SECOND]), stable=True)[:M].tolist()

    def attacked(columns: list[int], values: Tensor) -> Tensor:
        with layer.replacing(columns, values):
            attack = build_attack(None, model, ThreatModel("Linf", 1 / 255, 1 / 1020, 20), num_classes=10)
            torch.manual_seed(0)
            found = torch.cat([attack(x, y) for x, y in zip(pair.split(105), own.split(105), strict=True)])
        return features_of(model, found)

    mean, zero = g.mean(0), torch.zeros(g.shape[1], dtype=torch.float64)
    whole = attacked([], mean)
    crafted = {
        "the whole network": whole,
        "without, means": attacked(shared, mean),
        "without, 0": attacked(shared, zero),
    }
    values = {
        "mean": mean,
        "0": zero,
        "mean of the pair's": g[of_pair].mean(0),
        "mean of the others'": g[~of_pair].mean(0),
        "mean under attack": whole.mean(0),
        "median": g.median(0).values,
    }
    before, rows = accuracies(whole @ weight.T + bias, own), []
    for attack_met, features in crafted.items():
        for replaced_by, value in values.items():
            left = features.clone()
            left[:, shared] = value[shared]
            after = accuracies(left @ weight.T + bias, own)
            lost = {name: 100 * float((before[name].double() - after[name].double()).mean()) for name in before}
            only = {name: 100 * float((before[name] & ~after[name]).double().mean()) for name in before}
            rows.append({"attack met": attack_met, "replaced by": replaced_by, "points": lost, "only whole": only})
            print(attack_met, replaced_by, {name: round(points, 1) for name, points in lost.items()})
    if chosen.out is not None:
        described = {"torch": torch.__version__, "images": len(own), "rows": rows}
        chosen.out.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
