"""Measure the features that classes share, in any classifier and along adversarial training.

What is named here is public and stable; other modules are internal, and may change with any version.
``import ccf_plugin`` loads this file alone: torch, numpy and each part's libraries come when a name is first used, so
that ``ccf --help`` answers at once, and the probe needs torch and numpy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccf_plugin.errors import CCFError, DivergedError, Fault, InputError, UnavailableError
    from ccf_plugin.integrations.torchmetrics import ClassAttributionSimilarity
    from ccf_plugin.measuring.compare import Comparison, compare
    from ccf_plugin.measuring.evaluate import AttackSettings, MeasuredSplit, measure
    from ccf_plugin.measuring.settings import ProbeOptions
    from ccf_plugin.probe import (
        Confidence,
        CrossClassProbe,
        CrossClassResult,
        Head,
        LinearHead,
        attribution,
        cas_contributions,
        class_attribution,
        class_attribution_similarity,
        correlation_matrix,
        gradient_attribution,
        instance_matrix,
    )
    from ccf_plugin.probe.null import PermutationNull
    from ccf_plugin.runs.log import EpochRow
    from ccf_plugin.runs.metrics import METRICS, Metric
    from ccf_plugin.threat import ThreatModel, threat_model
    from ccf_plugin.training.interruption import Interrupted
    from ccf_plugin.training.loop import Reporter, train
    from ccf_plugin.training.objectives import OBJECTIVES, Objective, StepOutput
    from ccf_plugin.training.recipe import Recipe
    from ccf_plugin.training.recipe_files import load_recipe
    from ccf_plugin.training.run import Run
    from ccf_plugin.zoo.attacks import Attack, build_attack
    from ccf_plugin.zoo.datasets import ImageData, Split, load_data
    from ccf_plugin.zoo.models import load_model
    from ccf_plugin.zoo.readers import Arrays, ImageFiles, Reader, register_reader
    from ccf_plugin.zoo.robustbench_models import import_robustbench
    from ccf_plugin.zoo.sources import LoadedModel, Source, register_source

__all__ = [
    "METRICS",
    "OBJECTIVES",
    "Arrays",
    "Attack",
    "AttackSettings",
    "CCFError",
    "ClassAttributionSimilarity",
    "Comparison",
    "Confidence",
    "CrossClassProbe",
    "CrossClassResult",
    "DivergedError",
    "EpochRow",
    "Fault",
    "Head",
    "ImageData",
    "ImageFiles",
    "InputError",
    "Interrupted",
    "LinearHead",
    "LoadedModel",
    "MeasuredSplit",
    "Metric",
    "Objective",
    "PermutationNull",
    "ProbeOptions",
    "Reader",
    "Recipe",
    "Reporter",
    "Run",
    "Source",
    "Split",
    "StepOutput",
    "ThreatModel",
    "UnavailableError",
    "__version__",
    "attribution",
    "build_attack",
    "cas_contributions",
    "class_attribution",
    "class_attribution_similarity",
    "compare",
    "correlation_matrix",
    "gradient_attribution",
    "import_robustbench",
    "instance_matrix",
    "load_data",
    "load_model",
    "load_recipe",
    "measure",
    "register_reader",
    "register_source",
    "threat_model",
    "train",
]

# Each name's module.
_DEFINED_IN = {
    "errors": ("CCFError", "DivergedError", "Fault", "InputError", "UnavailableError"),
    "integrations.torchmetrics": ("ClassAttributionSimilarity",),
    "measuring.compare": ("Comparison", "compare"),
    "measuring.evaluate": ("AttackSettings", "MeasuredSplit", "measure"),
    "measuring.settings": ("ProbeOptions",),
    "probe": (
        *("Confidence", "CrossClassProbe", "CrossClassResult", "Head", "LinearHead", "attribution"),
        *("cas_contributions", "class_attribution", "class_attribution_similarity", "correlation_matrix"),
        *("gradient_attribution", "instance_matrix"),
    ),
    "probe.null": ("PermutationNull",),
    "runs.log": ("EpochRow",),
    "runs.metrics": ("METRICS", "Metric"),
    "threat": ("ThreatModel", "threat_model"),
    "training.interruption": ("Interrupted",),
    "training.loop": ("Reporter", "train"),
    "training.objectives": ("OBJECTIVES", "Objective", "StepOutput"),
    "training.recipe": ("Recipe",),
    "training.recipe_files": ("load_recipe",),
    "training.run": ("Run",),
    "zoo.attacks": ("Attack", "build_attack"),
    "zoo.datasets": ("ImageData", "Split", "load_data"),
    "zoo.models": ("load_model",),
    "zoo.readers": ("Arrays", "ImageFiles", "Reader", "register_reader"),
    "zoo.robustbench_models": ("import_robustbench",),
    "zoo.sources": ("LoadedModel", "Source", "register_source"),
}
_MODULES = {name: module for module, names in _DEFINED_IN.items() for name in names}
# The rooms whose tables plug-ins add to; the probe and its formulas come without them.
_EXTENDED = ("measuring", "runs", "training", "zoo")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ccf_plugin")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name].startswith(_EXTENDED):
        from ccf_plugin.plugins import load_plugins

        load_plugins()
    return getattr(import_module(f"ccf_plugin.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
