"""Measure the features that classes share, in any classifier and along adversarial training.

``import ccf_plugin`` needs torch and numpy alone, and loads them when a name is first used, so that ``ccf --help``
answers at once. The training and the zoo load their libraries when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ccf_plugin.errors import CCFError, InputError, UnavailableError

if TYPE_CHECKING:
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

__all__ = [
    "CCFError",
    "Confidence",
    "CrossClassProbe",
    "CrossClassResult",
    "Head",
    "InputError",
    "LinearHead",
    "UnavailableError",
    "attribution",
    "cas_contributions",
    "class_attribution",
    "class_attribution_similarity",
    "correlation_matrix",
    "gradient_attribution",
    "instance_matrix",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import ccf_plugin.probe

    return getattr(ccf_plugin.probe, name)


def __dir__() -> list[str]:
    return __all__
