"""RobustBench's model zoo: ``robustbench:[dataset/threat/]Name``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.folders import MODEL_FOLDER, folder_from
from ccf_plugin.zoo.installed import check_robustbench, robustbench_coordinates
from ccf_plugin.zoo.sources.source import CustomWeights, LoadedModel, Source, check_options, register_source

if TYPE_CHECKING:
    from torch import nn


def _check(name: str) -> None:
    check_robustbench(*robustbench_coordinates(name))


def _load(name: str, *, pretrained: bool, checkpoint: CustomWeights | None, model_dir: Path) -> LoadedModel:
    from ccf_plugin.zoo.robustbench_models import load_robustbench

    return load_robustbench(name, pretrained=pretrained, model_dir=model_dir)


def _build(name: str, *, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]) -> nn.Module:
    """With the options ``pretrained`` (default false) and ``model_dir``; classes and channels are the zoo's own."""
    from ccf_plugin.zoo.robustbench_models import load_robustbench

    check_options(f"robustbench:{name}", options, ("pretrained", "model_dir"))
    loaded = load_robustbench(
        name,
        pretrained=bool(options.get("pretrained", False)),
        model_dir=folder_from(options.get("model_dir"), MODEL_FOLDER),
    )
    if loaded.num_classes != num_classes:
        raise InputError(f"{loaded.spec} has {loaded.num_classes} classes, the data has {num_classes}")
    if loaded.input_size is not None and loaded.input_size[0] != input_size[0]:
        raise InputError(f"{loaded.spec} takes {loaded.input_size[0]} channels, the data has {input_size[0]}")
    return loaded.model.train()


register_source(
    Source(
        "robustbench",
        "robustbench:[dataset/threat/]Name",
        _check,
        load=_load,
        build=_build,
        untrained={"pretrained": False},
    )
)
