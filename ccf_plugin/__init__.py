"""Measure the features that classes share, in any classifier and along adversarial training.

``import ccf_plugin`` needs torch and numpy alone; the training and the zoo load their libraries when used.
"""

from ccf_plugin.errors import CCFError, InputError, UnavailableError
from ccf_plugin.probe import (
    CrossClassProbe,
    CrossClassResult,
    Head,
    attribution,
    cas_contributions,
    class_attribution,
    class_attribution_similarity,
    correlation_matrix,
    instance_matrix,
)

__all__ = [
    "CCFError",
    "CrossClassProbe",
    "CrossClassResult",
    "Head",
    "InputError",
    "UnavailableError",
    "attribution",
    "cas_contributions",
    "class_attribution",
    "class_attribution_similarity",
    "correlation_matrix",
    "instance_matrix",
]
