"""Temporal ensembling: each training image's own past predictions as its soft target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ccf_plugin.training.recipe import EnsemblingSection


class TemporalEnsemble:
    """Running predictions p̂ of N training images, and the loss that pulls the model towards them.

    An image's p ← decay · p + (1 − decay) · softmax(f(x)), once an epoch where it comes, on the clean augmented image
    in eval mode; p̂ is p scaled to a sum of 1. The loss is w(t) · mean of (softmax(f(x')) − p̂)² over images and
    classes, w(t) = weight · exp(−5 (1 − t)²), t from 0 to 1 over the ramp (Laine and Aila 2017; Dong et al. 2022, who
    put it under adversarial training).

    It takes 4 · N · K bytes on the training device: 2 MB for CIFAR-10, 5.1 GB for ImageNet.

    Args:
        count: N.
        classes: K.
    """

    def __init__(self, section: EnsemblingSection, count: int, classes: int, device: torch.device) -> None:
        self._section = section
        self.predictions = torch.zeros(count, classes, dtype=torch.float32, device=device)

    def weight(self, epoch: int) -> float:
        """w in an epoch (counted from 1); 0 before the ramp begins."""
        start, end = self._section.ramp
        if epoch < start:
            return 0.0
        return self._section.weight * math.exp(-5 * (1 - min(1.0, (epoch - start) / (end - start))) ** 2)

    def update(self, indices: Tensor, logits: Tensor) -> None:
        """Take the model's logits (B, K) of clean images into their running predictions."""
        decay = self._section.decay
        self.predictions[indices] = decay * self.predictions[indices] + (1 - decay) * logits.detach().softmax(1)

    def loss(self, epoch: int, indices: Tensor, logits: Tensor) -> Tensor:
        """The weighted loss, a scalar, of the logits (B, K) of adversarial images."""
        targets = self.predictions[indices]
        targets = targets / targets.sum(1, keepdim=True)
        return self.weight(epoch) * (logits.softmax(1) - targets).square().mean()
