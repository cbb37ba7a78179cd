"""The measurement: needs torch and numpy alone (and matplotlib when a picture is drawn)."""

from ccf_plugin.probe.attribution import (
    attribution,
    cas_contributions,
    class_attribution,
    class_attribution_similarity,
    correlation_matrix,
    gradient_attribution,
    instance_matrix,
)
from ccf_plugin.probe.confidence import Confidence
from ccf_plugin.probe.head import Head, LinearHead
from ccf_plugin.probe.probe import CrossClassProbe
from ccf_plugin.probe.result import CrossClassResult

__all__ = [
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
]
