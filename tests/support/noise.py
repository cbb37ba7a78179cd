"""Each image's own random numbers, written anew in NumPy's unsigned integers from the definition in `engine.noise`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, as Java and Vigna's C have it."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def keys(images: Tensor, seed: int) -> np.ndarray:
    levels = np.rint(images.flatten(1).numpy() * np.float32(255)).astype(np.uint64)
    weights = _mix(np.arange(1, levels.shape[1] + 1, dtype=np.uint64) * _STEP)
    with np.errstate(over="ignore"):
        return _mix((levels * weights).sum(1, dtype=np.uint64) + np.uint64(seed) * _STEP)


def integers(images: Tensor, seed: int, draw: int, count: int) -> np.ndarray:
    """The first ``count`` numbers below 2²⁴ of an image's draw (counted from 1), (N, count)."""
    with np.errstate(over="ignore"):
        streams = _mix(keys(images, seed) + np.uint64(draw) * _STEP)
        return _mix(streams[:, None] + np.arange(count, dtype=np.uint64) * _STEP) >> np.uint64(40)


def uniform(images: Tensor, seed: int, eps: float) -> Tensor:
    """What PGD adds to images at its start: evenly from -eps to eps."""
    numbers = integers(images, seed, 1, images[0].numel()) / 2**24
    return torch.from_numpy((-eps + 2 * eps * numbers).astype(np.float32)).view(images.shape)


def start_at_own_noise(patch: pytest.MonkeyPatch, seed: int) -> None:
    """Let attacks of torchattacks that start at ``images + empty_like(images).uniform_(-eps, eps)`` start there."""
    import torchattacks

    forward = torchattacks.PGD.forward

    def perturb(self: torchattacks.PGD, images: Tensor, labels: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Tensor, "uniform_", lambda tensor, low, high: tensor.copy_(uniform(images, seed, high)))
            return forward(self, images, labels)

    patch.setattr(torchattacks.PGD, "forward", perturb)
