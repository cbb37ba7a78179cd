"""The measurement: needs torch and numpy alone (and matplotlib when a picture is drawn)."""

from .attribution import (
    attribution,
    cas_contributions,
    class_attribution,
    class_attribution_similarity,
    correlation_matrix,
    instance_matrix,
)
from .head import Head
from .probe import CrossClassProbe
from .result import CrossClassResult

__all__ = [
    "CrossClassProbe",
    "CrossClassResult",
    "Head",
    "attribution",
    "cas_contributions",
    "class_attribution",
    "class_attribution_similarity",
    "correlation_matrix",
    "instance_matrix",
]
