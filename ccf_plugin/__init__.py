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
    from ccf_plugin.probe.metric import ClassAttributionSimilarity
    from ccf_plugin.runs.log import EpochRow
    from ccf_plugin.training.interruption import Interrupted
    from ccf_plugin.training.loop import Reporter, train
    from ccf_plugin.training.objectives import OBJECTIVES, Objective, StepOutput
    from ccf_plugin.training.recipe import Recipe
    from ccf_plugin.training.recipe_files import load_recipe
    from ccf_plugin.training.run import Run
    from ccf_plugin.zoo.models import load_model
    from ccf_plugin.zoo.robustbench_models import import_robustbench

__all__ = [
    "OBJECTIVES",
    "CCFError",
    "ClassAttributionSimilarity",
    "Confidence",
    "CrossClassProbe",
    "CrossClassResult",
    "DivergedError",
    "EpochRow",
    "Fault",
    "Head",
    "InputError",
    "Interrupted",
    "LinearHead",
    "Objective",
    "Recipe",
    "Reporter",
    "Run",
    "StepOutput",
    "UnavailableError",
    "__version__",
    "attribution",
    "cas_contributions",
    "class_attribution",
    "class_attribution_similarity",
    "correlation_matrix",
    "gradient_attribution",
    "import_robustbench",
    "instance_matrix",
    "load_model",
    "load_recipe",
    "train",
]

_NAMES_OF_MODULES = {
    "errors": (
        "CCFError",
        "DivergedError",
        "Fault",
        "InputError",
        "UnavailableError",
    ),
    "probe": (
        "Confidence",
        "CrossClassProbe",
        "CrossClassResult",
        "Head",
        "LinearHead",
        "attribution",
        "cas_contributions",
        "class_attribution",
        "class_attribution_similarity",
        "correlation_matrix",
        "gradient_attribution",
        "instance_matrix",
    ),
    "probe.metric": ("ClassAttributionSimilarity",),
    "runs.log": ("EpochRow",),
    "training.interruption": ("Interrupted",),
    "training.loop": (
        "Reporter",
        "train",
    ),
    "training.objectives": (
        "OBJECTIVES",
        "Objective",
        "StepOutput",
    ),
    "training.recipe": ("Recipe",),
    "training.recipe_files": ("load_recipe",),
    "training.run": ("Run",),
    "zoo.models": ("load_model",),
    "zoo.robustbench_models": ("import_robustbench",),
}
_MODULES = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ccf_plugin")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ccf_plugin.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
