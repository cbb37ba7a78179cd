"""I-CAS against one full product of all samples' similarities: a row of docs/results/speed.md.

    python tests/benchmarks/instance_cas.py --out tests/benchmarks/results/instance_cas.json

Machines share their cores: both sides are timed several times in turn, and the quickest of each counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from ccf_plugin import instance_matrix
from ccf_plugin.runs.environment import describe_environment


def instance_cas(count: int = 10_000, features: int = 512, classes: int = 10, *, rounds: int = 5) -> dict[str, float]:
    """Seconds of both, and their ratio."""
    torch.manual_seed(0)
    rows, labels = torch.randn(count, features), torch.randint(classes, (count,))
    units = F.normalize(rows)
    sides = {"instance_cas": lambda: instance_matrix(rows, labels, classes), "product": lambda: units @ units.T}
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            best[name] = min(best[name], time.perf_counter() - start)
    sizes = {"count": count, "features": features, "classes": classes}
    return {**sizes, **best, "ratio": best["instance_cas"] / best["product"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    command = ["tests/benchmarks/instance_cas.py", *sys.argv[1:]]
    torch.set_num_threads(arguments.threads)
    found = describe_environment(torch.device("cpu"), "float32", command) | instance_cas()
    print(json.dumps(found, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
