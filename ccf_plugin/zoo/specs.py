"""Specs such as ``timm:resnet18``, ``folder:PATH`` or ``digits``: which entry of a table a spec belongs to.

Imports nothing heavy: the command line's help is made from the tables.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ccf_plugin.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """What a table holds under its prefix: "timm", whose form is "timm:name", or "digits", whose form is "digits"."""

    prefix: str
    form: str


E = TypeVar("E", bound=Entry)


def register(table: dict[str, E], entry: E) -> None:
    """Add an entry under its prefix. Raises InputError for a prefix that is taken or holds a colon."""
    if entry.prefix in table or ":" in entry.prefix:
        raise InputError(f"expected a prefix without a colon that is not taken, found {entry.prefix!r}; choose another")
    table[entry.prefix] = entry


def import_entries(package: str, path: Iterable[str], *, first: Sequence[str]) -> None:
    """Import every module of a package, so that each registers its entries: ``first``, then the others by name."""
    others = sorted(module.name for module in pkgutil.iter_modules(path))
    for name in dict.fromkeys((*first, *others)):
        importlib.import_module(f"{package}.{name}")


def find(table: Mapping[str, E], spec: str) -> tuple[E, str] | None:
    """The entry that a spec belongs to, and the name behind its prefix, or the spec itself; None: no such prefix."""
    prefix, _, name = spec.partition(":")
    entry = table.get(prefix) if prefix else None
    if entry is not None and entry.form == prefix:
        return (entry, spec) if spec == prefix else None
    return (entry, name) if entry is not None and name else None


def forms(table: Mapping[str, Entry]) -> str:
    """What help and messages say that a spec may be: "digits, folder:PATH or npz:PATH"."""
    *others, last = (entry.form for entry in table.values())
    return f"{', '.join(others)} or {last}" if others else last


def nearest(table: Mapping[str, Entry], spec: str) -> str:
    """``"; did you mean 'digits'?"`` for a prefix that the table does not have, or ``""``."""
    prefix = spec.partition(":")[0]
    return "" if prefix in table else did_you_mean(prefix, table)
