"""What ``ccf`` is made of, and how anything that goes wrong ends: in one line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from ccf_plugin.cli import comparing, evaluating, probing, training
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
    evaluating.evaluate,
    evaluating.leaderboard,
    training.sweep,
    training.recipes,
):
    app.command()(command)


_INTERRUPTED = 130
_RESUMABLE = {
    "train": "; continue after the last finished epoch with --resume",
    "evaluate": "; run it again to continue after the last finished batch",
    "leaderboard": "; run it again to continue after the last finished model",
}


def main() -> NoReturn:
    """Run ``ccf``. What goes wrong becomes one line on standard error and an exit code: 2 for input, 1 for the rest."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # newer typers make this of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except CCFError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail(f"interrupted{_RESUMABLE.get(''.join(sys.argv[1:2]), '')}", _INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `ccf … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}", 1)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # of click's errors, wherever this typer keeps its click
        if usage is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "ccf")
        _fail(f"{usage().rstrip('.')}; see {command} --help", 2)


def _fail(message: str, exit_code: int) -> NoReturn:
    for line in message.splitlines():  # several only where a recipe has several faults
        print(f"ccf: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_code)
