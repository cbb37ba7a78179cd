"""Models from the user's own code: ``python:package.module:factory``."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ccf_plugin.errors import CCFError, InputError, one_line
from ccf_plugin.zoo.python_code import load_object, working_directory_importable


def build_python(target: str, options: Mapping[str, Any], *, num_classes: int | None = None) -> nn.Module:
    """The module that ``target`` (``package.module:factory``) makes when called with ``options``.

    The factory may be a function, an nn.Module class or a ready nn.Module; ``num_classes`` is passed where it has a
    parameter of that name. Modules in the working directory are found. Raises InputError where the import or the call
    fails, or the result is not an nn.Module.
    """
    factory = load_object(f"python:{target}")
    with working_directory_importable():
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
