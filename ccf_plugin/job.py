"""This process among those of its job, as accelerate and torchrun tell it. Imports nothing heavy."""

from __future__ import annotations

import os


def job_size() -> int:
    """How many processes the job has; 1 outside a job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the one process of the job that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0
