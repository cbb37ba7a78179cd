"""The type that every model adapter returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image
from torch import nn

Preprocess = Callable[[Image], Image]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def default_threat() -> dict[str, Any]:
    """The paper's norm and radius, for a model without its own."""
    return {"norm": "Linf", "eps": 8 / 255}


def are_other_classes(own: Sequence[str], found: Sequence[str]) -> bool:
    """Whether a model's class names are not the data's in their order; the data's may be "0", "1", …, for any."""
    if tuple(own) == tuple(found):
        return False
    nameless = [str(label) for label in range(len(found))]
    return sorted(own) == sorted(found) or list(found) != nameless


@dataclass
class LoadedModel:
    """A classifier with what is known about it.

    ``model`` maps float32 images (N, C, H, W) in [0, 1] to logits (N, K), and is in eval mode. ``data`` is the data
    spec to probe it on by default, and ``test_limit`` how many of its test images; ``threat`` holds the default norm
    and eps, and of a run also step_size and steps; ``preprocess`` is the resizing and cropping of its own data
    configuration, ``input_size`` (C, H, W). ``head`` and ``output`` are what a run's recipe has in [probe]. None means
    unknown (``preprocess``: images go in as they are).
    """

    model: nn.Module
    spec: str
    name: str
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    data: str | None = None
    threat: dict[str, Any] = field(default_factory=default_threat)
    preprocess: Preprocess | None = None
    input_size: tuple[int, int, int] | None = None
    test_limit: int | None = None
    head: str | None = None
    output: int | str | None = None
