"""How long the runs take that README and recipes promise in minutes: rows of docs/results/speed.md.

    python tests/benchmarks/demonstrations.py --data folder:PATH --out tests/benchmarks/results/demonstrations.json

Each is one ``ccf train`` from start to end, as a user types it, and what its log has at the best and the last epoch.
The machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ccf_plugin.engine.precision import resolve_precision
from ccf_plugin.runs.environment import describe_environment
from ccf_plugin.runs.log import read_log

RECIPES = ("digits", "overfit_small", "overfit_small_fast")
CPU = torch.device("cpu")


def demonstrate(recipe: str, data: str) -> dict[str, Any]:
    """Train by a recipe and say how long the command took, and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [] if recipe == "digits" else ["--set", f"data.name={data}"]
        command = [sys.executable, "-m", "ccf_plugin", "train", recipe, *settings, "--out", f"{folder}/run"]
        start = time.perf_counter()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        rows = read_log(Path(folder) / "run")
    best = max(rows, key=lambda row: row.test_robust_accuracy or 0.0)
    names = ("epoch", "test_robust_accuracy", "train_robust_accuracy", "cas", "cas_excess")
    figures = {
        place: {name: getattr(row, name) for name in names} for place, row in (("best", best), ("last", rows[-1]))
    }
    return {"seconds": round(seconds, 1), "quickest_epoch": min(row.seconds for row in rows), **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="data spec: cifar10, or folder:PATH")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    command = ["tests/benchmarks/demonstrations.py", *sys.argv[1:]]
    rows = {}
    for recipe in RECIPES:
        rows[recipe] = demonstrate(recipe, arguments.data)
        print(recipe, json.dumps(rows[recipe]))
    found = describe_environment(CPU, resolve_precision("auto", CPU), command) | {"rows": rows}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
