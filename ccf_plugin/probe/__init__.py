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
from ccf_plugin.probe.confidence import Confidence, McNemar, mcnemar, tango, tango_p, wilson
from ccf_plugin.probe.groups import Association, mantel, within_minus_between
from ccf_plugin.probe.head import Head, LinearHead
from ccf_plugin.probe.null import PermutationNull, permutation_null
from ccf_plugin.probe.probe import CrossClassProbe
from ccf_plugin.probe.result import CrossClassResult

__all__ = [
    "Association",
    "Confidence",
    "CrossClassProbe",
    "CrossClassResult",
    "Head",
    "LinearHead",
    "McNemar",
    "PermutationNull",
    "attribution",
    "cas_contributions",
    "class_attribution",
    "class_attribution_similarity",
    "correlation_matrix",
    "gradient_attribution",
    "instance_matrix",
    "mantel",
    "mcnemar",
    "permutation_null",
    "tango",
    "tango_p",
    "wilson",
    "within_minus_between",
]
