"""The command line, one file a family of commands: parse, call, print. ``main`` is ``ccf``."""

from ccf_plugin.cli.app import main

__all__ = ["main"]
