"""How much faster two CPU processes of one thread each train than one: a row of docs/results/speed.md.

    python tests/benchmarks/two_processes.py --data folder:PATH --rounds 3

One and two processes take turns; the ratio is that of the images per second in log.csv of each second epoch (the first
warms up), and the least of the rounds is printed beside the median. The machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ccf_plugin.engine.precision import resolve_precision
from ccf_plugin.runs.environment import describe_environment
from ccf_plugin.runs.log import read_log

CPU = torch.device("cpu")

SETTINGS = ["data.train_per_class=64", "data.test_limit=100", "optim.epochs=2", "optim.decay_epochs=[1]", "threads=1"]
SETTINGS += ["evaluate.every=2", "evaluate.steps=1", "probe.pictures=false"]


def images_per_second(processes: int, data: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *launcher, "-m", "ccf_plugin", "train", "cifar_small", "--out", f"{folder}/run"]
        for setting in [f"data.name={data}", *SETTINGS]:
            command += ["--set", setting]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        return read_log(Path(folder) / "run")[1].images_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="data spec: cifar10, or folder:PATH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    command = ["tests/benchmarks/two_processes.py", *sys.argv[1:]]
    rounds = []
    for _ in range(arguments.rounds):
        one, two = (images_per_second(processes, arguments.data) for processes in (1, 2))
        rounds.append({"one": one, "two": two, "ratio": two / one})
        print(f"one {one:.1f}, two {two:.1f} images a second: {two / one:.2f}×")
    ratios = [found["ratio"] for found in rounds]
    print(f"least {min(ratios):.2f}×, median {statistics.median(ratios):.2f}×")
    if arguments.out is not None:
        found = describe_environment(CPU, resolve_precision("auto", CPU), command) | {"threads": 1}
        found |= {"settings": SETTINGS, "images_per_second": rounds, "ratio": statistics.median(ratios)}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
