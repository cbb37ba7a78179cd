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

_MODULES = {
    "METRICS": "runs.metrics",
    "OBJECTIVES": "training.objectives",
    "Arrays": "zoo.readers",
    "Attack": "zoo.attacks",
    "AttackSettings": "measuring.evaluate",
    "CCFError": "errors",
    "ClassAttributionSimilarity": "integrations.torchmetrics",
    "Comparison": "measuring.compare",
    "Confidence": "probe",
    "CrossClassProbe": "probe",
    "CrossClassResult": "probe",
    "DivergedError": "errors",
    "EpochRow": "runs.log",
    "Fault": "errors",
    "Head": "probe",
    "ImageData": "zoo.datasets",
    "ImageFiles": "zoo.readers",
    "InputError": "errors",
    "Interrupted": "training.interruption",
    "LinearHead": "probe",
    "LoadedModel": "zoo.sources",
    "MeasuredSplit": "measuring.evaluate",
    "Metric": "runs.metrics",
    "Objective": "training.objectives",
    "PermutationNull": "probe.null",
    "ProbeOptions": "measuring.settings",
    "Reader": "zoo.readers",
    "Recipe": "training.recipe",
    "Reporter": "training.loop",
    "Run": "training.run",
    "Source": "zoo.sources",
    "Split": "zoo.datasets",
    "StepOutput": "training.objectives",
    "ThreatModel": "threat",
    "UnavailableError": "errors",
    "attribution": "probe",
    "build_attack": "zoo.attacks",
    "cas_contributions": "probe",
    "class_attribution": "probe",
    "class_attribution_similarity": "probe",
    "compare": "measuring.compare",
    "correlation_matrix": "probe",
    "gradient_attribution": "probe",
    "import_robustbench": "zoo.robustbench_models",
    "instance_matrix": "probe",
    "load_data": "zoo.datasets",
    "load_model": "zoo.models",
    "load_recipe": "training.recipe_files",
    "measure": "measuring.evaluate",
    "register_reader": "zoo.readers",
    "register_source": "zoo.sources",
    "threat_model": "threat",
    "train": "training.loop",
}


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
