"""What a name on the command line stands for, a model or a saved result: answered from names and paths alone.

Imports nothing heavy, so that a mistyped name is answered at once.
"""

from __future__ import annotations

from pathlib import Path

from ccf_plugin.zoo.sources import loadable
from ccf_plugin.zoo.sources.runs import checkpoint_at
from ccf_plugin.zoo.specs import find


def is_result(name: str) -> bool:
    """Whether a name is that of a saved result: its .npz or .json, or what both begin with."""
    path = Path(name)
    stem = path.with_suffix("") if path.suffix in (".npz", ".json") else path
    files = [stem.parent / f"{stem.name}{suffix}" for suffix in (".npz", ".json")]
    return path.suffix in (".npz", ".json") or all(file.is_file() for file in files)


def check_model(name: str) -> None:
    """Raise InputError for a model of an unknown kind, a path with nothing there, and a name that its kind refuses."""
    entry = find(loadable(), name)
    if entry is None:
        checkpoint_at(name)
    else:
        entry[0].check(entry[1])
