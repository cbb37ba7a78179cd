"""The names of a run folder's files, once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

AVERAGE = "_average"  # marks what belongs to the averaged weights, in the log's columns and in file names


def checkpoint_of(run: Path, which: Literal["best", "last"]) -> Path:
    """The file of the weights that a run's folder stands for: the averaged ones where it has them, else the raw ones.

    The averaged model is the output of the methods that average (WAKE's Algorithm 2; KDSWA).
    """
    has_averaged = (run / f"best{AVERAGE}.safetensors").is_file()  # once an average was evaluated
    return run / f"{which}{AVERAGE if has_averaged else ''}.safetensors"


# All that a run writes into its folder, and all that --force removes from it.
RUN_FILES = (
    *("trackers", "recipe.toml", "environment.json", "log.csv", "probe", "epochs", "state", "saliency"),
    *(f"{name}{suffix}.safetensors" for name in ("best", "last") for suffix in ("", AVERAGE)),
)
