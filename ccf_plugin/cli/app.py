"""What ``ccf`` is made of, and how anything that goes wrong ends: in one line and an exit code."""

from __future__ import annotations

import ast
import errno
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from ccf_plugin.cli import (
    ablating,
    benchmarking,
    carrying,
    comparing,
    data,
    environment,
    evaluating,
    probing,
    reporting,
    saliency,
    studying,
    theory,
    training,
)
from ccf_plugin.cli.console import preserve_stdout, set_volume
from ccf_plugin.cli.help import Command, Group
from ccf_plugin.errors import CCFError, InputError
from ccf_plugin.zoo.python_code import ends_program, fault_of_user_code, process_kept

_log = logging.getLogger(__name__)
app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    cls=Group,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ccf_plugin import __version__

        typer.echo(f"ccf_plugin {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _before_each(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No tables, no progress: files, --json, notes and errors alone.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the package's log, on standard error.")
    ] = False,
) -> None:
    """Cross-class features of classifiers: train adversarially, probe any model."""
    set_volume(quiet=quiet, verbose=verbose)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (
    training.train,
    probing.probe,
    comparing.compare,
    saliency.saliency,
    ablating.ablate,
    evaluating.evaluate,
    evaluating.leaderboard,
    reporting.report,
    studying.study,
    studying.sweep,
    training.recipes,
    theory.theory,
    benchmarking.bench,
    carrying.pack,
    carrying.unpack,
    data.fix_tinyimagenet,
    environment.env,
):
    app.command(cls=Command)(command)


_INTERRUPTED = 130
_RESUMABLE = {
    "train": "; continue from the last saved state with --resume",
    "study": "; the same command goes on",
    "sweep": "; the same command goes on",
    "evaluate": "; run it again to continue after the last finished batch",
    "leaderboard": "; run it again to continue after the last finished model",
}


def main() -> NoReturn:
    """Run ``ccf``. What goes wrong becomes one line on standard error and an exit code: 2 for input, 1 for the rest."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal of another encoding lacks our × and ·
            stream.reconfigure(errors="backslashreplace")
    try:
        with preserve_stdout(), process_kept():
            code = app(standalone_mode=False, prog_name="ccf")
        if code == _INTERRUPTED:  # newer typers make this of Ctrl-C
            raise KeyboardInterrupt
    except SystemExit as error:  # no command raises one: a user's model, loss or attack does, and typer's completion
        if _is_completing():
            raise
        if isinstance(error.__context__, BrokenPipeError):  # rich's and typer's answer to a reader that has gone
            _leave_a_broken_pipe()
        _fail("\n".join(ends_program("", error).lines(_spell)), InputError.exit_code)
    except CCFError as error:
        _fail("\n".join(error.lines(_spell)), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail(f"interrupted{_RESUMABLE.get(_command_name(), '')}", _INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `ccf … | head`
        _leave_a_broken_pipe()
    except OSError as error:
        _fail(str(CCFError(_explain(error))), 1)
    except MemoryError:
        _fail("expected memory enough, found too little; use fewer images at once or a smaller model", 1)
    except BaseException as error:  # of a user's code too, which may raise what is no Exception
        usage = getattr(error, "format_message", None)  # of click's errors, wherever this typer keeps its click
        if usage is None:
            of_user = fault_of_user_code(error)
            if of_user is None:
                raise
            _log.info("the whole traceback", exc_info=error)
            _fail("\n".join(of_user.lines(_spell)), of_user.exit_code)
        command = getattr(getattr(error, "ctx", None), "command_path", "ccf")
        _fail(f"{usage().rstrip('.')}; see {command} --help", 2)
    sys.exit(code)


def _leave_a_broken_pipe() -> NoReturn:
    if sys.__stdout__ is not None:
        sys.stdout = sys.__stdout__  # which typer has wrapped
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def _spell(reference: str) -> str:
    """A parameter, perhaps with a value, as it is typed: ``class_name`` is ``--class``, ``limit=5`` is ``--limit 5``.

    The library's errors name its own parameters; the option of a command that gives one has the same name in Python.
    What is no option of this command stays as it is.
    """
    name, equals, value = reference.partition("=")
    command = getattr(typer.main.get_command(app), "commands", {}).get(_command_name())
    for parameter in command.params if command is not None else ():
        options = [option for option in parameter.opts if option.startswith("--")]
        if parameter.name == name and options:
            return _with_value(options, parameter.secondary_opts, value) if equals else " or ".join(options)
    return reference


def _with_value(options: Sequence[str], opposites: Sequence[str], text: str) -> str:
    """An option and its value, which Python writes as ``text``; a list or a mapping is the option several times."""
    value = ast.literal_eval(text)
    if isinstance(value, bool):
        return options[0] if value else opposites[0]
    if isinstance(value, dict):
        value = [f"{key}={entry}" for key, entry in value.items()]
    values = value if isinstance(value, list) else [value]
    return " ".join(f"{options[0]} {shlex.quote(str(value))}" for value in values)


def _command_name() -> str:
    """The first word that is no option: those before the command take no value."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def _is_completing() -> bool:
    """Whether a shell asks what may follow, or a user for the shell's completion."""
    return "_CCF_COMPLETE" in os.environ or not {"--show-completion", "--install-completion"}.isdisjoint(sys.argv)


def _explain(error: OSError) -> str:
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its path and permissions"
    return f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}; {remedy}, then run again"


def _fail(message: str, exit_code: int) -> NoReturn:
    for line in message.splitlines():  # several only where a recipe has several faults
        print(f"ccf: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_code)
