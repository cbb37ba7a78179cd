"""Plug-ins: modules of other installed packages that add to the tables of losses, data, models and figures.

A package declares one in its pyproject.toml; importing the module registers what it adds:

    [project.entry-points.ccf_plugin]
    mine = "my_package.ccf"
"""

from __future__ import annotations

import contextlib
import functools
import sys
from importlib import metadata

from ccf_plugin.errors import Fault, InputError, one_line

GROUP = "ccf_plugin"


@functools.cache
def _not_imported() -> list[metadata.EntryPoint]:
    """The installed plug-ins that are still to be imported, in the order of their names: searched for once."""
    return sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name)


def load_plugins() -> None:
    """Import the installed plug-ins, each once in a process, in the order of their names.

    What they print goes to standard error. Raises InputError, naming the plug-in and its package, where one cannot be
    imported; the next call tries it again.
    """
    left = _not_imported()
    while left:
        entry = left.pop(0)  # before its import: the plug-in itself asks for names of this package
        try:
            with contextlib.redirect_stdout(sys.stderr):
                entry.load()
        except (Exception, SystemExit) as error:
            left.insert(0, entry)
            owner = "" if entry.dist is None else f" of {entry.dist.name} {entry.dist.version}"
            found = f"that importing {entry.value} fails ({one_line(error)})"
            remedy = "correct it, or uninstall its package"
            raise InputError(Fault(f"plug-in {entry.name!r}{owner}", "it to be imported", found, remedy)) from error
