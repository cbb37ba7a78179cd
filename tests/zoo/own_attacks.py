"""Attacks as a user would write them, for ``python:zoo.own_attacks:NAME``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn


class OneStep(torchattacks.attack.Attack):  # type: ignore[misc]
    """With torchattacks' interface: one signed step of eps, and of another scale where an option says so."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, scale: float = 1.0) -> None:
        super().__init__("OneStep", model)
        self.eps = eps
        self.scale = scale
        self.supported_mode = ["default"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        images = images.detach().clone().requires_grad_()
        loss = nn.functional.cross_entropy(self.get_logits(images), labels)
        (gradient,) = torch.autograd.grad(loss, images)
        return (images + self.scale * self.eps * gradient.sign()).clamp(0, 1).detach()


class PGD:
    """Under a name of torchattacks': it does nothing."""

    def __init__(self, model: nn.Module, eps: float, steps: int) -> None:
        pass

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return images


def random_signs(model: nn.Module, *, eps: float, step_size: float, norm: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that makes the attack: no gradient, steps of eps up or down."""

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        assert (norm, step_size) == ("L2", eps / 8)
        assert model(images).shape[0] == len(labels)
        return (images + eps * torch.randn_like(images).sign()).clamp(0, 1)

    return attack


def by_keywords(model: nn.Module, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """One that takes any option."""
    return lambda images, labels: (images + options["shift"]).clamp(0, 1)


def flat(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """One whose result has another shape."""
    return lambda images, labels: images.flatten(1)


def beyond(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """One whose result leaves [0, 1]."""
    return lambda images, labels: images + 3


def overwriting(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """One that writes into what it gets."""

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        labels.add_(1)
        return images.mul_(0.5)

    return attack


def nothing(model: nn.Module) -> None:
    """One that makes no attack."""


def without_a_model() -> None:
    """One that cannot be told the model."""


NUMBER = 3
