"""Training images mixed in pairs, with labels that are shared between the two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """How each image of a batch is mixed with the next one of it, the last with the first.

    "mixup" blends them, λ x + (1 − λ) x' (Zhang et al. 2018); "cutmix" puts a rectangle of x' into x, λ being the share
    of pixels that stay (Yun et al. 2019). λ is drawn from Beta(alpha, alpha), once a batch as in their code; it follows
    from seed, epoch and number of the batch alone.
    """

    kind: Literal["mixup", "cutmix"]
    alpha: float
    classes: int
    seed: int

    def __call__(
        self, images: Tensor, others: Tensor, labels: Tensor, other_labels: Tensor, *, epoch: int, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Mix images float32 (B, C, H, W) with ``others``; labels are int64 (B,).

        Returns:
            The images, and each one's shares of the classes, float32 (B, K).
        """
        random = np.random.default_rng((self.seed, epoch, batch))
        share = float(random.beta(self.alpha, self.alpha))
        if self.kind == "mixup":
            mixed = share * images + (1 - share) * others
        else:
            rows, columns = (_within(size, share, random) for size in images.shape[2:])
            mixed = images.clone()
            mixed[:, :, rows, columns] = others[:, :, rows, columns]
            share = 1 - mixed[0, 0, rows, columns].numel() / mixed[0, 0].numel()
        one, other = (F.one_hot(each, self.classes) for each in (labels, other_labels))
        return mixed, share * one.float() + (1 - share) * other.float()


def _within(size: int, share: float, random: np.random.Generator) -> slice:
    """One side of the rectangle: √(1 − λ) of the image's, around a random pixel and cut off at the borders."""
    half = size * (1 - share) ** 0.5 / 2
    centre = int(random.integers(size))
    return slice(max(0, int(centre - half)), min(size, int(centre + half)))


def classes_of(labels: Tensor) -> Tensor:
    """int64 (B,): the labels, or the class with the largest share of each mixed image."""
    return labels if labels.dtype == torch.int64 else labels.argmax(1)
