"""What the probe stores, sends and takes as classes K and features n grow: the figures of docs/how-to/machines.md.

    python tests/benchmarks/scaling.py 10x512 1000x2048 10000x1024

Each size runs in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from ccf_plugin import CrossClassProbe

BATCH = 256


def measure(classes: int, features: int) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, features), nn.ReLU(), nn.Linear(features, classes)).eval()
    images = torch.rand(BATCH, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad(), CrossClassProbe(model) as probe:
        times = []
        for number in range(max(8, 2 * classes // BATCH)):
            labels = (torch.arange(BATCH) + BATCH * number) % classes
            model(images + number)
            started = time.perf_counter()
            probe.update(labels)
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        result = probe.compute()
        computed = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        written = result.save(Path(folder) / "result")
        saved = time.perf_counter() - started
        sizes = " + ".join(f"{path.stat().st_size / 1e6:.1f}" for path in written)
    sent = 8 * classes * (features + (2 * classes if result.confusion is not None else 0))
    update = 1e3 * sorted(times)[len(times) // 2]
    return (
        f"| {classes:,} × {features:,} | {sent / 1e6:.2f} | {update:.1f} "
        f"| {computed:.2f} | {(peak - before) / 1024:.0f} | {sizes} | {saved:.1f} |"
    )


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv) or len(sys.argv) == 1:
        print(__doc__)
    elif len(sys.argv) == 2:
        torch.set_num_threads(1)
        print(measure(*map(int, sys.argv[1].split("x"))))
    else:
        print(f"| K × n | sent, MB | update of {BATCH}, ms | compute, s | peak, MB | npz + json, MB | save, s |")
        print("|---|---|---|---|---|---|---|")
        for size in sys.argv[1:]:
            subprocess.run([sys.executable, __file__, size], check=True)
