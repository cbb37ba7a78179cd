"""The command line, one file a family of commands: parse, call, print. ``main`` is ``ccf``."""

from __future__ import annotations

import sys
from typing import NoReturn

from ccf_plugin.errors import CCFError
from ccf_plugin.plugins import load_plugins

__all__ = ["main"]


def main() -> NoReturn:
    """Run ``ccf``. Plug-ins come first, since help is made of the tables that they add to."""
    try:
        load_plugins()
    except CCFError as error:
        print(f"ccf: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    from ccf_plugin.cli.app import main as run

    run()
