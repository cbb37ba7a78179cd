"""What all commands do on the terminal."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

from ccf_plugin.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ccf_plugin.measure.evaluate import Progress


def is_first_process() -> bool:
    """Whether this is the one process of a job (accelerate, torchrun) that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def leave_job() -> None:
    """End this process where it is one of a job of several; the last thing that a command does.

    It ends here and now: torch's DDP keeps gloo's threads alive beyond the group, and one that lets go of a tensor
    while the interpreter is being taken down would abort the process, and with it a job that has finished.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def refuse_several_processes(command: str, remedy: str) -> None:
    """Raise InputError inside a job of several processes (accelerate, torchrun), for a command of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"expected ccf {command} in one process, found a job of {os.environ['WORLD_SIZE']}; {remedy}")


def quiet_libraries() -> None:
    """Warnings that a user can do nothing about stay out of the way; the package's own are shown in one line."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module=r"ccf_plugin\..*")  # the same one once
    if is_first_process():
        warnings.showwarning = lambda message, *_, **__: print(f"ccf: note: {message}", file=sys.stderr)  # noqa: T201
    else:
        warnings.showwarning = lambda *_, **__: None


def open_console(*, stderr: bool = False) -> Console:
    """The terminal; silent in all processes of a job but the first.

    File and class names may hold what rich takes for markup or emoji; nothing of it is meant.
    """
    from rich.console import Console

    return Console(stderr=stderr, quiet=not is_first_process(), markup=False, emoji=False)


def progress_on(console: Console, task: str) -> Progress:
    """A progress bar, headed by the task, for a pass over batches; nothing where the console is no terminal."""
    from rich.markup import escape
    from rich.progress import track

    return lambda batches, total: track(
        batches, escape(task), total=total, console=console, transient=True, disable=not console.is_terminal
    )
