"""Where models come from, one file per source: each registers a ``Source`` in ``SOURCES``.

A file that is added here, or any module that calls ``register_source``, is all that a new source takes: ``load_model``,
``build_model``, recipes, messages and the command line's help follow. Nothing heavy is imported before a model is.
"""

from ccf_plugin.zoo.sources.source import (
    SOURCES,
    CustomWeights,
    LoadedModel,
    Source,
    are_other_classes,
    buildable,
    loadable,
    register_source,
    taking_checkpoint,
)
from ccf_plugin.zoo.specs import import_entries

__all__ = [
    "SOURCES",
    "CustomWeights",
    "LoadedModel",
    "Source",
    "are_other_classes",
    "buildable",
    "loadable",
    "register_source",
    "taking_checkpoint",
]

# The order in which help and messages list them.
import_entries(__name__, __path__, first=("networks", "robustbench", "timm", "runs", "python"))
