"""What all commands do on the terminal."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ccf_plugin.measure.evaluate import Progress


def is_first_process() -> bool:
    """Whether this is the one process of a job (accelerate, torchrun) that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def leave_job() -> None:
    """End a job of several processes in order."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def quiet_libraries() -> None:
    """Warnings that a user can do nothing about stay out of the way; the package's own are shown in one line."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", module=r"ccf_plugin\..*")
    warnings.showwarning = lambda message, *_, **__: print(f"ccf: note: {message}", file=sys.stderr)  # noqa: T201


def progress_on(console: Console, what: str) -> Progress:
    """A progress bar for a pass over batches; nothing where the console is no terminal."""
    from rich.progress import track

    return lambda batches, total: track(
        batches, what, total=total, console=console, transient=True, disable=not console.is_terminal
    )
