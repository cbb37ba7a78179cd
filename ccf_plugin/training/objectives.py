"""What a training step minimises. An objective sees the forward, the images, the labels and the attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Forward = Callable[[Tensor], Tensor]
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepOutput:
    """loss: a scalar to minimise; logits: (N, K) float32 of the pass whose accuracy is the training accuracy."""

    loss: Tensor
    logits: Tensor


Objective = Callable[[Forward, Tensor, Tensor, Attack], StepOutput]


def standard(forward: Forward, images: Tensor, labels: Tensor, attack: Attack) -> StepOutput:
    """Cross-entropy on the images as they are; the attack is not run (Section 5.4's training)."""
    logits = forward(images)
    return StepOutput(F.cross_entropy(logits, labels), logits)


def madry(forward: Forward, images: Tensor, labels: Tensor, attack: Attack) -> StepOutput:
    """Cross-entropy on adversarial examples (Madry et al. 2018; eq. 1)."""
    return standard(forward, attack(images, labels), labels, attack)


OBJECTIVES: dict[str, Objective] = {"standard": standard, "madry": madry}
