"""The user's own code by spec, ``python:package.module:name``: models, data, attacks and losses come from here alone.

Such a spec runs code, so the user gives it on the command line. A recipe file may hold one only where
``allow_code`` says so. One in a checkpoint or a saved result is not followed: the user is asked to type it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig
import traceback
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccf_plugin.errors import Fault, InputError, did_you_mean, one_line

_PREFIX = "python:"
_PACKAGE = str(Path(__file__).parents[1])
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def is_python(spec: object) -> bool:
    """Whether this is text that names code."""
    return isinstance(spec, str) and spec.startswith(_PREFIX)


def load_object(spec: str) -> Any:
    """What ``python:package.module:name`` names. Modules in the working directory are found.

    Raises InputError for another form, an import that fails, and a module without such a name.
    """
    if not is_python(spec):
        raise _not_a_name(spec)
    target = spec.removeprefix(_PREFIX)
    check_target(target)
    module_name, _, name = target.partition(":")
    with running_user_code(spec):
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
            hint = "; Python looks in the folder where you are, and in PYTHONPATH" if is_missing else ""
            raise InputError(f"{spec}: importing {module_name} failed ({one_line(error)}){hint}") from error
        if not hasattr(module, name):
            known = [other for other, value in vars(module).items() if callable(value)]
            raise InputError(f"{spec}: {module_name} has no {name!r}{did_you_mean(name, known)}")
        return getattr(module, name)


def check_target(target: str) -> None:
    """Raise InputError unless ``target`` has the form ``package.module:name``; nothing is imported."""
    module_name, _, name = target.partition(":")
    if not module_name or not name or "/" in module_name or module_name.endswith(".py"):
        raise _not_a_name(f"{_PREFIX}{target}")


def failed(source: str, error: Exception) -> InputError:
    """One line on an exception out of such code, with the place in it, or in what it called, where it was raised."""
    return _failed(source, error, place_in_user_code(error) or traceback.extract_tb(error.__traceback__)[-1])


def fault_of_user_code(error: BaseException) -> InputError | None:
    """One line on an exception that went through the user's own code last; None where it is the package's own fault."""
    place = place_in_user_code(error)
    return None if place is None else _failed("your code", error, place)


def place_in_user_code(error: BaseException) -> traceback.FrameSummary | None:
    """Where in files of neither this package nor an installed one an exception arose, below the package's last call."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(_PACKAGE):
            return None
        if not frame.filename.startswith(("<", *_INSTALLED)):
            return frame
    return None


def _failed(source: str, error: BaseException, place: traceback.FrameSummary) -> InputError:
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return InputError(f"{source}: expected it to run, found {one_line(error)} ({where}); correct the code")


@contextlib.contextmanager
def running_user_code(spec: str) -> Iterator[None]:
    """While such code is imported or called: it finds its modules, and may not end the program.

    Raises InputError where it would: by ``sys.exit``, or because argparse does not know ``ccf``'s own arguments.
    """
    usage, leave = ArgumentParser.print_usage, ArgumentParser.exit
    ArgumentParser.print_usage = lambda *_: None  # type: ignore[method-assign]
    ArgumentParser.exit = lambda _, status=0, message=None: sys.exit(status)  # type: ignore[assignment, method-assign]
    try:
        with process_kept(), working_directory_importable():
            yield
    except SystemExit as error:
        raise ends_program(spec, error) from error
    finally:
        ArgumentParser.print_usage, ArgumentParser.exit = usage, leave  # type: ignore[method-assign]


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """While code runs that might end the process at once: ``os._exit`` is ``sys.exit``, but in forked processes."""
    end, own = os._exit, os.getpid()
    os._exit = lambda status: sys.exit(status) if os.getpid() == own else end(status)
    try:
        yield
    finally:
        os._exit = end


def ends_program(spec: str, error: SystemExit) -> InputError:
    """One line on code that would end the program, with the place where it does; ``spec`` names it, if known."""
    frames = [(frame.f_globals.get("__name__"), frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    parses = any(module == "argparse" for module, *_ in frames)
    users = [(frame, line) for module, frame, line in frames if module not in ("argparse", "_sitebuiltins", __name__)]
    place = f"{Path(users[-1][0].f_code.co_filename).name}, line {users[-1][1]}" if users else "it"
    if parses:
        remedy = "move that under `if __name__ == '__main__':`"
        expected, found = "code that leaves the command line to ccf", f"that it parses the command line ({place})"
    else:
        remedy = "raise an exception instead"
        expected, found = "code that returns", f"that it ends the program by sys.exit({error.code!r}) ({place})"
    return InputError(Fault(spec, expected, found, remedy))


@contextlib.contextmanager
def working_directory_importable() -> Iterator[None]:
    """While code is imported or called that may import more."""
    # The ``ccf`` script, unlike ``python -m``, starts without it. Last, so that it shadows nothing installed.
    directory = str(Path.cwd())
    added = directory not in sys.path and "" not in sys.path
    if added:
        sys.path.append(directory)
    try:
        yield
    finally:
        if added and directory in sys.path:
            sys.path.remove(directory)


def code_in(content: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every value of tables and lists, however deep, that names code, with its key ("distill.0.teacher")."""
    if is_python(content):
        yield key, str(content)
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from code_in(value, f"{key}.{name}".lstrip("."))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for number, value in enumerate(content):
            yield from code_in(value, f"{key}.{number}")


def _not_a_name(spec: str) -> InputError:
    return InputError(f"expected python:package.module:name, e.g. python:mypackage.mymodule:thing, found {spec!r}")
