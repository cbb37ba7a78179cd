"""What ``ccf`` is made of, and how anything that goes wrong ends: in one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from io import TextIOWrapper
from typing import NoReturn

import typer

from ccf_plugin.cli import ablating, benchmarking, comparing, data, evaluating, probing, reporting, theory, training
from ccf_plugin.errors import CCFError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Cross-class features of classifiers: train adversarially, probe any model.",
)
for command in (
    training.train,
    probing.probe,
    comparing.compare,
    comparing.saliency,
    ablating.ablate,
    evaluating.evaluate,
    evaluating.leaderboard,
    reporting.report,
    training.sweep,
    training.recipes,
    theory.theory,
    benchmarking.bench,
    data.fix_tinyimagenet,
):
    app.command()(command)


_INTERRUPTED = 130
_RESUMABLE = {
    "train": "; continue from the last saved state with --resume",
    "evaluate": "; run it again to continue after the last finished batch",
    "leaderboard": "; run it again to continue after the last finished model",
}


def main() -> NoReturn:
    """Run ``ccf``. What goes wrong becomes one line on standard error and an exit code: 2 for input, 1 for the rest."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal of another encoding lacks our × and ·
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # newer typers make this of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except CCFError as error:
        _fail("\n".join(error.lines(_spell)), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail(f"interrupted{_RESUMABLE.get(''.join(sys.argv[1:2]), '')}", _INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `ccf … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(str(CCFError(_explain(error))), 1)
    except MemoryError:
        _fail("expected memory enough, found too little; use fewer images at once or a smaller model", 1)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # of click's errors, wherever this typer keeps its click
        if usage is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "ccf")
        _fail(f"{usage().rstrip('.')}; see {command} --help", 2)


def _spell(name: str) -> str:
    """A parameter as the command line calls it: ``limit`` is ``--limit``, ``class_name`` ``--class``; other keys stay.

    The library's errors name its own parameters; the option of a command that gives one has the same name in Python.
    """
    commands = getattr(typer.main.get_command(app), "commands", {})
    command = commands.get("".join(sys.argv[1:2]))
    for parameter in command.params if command is not None else ():
        if parameter.name == name:
            return next((option for option in parameter.opts if option.startswith("--")), name)
    return name


def _explain(error: OSError) -> str:
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its path and permissions"
    return f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}; {remedy}, then run again"


def _fail(message: str, exit_code: int) -> NoReturn:
    for line in message.splitlines():  # several only where a recipe has several faults
        print(f"ccf: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_code)
