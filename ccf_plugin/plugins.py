"""Plug-ins: modules of other installed packages that add to the tables of losses, data, models and figures.

A package declares one in its pyproject.toml; importing the module registers what it adds:

    [project.entry-points.ccf_plugin]
    mine = "my_package.ccf"
"""

from __future__ import annotations

import contextlib
import sys
from importlib import metadata

from ccf_plugin.errors import Fault, InputError, one_line

GROUP = "ccf_plugin"
_loaded: set[str] = set()


def load_plugins() -> None:
    """Import the installed plug-ins, each once in a process, in the order of their names.

    What they print goes to standard error. Raises InputError, naming the plug-in and its package, where one cannot be
    imported; the next call tries it again.
    """
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in _loaded:
            continue
        _loaded.add(entry.name)  # first: the plug-in itself asks for names of this package
        try:
            with contextlib.redirect_stdout(sys.stderr):
                entry.load()
        except (Exception, SystemExit) as error:
            _loaded.discard(entry.name)
            owner = "" if entry.dist is None else f" of {entry.dist.name} {entry.dist.version}"
            found = f"that importing {entry.value} fails ({one_line(error)})"
            remedy = "correct it, or uninstall its package"
            raise InputError(Fault(f"plug-in {entry.name!r}{owner}", "it to be imported", found, remedy)) from error
