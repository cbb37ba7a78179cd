"""Losses as a user would write them, for ``python:training.own_losses:NAME``."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ccf_plugin import class_attribution, class_attribution_similarity, correlation_matrix
from ccf_plugin.training.objectives import StepOutput


def cross_entropy(
    forward: Callable[[Tensor], Tensor], images: Tensor, adversarial: Tensor, labels: Tensor, *, factor: float = 1.0
) -> StepOutput:
    """The loss of Madry et al., so that a run with it can be compared."""
    logits = forward(adversarial)
    return StepOutput(factor * F.cross_entropy(logits, labels), logits)


def forgetful(forward: Callable[[Tensor], Tensor], images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss alone."""
    return F.cross_entropy(forward(adversarial), labels)


def detached(forward: Callable[[Tensor], Tensor], images: Tensor, adversarial: Tensor, labels: Tensor) -> StepOutput:
    """Has no gradient."""
    logits = forward(adversarial)
    return StepOutput(F.cross_entropy(logits, labels).detach(), logits)


def flat(forward: Callable[[Tensor], Tensor], images: Tensor, adversarial: Tensor, labels: Tensor) -> StepOutput:
    """Gives the true class's logits alone."""
    logits = forward(adversarial)
    return StepOutput(F.cross_entropy(logits, labels), logits.gather(1, labels[:, None]).squeeze(1))


def raising(forward: Callable[[Tensor], Tensor], images: Tensor, adversarial: Tensor, labels: Tensor) -> StepOutput:
    """Has a fault."""
    logits = forward(adversarial)
    return StepOutput(F.cross_entropy(logits, labels) * (1 / 0), logits)


def unfit(model: object) -> None:
    """Takes something else."""


NUMBER = 3


def scaled(forward: Callable[[Tensor], Tensor], images: Tensor, adversarial: Tensor, labels: Tensor) -> StepOutput:
    """Its logits are not those of a pass."""
    logits = 2 * forward(adversarial)
    return StepOutput(F.cross_entropy(logits, labels), logits)


def keeping_cross_class_features(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    *,
    features: Callable[[Tensor], Tensor],
    head: Tensor,
    weight: float = 1.0,
) -> StepOutput:
    """Cross-entropy less CAS of the batch, as README shows it."""
    logits = forward(adversarial)
    matrix = correlation_matrix(class_attribution(features(logits), head, labels))
    share = class_attribution_similarity(matrix) / (len(head) * (len(head) - 1))
    return StepOutput(F.cross_entropy(logits, labels) - weight * share, logits)
