"""What all commands do on the terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ccf_plugin.errors import InputError
from ccf_plugin.job import is_first_process, job_size

if TYPE_CHECKING:
    from rich.console import Console

    from ccf_plugin.measuring.evaluate import Batches, Progress


_is_quiet = False  # as the options before the command say
_END = os._exit  # as it is before a command keeps the process (`zoo.python_code.process_kept`)


def set_volume(*, quiet: bool, verbose: bool) -> None:
    """Print no tables and no progress (``quiet``); show the package's log on standard error (``verbose``)."""
    global _is_quiet
    _is_quiet = quiet
    log = logging.getLogger("ccf_plugin")
    for handler in [handler for handler in log.handlers if isinstance(handler, _LogHandler)]:
        log.removeHandler(handler)
    log.setLevel(logging.INFO if verbose else logging.NOTSET)
    if verbose:
        log.addHandler(_LogHandler())


class _LogHandler(logging.Handler):
    """Lines of the log as those of errors and notes are: "ccf: measuring.subject: …"."""

    def emit(self, record: logging.LogRecord) -> None:
        name = record.name.removeprefix("ccf_plugin.")
        print(f"ccf: {name}: {record.getMessage()}", file=sys.stderr)  # noqa: T201
        if record.exc_info:
            traceback.print_exception(record.exc_info[1])


def leave_job() -> None:
    """End this process where it is one of a job of several; the last thing that a command does.

    It ends here and now: torch's DDP keeps gloo's threads alive beyond the group, and one that lets go of a tensor
    while the interpreter is being taken down would abort the process, and with it a job that has finished.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        for stream in (_result_stream(), sys.stdout, sys.stderr):
            stream.flush()
        _END(0)


def refuse_several_processes(command: str, remedy: str) -> None:
    """Raise InputError inside a job of several processes (accelerate, torchrun), for a command of one."""
    if job_size() > 1:
        raise InputError(f"expected ccf {command} in one process, found a job of {job_size()}; {remedy}")


_kept: list[TextIO] = []  # the standard output that a command began with, while results have it for themselves


def quiet_libraries() -> None:
    """Keep what a user's own code and libraries say apart from a command's results; every command begins with it.

    What they print goes to standard error, so that standard output holds results alone (`preserve_stdout` ends that).
    Warnings that a user can do nothing about stay out of the way; the package's own are shown in one line.
    """
    if not _kept:
        _kept.append(_apart(sys.stdout))
        sys.stdout = sys.stderr
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module=r"ccf_plugin\..*")  # the same one once
    if is_first_process():
        warnings.showwarning = lambda message, *_, **__: print(f"ccf: note: {message}", file=sys.stderr)  # noqa: T201
    else:
        warnings.showwarning = lambda *_, **__: None


def _apart(stream: TextIO) -> TextIO:
    """The process's standard output under another number; its own leads to standard error from now on.

    So it is for what C code and other processes write. A stream that something has put in its place stays as it is.
    """
    errors = sys.__stderr__
    if stream is None or stream is not sys.__stdout__ or errors is None or errors is not sys.stderr:
        return stream
    stream.flush()
    own = os.fdopen(os.dup(stream.fileno()), "w", 1, encoding=stream.encoding, errors=stream.errors)
    os.dup2(errors.fileno(), stream.fileno())
    return own


@contextlib.contextmanager
def preserve_stdout() -> Iterator[None]:
    """Afterwards standard output is what it was."""
    before = sys.stdout
    try:
        yield
    finally:
        sys.stdout = before
        if _kept and (own := _kept.pop()) is not before:
            before.flush()
            os.dup2(own.fileno(), before.fileno())
            with contextlib.suppress(OSError):  # its reader has gone
                own.close()


def print_result(text: str) -> None:
    """Print to standard output, which holds nothing else."""
    print(text, file=_result_stream(), flush=True)


def print_json(content: Any) -> None:
    """Print a result's JSON values, on one line."""
    print_result(json.dumps(content, allow_nan=False))


def _result_stream() -> TextIO:
    return _kept[0] if _kept else sys.stdout


def open_console(*, stderr: bool = False) -> Console:
    """The terminal; silent under --quiet, and in all processes of a job but the first.

    File and class names may hold what rich takes for markup or emoji; nothing of it is meant.
    """
    from rich.console import Console

    file = sys.stderr if stderr else _result_stream()
    is_silent = _is_quiet or not is_first_process()
    return Console(file=file, quiet=is_silent, markup=False, emoji=False)


def check_names(*models: str, checkpoint: Path | None = None) -> None:
    """Raise InputError for models and weights that are not there, before torch is imported."""
    from ccf_plugin.files import expanded_path
    from ccf_plugin.measuring.names import check_model, is_result
    from ccf_plugin.zoo.folders import check_file

    for model in models:
        if not is_result(model):
            check_model(model)
    if checkpoint is not None:
        check_file(expanded_path(checkpoint))


def with_interval(figure: float, interval: tuple[float, float] | None, form: str = ".1%") -> str:
    """A figure and its 95 % interval: "40.5% (95%: 37.5% to 43.6%)"."""
    shown = format(figure, form)
    return shown if interval is None else f"{shown} (95%: {interval[0]:{form}} to {interval[1]:{form}})"


def print_line(console: Console, line: str) -> None:
    """A line of text as it is: not wrapped, nothing in it coloured."""
    console.print(line, highlight=False, soft_wrap=True)


def print_written(console: Console, files: Sequence[Path]) -> None:
    """Which files a command has written."""
    print_line(console, "Wrote " + ", ".join(map(str, files)))


def progress_on(console: Console, task: str, *, unit: str = "batch") -> Progress:
    """How far a pass over batches is, headed by the task: a bar, or without a terminal a line every half minute."""
    if not console.is_terminal:
        return lambda batches, total: _with_lines(console, task, batches, total, unit)
    from rich.markup import escape
    from rich.progress import track

    return lambda batches, total: track(batches, escape(task), total=total, console=console, transient=True)


def _with_lines(console: Console, task: str, batches: Batches, total: int, unit: str) -> Iterator[Any]:
    from ccf_plugin.engine.heartbeat import Heartbeat

    with Heartbeat(partial(print_line, console)) as heartbeat:
        heartbeat.begin(task, total, unit=unit)
        for done, batch in enumerate(batches, 1):
            yield batch
            heartbeat.step(done)
