"""Versions of what is installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def installed_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed, as when it is used from a source folder."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed, by name."""
    versions = {name: installed_version(name) for name in names}
    return {name: version for name, version in versions.items() if version is not None}
