"""Networks for recipes, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ccf_plugin.errors import CCFError, InputError, did_you_mean, one_line
from ccf_plugin.files import given_path
from ccf_plugin.zoo.normalize import with_normalization

_OWN_NAMES = ("preact_resnet18", "narrow_preact_resnet18")
_KINDS = ("timm", "robustbench", "python")
_FORMS = (*_OWN_NAMES, "timm:NAME", "robustbench:NAME", "python:package.module:factory")


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
    ``width``, default 16, and ``blocks``), ``timm:NAME`` (options go to ``timm.create_model``), ``robustbench:NAME``
    and ``python:package.module:factory`` (options go to the factory). Untrained unless the option ``pretrained`` of
    timm and RobustBench says so. With ``mean`` and ``std`` a ``Normalize`` layer comes first. Raises InputError for
    what does not fit, UnavailableError for weights that cannot be downloaded.
    """
    check_name(name)
    try:
        network = _build(name, num_classes, input_size, dict(options or {}))
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, CCFError):
            raise
        raise InputError(f"{name} cannot be built with {options or 'its defaults'} here: {one_line(error)}") from error
    return with_normalization(network, mean, std, channels=input_size[0])


def _build(name: str, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]) -> nn.Module:
    kind, _, rest = name.partition(":")
    if name == "preact_resnet18":
        network = _preact_resnet18(num_classes, input_size, options)
    elif name == "narrow_preact_resnet18":
        network = _narrow_preact_resnet18(num_classes, input_size, options)
    elif kind == "timm":
        from ccf_plugin.zoo.timm_models import build_timm

        network = build_timm(rest, num_classes=num_classes, input_size=input_size, options=options)
    elif kind == "robustbench":
        network = _robustbench(rest, num_classes, input_size, options)
    else:
        from ccf_plugin.zoo.python_models import build_python

        network = build_python(rest, options, num_classes=num_classes)
    return network


def check_name(name: str) -> None:
    """Raise InputError unless ``name`` has a form that ``build_model`` knows."""
    kind, separator, rest = name.partition(":")
    if name not in _OWN_NAMES and not (separator and kind in _KINDS and rest):
        raise InputError(f"model {name!r} is unknown; expected {', '.join(_FORMS)}{did_you_mean(name, _OWN_NAMES)}")


def _preact_resnet18(num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]) -> nn.Module:
    from ccf_plugin.zoo.robustbench_models import robustbench_resnets

    _check_options("preact_resnet18", options, ())
    if tuple(input_size) != (3, 32, 32):
        size = "×".join(map(str, input_size))
        raise InputError(f"preact_resnet18 takes 3×32×32 images, found {size}; use narrow_preact_resnet18")
    resnets = robustbench_resnets()
    network: nn.Module = resnets.PreActResNet(
        resnets.PreActBlock, [2, 2, 2, 2], num_classes=num_classes, bn_before_fc=True, out_shortcut=True
    )
    return network


def _narrow_preact_resnet18(
    num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]
) -> nn.Module:
    from ccf_plugin.zoo.preact import NarrowPreActResNet

    _check_options("narrow_preact_resnet18", options, ("width", "blocks"))
    width, blocks = options.get("width", 16), options.get("blocks", [2, 2, 2, 2])
    if not _is_count(width):
        raise InputError(f"narrow_preact_resnet18: width: expected a whole number of at least 1, found {width!r}")
    if not isinstance(blocks, list | tuple) or len(blocks) != 4 or not all(map(_is_count, blocks)):
        raise InputError(f"narrow_preact_resnet18: blocks: expected four counts such as [2, 2, 2, 2], found {blocks!r}")
    return NarrowPreActResNet(num_classes=num_classes, channels=input_size[0], width=width, blocks=blocks)


def _robustbench(
    name: str, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]
) -> nn.Module:
    from ccf_plugin.zoo.robustbench_models import load_robustbench

    _check_options(f"robustbench:{name}", options, ("pretrained", "model_dir"))
    loaded = load_robustbench(
        name,
        pretrained=bool(options.get("pretrained", False)),
        model_dir=given_path(options.get("model_dir", "models")),
    )
    if loaded.num_classes != num_classes:
        raise InputError(f"{loaded.spec} has {loaded.num_classes} classes, the data has {num_classes}")
    if loaded.input_size is not None and loaded.input_size[0] != input_size[0]:
        raise InputError(f"{loaded.spec} takes {loaded.input_size[0]} channels, the data has {input_size[0]}")
    return loaded.model.train()


def _check_options(name: str, options: Mapping[str, Any], valid: Sequence[str]) -> None:
    for key in options:
        if key not in valid:
            known = ", ".join(valid) or "none"
            raise InputError(f"{name} has no option {key!r}; its options: {known}{did_you_mean(key, valid)}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
