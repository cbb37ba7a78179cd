"""Networks as a user would write them, for ``python:training.own_models:NAME``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """A map, its mean, and a linear head; ``second`` is another one on the same features."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
        self.head, self.second = nn.Linear(6, num_classes), nn.Linear(6, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class Noisy(Small):
    """Draws random numbers in every pass, in eval mode too."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.01 * torch.rand_like(images))


class Headless(Small):
    """Probabilities, which no linear layer makes."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)


class Constant(Small):
    """No gradient reaches the images."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images.detach()).detach())


class WithoutBackward(Small):
    """A step of it says nothing of its gradient."""

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(_: object, images: Tensor) -> Tensor:
            return images.round()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.Step.apply(images))


class Pair(Small):
    """The logits of both heads in a tuple."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        g = self.features(images)
        return self.head(g), self.second(g)


class Named(Pair):
    """The logits of both heads by name."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(("one", "two"), super().forward(images), strict=True))


class WeightNormed(Small):
    """By torch's older normalisation, which computes the weight in a hook."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.weight_norm(self.body[0])
        nn.utils.weight_norm(self.head)


class SpectralNormed(Small):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.spectral_norm(self.body[0])
