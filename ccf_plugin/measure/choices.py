"""What a user may choose about a measurement. Imports nothing heavy: the command line's options are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Choices:
    """What a user may choose about a measurement; None is the model's own (or the default that ``ccf probe`` names)."""

    data: str | None = None
    clean: bool = False
    attack: str | None = None
    norm: str | None = None
    eps: float | str | None = None
    step_size: float | str | None = None
    steps: int | None = None
    limit: int | None = None
    head: str | None = None
    output: int | str | None = None
    batch_size: int = 250
    seed: int = 0
    precision: str = "float32"
    device: str = "auto"
    checkpoint: Path | None = None
    pretrained: bool = True
    model_dir: Path = Path("models")
    data_root: Path = Path("data")
    download: bool = False
