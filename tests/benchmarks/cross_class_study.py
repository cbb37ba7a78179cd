"""Does a loss that rewards CAS make a network more robust? Small digits, each arm with several seeds.

    python tests/benchmarks/cross_class_study.py --seeds 0 1 2 --out tests/benchmarks/results/cross_class_study.json

The recipe is `digits` cut down to a width of 8, 60 training images a class and 12 epochs. The arms differ in
[crossclass] alone: none, CAS with a weight above and below 0, and CAS beyond chance with a weight above 0. RA is
PGD-20 at 20/255 on all test images; best and last are the epochs by RA, so that best is chosen on those images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from ccf_plugin import __version__, load_recipe, train

ARMS = {
    "none": [],
    "CAS, weight 2": ["crossclass={term='cas', weight=2.0}"],
    "CAS, weight -2": ["crossclass={term='cas', weight=-2.0}"],
    "excess, weight 2": ["crossclass={term='excess', weight=2.0}"],
}
SETTINGS = [
    *("model.options.width=8", "data.train_per_class=60", "optim.batch_size=64", "optim.epochs=12"),
    *("optim.decay_epochs=[7,10]", "attack.steps=5", "probe.every=12", "probe.pictures=false"),
]
FIGURES = ("test_clean_accuracy", "test_robust_accuracy", "train_robust_accuracy", "cas", "cas_null", "cas_excess")


def run(arm: str, seed: int) -> dict[str, Any]:
    """The figures of one run at its best and its last epoch."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe("digits", [*SETTINGS, *ARMS[arm], f"seed={seed}"])
        rows = train(recipe, Path(folder) / "run").rows
    best = max(rows, key=lambda row: row.test_robust_accuracy or 0.0)
    of_rows = {"best": best, "last": rows[-1]}
    return {
        "arm": arm,
        "seed": seed,
        "best_epoch": best.epoch,
        **{place: {name: getattr(row, name) for name in FIGURES} for place, row in of_rows.items()},
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Means over the seeds and their range, in Markdown."""
    lines = ["| term | best RA | last RA | last clean | last CAS | last CAS beyond chance |", f"|{'---|' * 6}"]
    shown = [("best", "test_robust_accuracy"), ("last", "test_robust_accuracy"), ("last", "test_clean_accuracy")]
    shown += [("last", "cas"), ("last", "cas_excess")]
    for arm in ARMS:
        cells = []
        for place, name in shown:
            values = [run[place][name] * (100 if "accuracy" in name else 1) for run in runs if run["arm"] == arm]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    runs = [run(arm, seed) for seed in chosen.seeds for arm in ARMS]
    print(table(runs))
    if chosen.out is not None:
        described = {"ccf_plugin": __version__, "torch": torch.__version__, "settings": SETTINGS, "runs": runs}
        chosen.out.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
