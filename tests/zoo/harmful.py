"""An object that a safe loader must refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)
