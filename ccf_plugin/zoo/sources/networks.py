"""The package's own networks: each a source of one model, trained by recipes or loaded from a checkpoint.

The keys of ``preact_resnet18`` are those of the paper's code and of what it follows (Rice et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.zoo.sources.source import (
    Build,
    CustomWeights,
    Load,
    LoadedModel,
    Source,
    check_options,
    register_source,
)

if TYPE_CHECKING:
    from torch import nn


_CIFAR = (3, 32, 32)


def _preact_resnet18(
    name: str, *, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]
) -> nn.Module:
    """The paper's network, RobustBench's PreActResNet."""
    from ccf_plugin.zoo.robustbench_models import robustbench_resnets

    check_options(name, options, ())
    if tuple(input_size) != _CIFAR:
        size = "×".join(map(str, input_size))
        raise InputError(f"{name} takes 3×32×32 images, found {size}; use narrow_preact_resnet18")
    resnets = robustbench_resnets()
    network: nn.Module = resnets.PreActResNet(
        resnets.PreActBlock, [2, 2, 2, 2], num_classes=num_classes, bn_before_fc=True, out_shortcut=True
    )
    return network


def _narrow_preact_resnet18(
    name: str, *, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]
) -> nn.Module:
    """The same for images of any size, with the options ``width`` (default 16) and ``blocks``."""
    from ccf_plugin.zoo.preact import NarrowPreActResNet

    check_options(name, options, ("width", "blocks"))
    width, blocks = options.get("width", 16), options.get("blocks", [2, 2, 2, 2])
    if not _is_count(width):
        raise InputError(f"{name}: width: expected a whole number of at least 1, found {width!r}")
    if not isinstance(blocks, list | tuple) or len(blocks) != 4 or not all(map(_is_count, blocks)):
        raise InputError(f"{name}: blocks: expected four counts such as [2, 2, 2, 2], found {blocks!r}")
    return NarrowPreActResNet(num_classes=num_classes, channels=input_size[0], width=width, blocks=blocks)


def _sizes_in(path: Path) -> tuple[int, dict[str, Any]]:
    """Channels and options of the narrow network whose weights a file holds; of another's, three and none."""
    from ccf_plugin.zoo.weight_files import read_content, state_dicts

    for state in state_dicts(read_content(path)).values():
        for key, first in state.items():
            prefix = key.removesuffix("conv1.weight")
            if key == prefix or first.ndim != 4 or f"{prefix}layer4.0.conv1.weight" not in state:
                continue
            blocks = [
                sum(other.startswith(f"{prefix}layer{stage}.") and other.endswith(".conv1.weight") for other in state)
                for stage in (1, 2, 3, 4)
            ]
            return first.shape[1], {"width": first.shape[0], "blocks": blocks}
    return 3, {}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _loading(build: Build) -> Load:
    def load(name: str, *, pretrained: bool, checkpoint: CustomWeights | None, model_dir: Path) -> LoadedModel:
        """Load the network; it is for three channels and ten classes unless the user or the file says otherwise."""
        from ccf_plugin.zoo.weights import restored

        weights = checkpoint or CustomWeights()
        if weights.path is None and pretrained:
            raise InputError(Fault("checkpoint", f"the weights of {name}", "none", "name their file in {checkpoint}"))

        channels, sizes = 3, dict[str, Any]()
        if weights.path is not None and build is _narrow_preact_resnet18:
            channels, sizes = _sizes_in(weights.path)
        options = {**sizes, **weights.options}

        def built(num_classes: int | None) -> nn.Module:
            size = (channels, *_CIFAR[1:])
            return build(name, num_classes=num_classes or 10, input_size=size, options=options)

        model, is_normalized = restored(built, weights)
        return LoadedModel(model, name, name, is_normalized=is_normalized)

    return load


for _name, _build in (("preact_resnet18", _preact_resnet18), ("narrow_preact_resnet18", _narrow_preact_resnet18)):
    register_source(Source(_name, _name, load=_loading(_build), build=_build, takes_checkpoint=True))
