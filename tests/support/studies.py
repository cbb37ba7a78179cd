"""Studies for tests: a file that trains in seconds, and run folders made of numbers, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tomli_w

from ccf_plugin import CrossClassResult
from ccf_plugin.files import write_atomically
from ccf_plugin.measuring.finished_runs import FinishedRun
from ccf_plugin.runs.layout import ENVIRONMENT, LOG, RECIPE, records_of, result_of
from ccf_plugin.runs.log import EpochRow, log_bytes
from ccf_plugin.training.recipe_files import load_recipe

COMMON = {
    "base": "digits",
    "model": {"options": {"width": 2, "blocks": [1, 1, 1, 1]}},
    "data": {"train_per_class": 4, "test_limit": 20},
    "attack": {"steps": 1},
    "evaluate": {"steps": 1},
    "optim": {"epochs": 2, "decay_epochs": [1]},
    "probe": {"every": 2, "pictures": False},
}
STUDY = {
    "seeds": [0, 1],
    "claims": ["madry.delta_cas > kd.delta_cas"],
    "common": COMMON,
    "runs": {"madry": {}, "kd": {"distill": [{"teacher": "run:madry", "weight": 0.8, "temperature": 2.0}]}},
}


def write_study(path: Path, **changes: object) -> Path:
    """A study's file: ``STUDY`` with these keys in place of its own."""
    path.write_text(tomli_w.dumps({**STUDY, **changes}))
    return path


def made_run(
    folder: Path,
    figures: Sequence[Mapping[str, float]],
    *,
    name: str = "run",
    seed: int = 0,
    records: Mapping[int, np.ndarray] | None = None,
    results: Mapping[int, CrossClassResult] | None = None,
    images: str = "the same",
) -> FinishedRun:
    """A run whose log has these figures epoch by epoch, and whose records and results, by epoch, are these."""
    folder.mkdir(parents=True)
    rows = [
        EpochRow(
            epoch=epoch,
            lr=0.1,
            train_loss=1.0,
            seconds=1.0,
            images_per_second=1.0,
            **{"train_robust_accuracy": 0.5, "test_clean_accuracy": 0.5, **row},
        )
        for epoch, row in enumerate(figures, 1)
    ]
    write_atomically(folder / LOG, log_bytes(rows, averaged=False, validated=False))
    write_atomically(folder / RECIPE, load_recipe("digits").as_toml().encode())
    write_atomically(folder / ENVIRONMENT, json.dumps({"command": ["ccf"], "images": {"test": images}}).encode())
    for epoch, record in (records or {}).items():
        path = records_of(folder, epoch)
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, counts=np.array([len(record)]), correct=np.packbits(record))
    for epoch, result in (results or {}).items():
        path = result_of(folder, epoch)
        path.parent.mkdir(exist_ok=True)
        result.save(path)
    return replace(FinishedRun.read(name, seed, folder), folder=folder)
