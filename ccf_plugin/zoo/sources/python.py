"""The user's own code: ``python:package.module:factory``.

The factory may be a function, an nn.Module class or a ready nn.Module; in a recipe it is called with ``model.options``
and, where it has a parameter of that name, ``num_classes``. Modules in the working directory are found.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccf_plugin.errors import CCFError, InputError, one_line
from ccf_plugin.zoo.python_code import check_target, load_object, running_user_code
from ccf_plugin.zoo.sources.source import LoadedModel, Source, register_source

if TYPE_CHECKING:
    from torch import nn


def _load(target: str, *, pretrained: bool, checkpoint: Path | None, model_dir: Path) -> LoadedModel:
    """As the checkpoint describes it where it is a run's and of this code, else as the factory makes it."""
    from ccf_plugin.zoo.checkpoints import apply_state, load_state, read_metadata
    from ccf_plugin.zoo.sources.runs import from_metadata, model_in

    spec, name = f"python:{target}", target.rpartition(":")[2]
    if checkpoint is not None and checkpoint.suffix == ".safetensors":
        metadata = read_metadata(checkpoint)
        if metadata is not None and model_in(metadata) == spec:
            return from_metadata(metadata, checkpoint, spec=spec, name=name)
    model = _make(target, {})
    if checkpoint is not None:
        apply_state(model, load_state(checkpoint), source=str(checkpoint))
    return LoadedModel(model=model.float().eval(), spec=spec, name=name, num_classes=_num_classes(model))


def _build(target: str, *, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]) -> nn.Module:
    return _make(target, options, num_classes=num_classes)


def _make(target: str, options: Mapping[str, Any], *, num_classes: int | None = None) -> nn.Module:
    """Raises InputError where the import or the call fails, or the result is not an nn.Module."""
    from torch import nn

    factory = load_object(f"python:{target}")
    with running_user_code(f"python:{target}"):
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


def _num_classes(model: nn.Module) -> int | None:
    """What the model itself says; a guess from its last layer could be wrong, the first pass is not."""
    said = getattr(model, "num_classes", None)
    return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None


register_source(
    Source(
        "python",
        "python:package.module:factory",
        check_target,
        load=_load,
        build=_build,
        takes_checkpoint=True,
    )
)
