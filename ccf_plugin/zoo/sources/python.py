"""The user's own code: ``python:package.module:factory``.

The factory may be a function, an nn.Module class or a ready nn.Module; it is called with the options and, where it has
such a parameter and the number is known (in a recipe, or from a checkpoint), ``num_classes`` or ``n_classes``. An
option that is such a spec again stands for the object that it names. Modules in the working directory are found, and
those of RobustBench, whose architectures are the field's.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ccf_plugin.errors import CCFError, InputError, one_line
from ccf_plugin.zoo.python_code import check_target, is_python, load_object, running_user_code
from ccf_plugin.zoo.sources.source import CustomWeights, LoadedModel, Source, register_source

if TYPE_CHECKING:
    from torch import nn


def _load(target: str, *, pretrained: bool, checkpoint: CustomWeights | None, model_dir: Path) -> LoadedModel:
    """The model as the checkpoint describes it, if a run of this code wrote that; else as the factory makes it."""
    from ccf_plugin.zoo.checkpoints import read_metadata
    from ccf_plugin.zoo.sources.runs import from_metadata, model_in
    from ccf_plugin.zoo.weights import restored

    spec, name = f"python:{target}", target.rpartition(":")[2]
    weights = checkpoint or CustomWeights()
    if weights.path is not None and weights.path.suffix == ".safetensors" and weights == CustomWeights(weights.path):
        metadata = read_metadata(weights.path)
        if metadata is not None and model_in(metadata) == spec:
            return from_metadata(metadata, weights.path, spec=spec, name=name)
    model, is_normalized = restored(lambda classes: _make(target, weights.options, num_classes=classes), weights)
    return LoadedModel(model, spec, name, num_classes=_num_classes(model), is_normalized=is_normalized)


def _build(target: str, *, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]) -> nn.Module:
    return _make(target, options, num_classes=num_classes)


def _make(target: str, options: Mapping[str, Any], *, num_classes: int | None = None) -> nn.Module:
    """Raises InputError where the import or the call fails, or the result is not an nn.Module."""
    from torch import nn

    if target.startswith("robustbench."):
        from ccf_plugin.zoo.robustbench_models import import_robustbench

        import_robustbench()  # with what it needs to be imported at all
    factory = load_object(f"python:{target}")
    with running_user_code(f"python:{target}"):
        model = factory if isinstance(factory, nn.Module) else _call(target, factory, options, num_classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"python:{target}: expected an nn.Module from it, found {type(model).__name__}")
    if isinstance(model, nn.DataParallel) and len(model.device_ids) <= 1:
        return cast("nn.Module", model.module)  # the same function; on several devices it is one that hooks cannot see
    return model


def _call(target: str, factory: Any, options: Mapping[str, Any], num_classes: int | None) -> object:
    if not callable(factory):
        raise InputError(f"python:{target}: expected a function or class to call, found {type(factory).__name__}")
    arguments = {key: load_object(value) if is_python(value) else value for key, value in options.items()}
    with contextlib.suppress(TypeError, ValueError):  # some callables of C have no signature
        taken = inspect.signature(factory).parameters
        for name in ("num_classes", "n_classes") if num_classes is not None else ():
            if name in taken:
                arguments.setdefault(name, num_classes)
    try:
        return factory(**arguments)
    except CCFError:
        raise
    except Exception as error:
        raise InputError(
            f"python:{target}: calling it with { ({**arguments, **options}) } failed ({one_line(error)})"
        ) from error


def _num_classes(model: nn.Module) -> int | None:
    """What the model itself says, behind its normalisation or not; a guess from its last layer could be wrong."""
    count = getattr(model, "num_classes", getattr(getattr(model, "model", None), "num_classes", None))
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None


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
