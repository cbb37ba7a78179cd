"""A long run takes no more memory at its end than after its first epochs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import SMALLEST

CODE = """
import os, sys
from pathlib import Path
from ccf_plugin.training.loop import Reporter, train
from ccf_plugin.training.recipe_files import load_recipe

class Watch(Reporter):
    def epoch_finished(self, row):
        print(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"), flush=True)

train(load_recipe("digits", sys.argv[2:]), Path(sys.argv[1]), Watch())
"""
SETTINGS = [
    *(*SMALLEST, "data.train_per_class=30", "data.test_limit=100", "threads=1"),
    *("optim.epochs=200", "optim.batch_size=100", "average={kind='ema'}"),
    *("probe.instances=true", "checkpoints.every=10"),
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_does_not_grow_over_200_epochs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path / "run"), *SETTINGS]
    resident = [int(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.split()]
    assert len(resident) == 200
    after_ten, most = resident[9], max(resident[10:])
    print(f"{after_ten / 2**20:.1f} MB after 10 epochs, at most {most / 2**20:.1f} MB in the following 190")
    assert most <= 1.02 * after_ten
