"""Data as a user would write them, for ``python:zoo.own_data:NAME``: three classes of stripes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

CLASSES = ("left", "middle", "right")
called: list[str] = []


def _stripes(count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 3
    images = np.random.default_rng(count).integers(0, 60, (count, 6, 9), dtype=np.uint8)
    for label in range(3):
        images[labels == label, :, 3 * label : 3 * label + 3] += 150
    return images, labels


def stripes(split: str) -> tuple[Any, ...] | None:
    """With names for the classes."""
    called.append(split)
    return (*_stripes({"train": 18, "test": 12}[split]), CLASSES)


def nameless(split: str) -> tuple[Any, ...] | None:
    """Of five classes, of which the test split has three."""
    called.append(split)
    return _stripes(12) if split == "test" else (np.zeros((5, 6, 9), np.uint8), np.arange(5))


def tensors(split: str) -> tuple[Any, ...] | None:
    """In colour, channels first; the test split alone."""
    images, labels = _stripes(12)
    shifted = torch.tensor([0, 20, 40], dtype=torch.uint8)[None, :, None, None]
    return (torch.from_numpy(images)[:, None] + shifted, torch.from_numpy(labels)) if split == "test" else None
