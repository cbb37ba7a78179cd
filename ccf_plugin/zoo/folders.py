"""Where data sets and models lie: what was given, else an environment variable, else a folder here."""

from __future__ import annotations

import os
from pathlib import Path

from ccf_plugin.files import given_path

# The variable, and the folder where it is not set.
DATA_FOLDER = ("CCF_DATA", "data")
MODEL_FOLDER = ("CCF_MODELS", "models")


def folder_from(given: str | Path | None, default: tuple[str, str]) -> Path:
    """The path that was given; where that is None, the variable's, and where it is not set or empty, the default."""
    variable, folder = default
    return given_path(given if given is not None else os.environ.get(variable) or folder)
