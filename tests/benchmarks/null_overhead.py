"""What CAS by chance, the decomposition and the intervals add to a probe's time: the trained ResNet-18, 1,000 images.

    python tests/benchmarks/null_overhead.py --data cifar10_test1000.npz --out …

Clean images are the quickest that a probe can have; under PGD-20 each image takes twenty passes more, forward and back.
CPU time of one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyautoattack
import torch

from ccf_plugin import CrossClassProbe, CrossClassResult, load_data, load_model


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
    with CrossClassProbe(model) as probe:
        started = time.process_time()
        result = probe.run(list(zip(images.split(250), labels.split(250), strict=True)))
        measuring = time.process_time() - started
    figures: dict[str, Callable[[CrossClassResult], Any]] = {
        "null": lambda fresh: fresh.null,
        "decomposition": lambda fresh: (fresh.shared_part, fresh.negative_part, fresh.in_logit_units),
        "intervals": lambda fresh: fresh.intervals(),
    }
    times: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(20):
        fresh = replace(result)  # nothing is known of it yet
        for name, compute in figures.items():
            started = time.process_time()
            compute(fresh)
            times[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    described = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cas": result.cas,
        "clean_pass_seconds": measuring,
        **{f"{name}_seconds": seconds for name, seconds in medians.items()},
        "share_of_a_clean_pass": sum(medians.values()) / measuring,
    }
    print(json.dumps(described, indent=1))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
