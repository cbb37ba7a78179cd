"""Models by spec: the public functions over the table of sources (``zoo.sources``). Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccf_plugin.errors import CCFError, Fault, InputError, one_line
from ccf_plugin.files import expanded_path
from ccf_plugin.zoo.folders import MODEL_FOLDER, folder_from
from ccf_plugin.zoo.sources import CustomWeights, LoadedModel, Source, buildable, loadable, taking_checkpoint
from ccf_plugin.zoo.specs import find, forms, nearest

if TYPE_CHECKING:
    from torch import nn


def load_model(
    spec: str,
    *,
    pretrained: bool = True,
    checkpoint: Path | None = None,
    checkpoint_key: str | None = None,
    options: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model_dir: Path | None = None,
) -> LoadedModel:
    """The classifier that ``spec`` names, in float32 and eval mode, taking [0, 1] images.

    ``spec`` is ``robustbench:[dataset/threat/]Name`` (weights in ``model_dir``), ``timm:name``, a run folder (its best
    weights, the averaged ones where it averages), a .safetensors checkpoint of a run, or of another source that is
    registered; or, with the user's weights, ``python:package.module:factory``, ``timm:name``, ``preact_resnet18`` or
    ``narrow_preact_resnet18``.

    Args:
        pretrained: False leaves RobustBench's and timm's models, and the package's own networks, untrained.
        checkpoint: the user's weights, found in the file by structure (``zoo.weights``). What of it was taken is said
            in a warning.
        checkpoint_key: which of several state dicts in it, such as "swa_state_dict".
        options: of the code that makes the network.
        num_classes: of the network; None: as many as the checkpoint's.
        mean: with ``std``, for a network that was trained on (images − mean) / std, per channel, of images in [0, 1].
            None: the checkpoint's own normalisation, timm's own of a timm model, or none.
        std: see ``mean``.
        model_dir: where RobustBench's weights lie; None: CCF_MODELS, else "models".

    Raises:
        InputError: a spec or file that is not right, or arguments that its model does not take.
        UnavailableError: weights that cannot be downloaded.
    """
    from ccf_plugin.engine.switches import torch_defaults

    sources = loadable()
    source, name = find(sources, spec) or (sources[""], spec)
    optional = {
        "checkpoint": checkpoint,
        "options": options or None,
        "num_classes": num_classes,
        "mean": mean,
        "std": std,
    }
    surplus = [argument for argument, value in optional.items() if value is not None]
    if surplus and not source.takes_checkpoint:
        takers = forms(taking_checkpoint())
        raise InputError(Fault(surplus[0], f"none, or a model with weights of your own ({takers})", repr(spec)))
    if checkpoint_key is not None and checkpoint is None:
        raise InputError(Fault("checkpoint_key", "a checkpoint that it is a key of", "none", "name it in {checkpoint}"))
    source.check(name)
    assert source.load is not None  # noqa: S101  (for mypy: it is loadable)
    custom = None
    if surplus:
        path = None if checkpoint is None else expanded_path(checkpoint)
        custom = CustomWeights(path, checkpoint_key, options or {}, num_classes, mean, std)
    folder = folder_from(model_dir, MODEL_FOLDER)
    with torch_defaults():
        return source.load(name, pretrained=pretrained, checkpoint=custom, model_dir=folder)


def takes_checkpoint(spec: str) -> bool:
    """Whether ``spec`` names a model that takes weights of the user's own."""
    entry = find(loadable(), spec)
    return entry is not None and entry[0].takes_checkpoint


def build_model(
    name: str,
    *,
    num_classes: int,
    input_size: tuple[int, int, int],
    options: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """The network ``name`` for ``num_classes`` classes and images of ``input_size`` (C, H, W) in [0, 1].

    Names: ``preact_resnet18`` (the paper's, RobustBench's PreActResNet, 3×32×32), ``narrow_preact_resnet18`` (options
    ``width``, default 16, and ``blocks``), ``timm:name`` (options go to ``timm.create_model``), ``robustbench:…`` and
    ``python:package.module:factory`` (options go to the factory), or of another source that is registered. Untrained
    unless the option ``pretrained`` of timm and RobustBench says so. With ``mean`` and ``std`` a ``Normalize`` layer
    comes first. Raises InputError for what does not fit, UnavailableError for weights that cannot be downloaded.
    """
    from ccf_plugin.engine.switches import torch_defaults
    from ccf_plugin.zoo.normalize import with_normalization

    source, rest = _find_buildable(name)
    assert source.build is not None  # noqa: S101  (for mypy: it is buildable)
    try:
        with torch_defaults():
            network = source.build(rest, num_classes=num_classes, input_size=input_size, options=dict(options or {}))
            return with_normalization(network, mean, std, channels=input_size[0])
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, CCFError):
            raise
        raise InputError(f"{name} cannot be built with {options or 'its defaults'} here: {one_line(error)}") from error


def check_name(name: str) -> None:
    """Raise InputError unless ``name`` has a form that ``build_model`` knows."""
    _find_buildable(name)


def _find_buildable(name: str) -> tuple[Source, str]:
    sources = buildable()
    entry = find(sources, name)
    if entry is None:
        raise InputError(f"model {name!r} is unknown; expected {forms(sources)}{nearest(sources, name)}")
    source, rest = entry
    source.check(rest)
    return source, rest
