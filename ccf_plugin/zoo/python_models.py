"""Models from the user's own code: ``python:package.module:factory``."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ccf_plugin.errors import CCFError, InputError, did_you_mean
from ccf_plugin.zoo.containment import one_line

_FORM = "python:package.module:factory, e.g. python:mypackage.networks:ResNet18"


def build_python(target: str, options: Mapping[str, Any], *, num_classes: int | None = None) -> nn.Module:
    """The module that ``target`` (``package.module:factory``) makes when called with ``options``.

    The factory may be a function, an nn.Module class or a ready nn.Module; ``num_classes`` is passed where it has a
    parameter of that name. Modules in the working directory are found. Raises InputError where the import or the call
    fails, or the result is not an nn.Module.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not module_name or not attribute:
        raise InputError(f"expected {_FORM}, found 'python:{target}'")
    with _working_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise InputError(f"python:{target}: importing {module_name} failed ({one_line(error)})") from error
        if not hasattr(module, attribute):
            known = [name for name, value in vars(module).items() if callable(value)]
            raise InputError(f"python:{target}: {module_name} has no {attribute!r}{did_you_mean(attribute, known)}")
        factory = getattr(module, attribute)
        model = factory if isinstance(factory, nn.Module) else _call(target, factory, options, num_classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"python:{target}: expected an nn.Module from it, found {type(model).__name__}")
    return model


def _call(target: str, factory: Any, options: Mapping[str, Any], num_classes: int | None) -> object:
    if not callable(factory):
        raise InputError(f"python:{target}: expected a function or class to call, found {type(factory).__name__}")
    arguments = dict(options)
    with contextlib.suppress(TypeError, ValueError):  # some callables of C have no signature
        if num_classes is not None and "num_classes" in inspect.signature(factory).parameters:
            arguments.setdefault("num_classes", num_classes)
    try:
        return factory(**arguments)
    except CCFError:
        raise
    except Exception as error:
        raise InputError(f"python:{target}: calling it with {arguments} failed ({one_line(error)})") from error


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
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
