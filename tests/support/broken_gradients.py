"""Classifiers of the digits that pass no gradient to their images, for ``python:support.broken_gradients:NAME``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Working(nn.Module):
    """A linear classifier of the digits that knows them a little."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        generator = torch.Generator().manual_seed(0)
        self.trunk = nn.Parameter(torch.eye(64) + 0.01 * torch.randn(64, 64, generator=generator))
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(10, 64, generator=generator))

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.trunk

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class FrozenTrunk(Working):
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(images)
        return self.head(features)


class InferenceTrunk(Working):
    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            features = self.features(images)
        return self.head(features)


class WhollyInference(Working):
    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(images)


class Detached(Working):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach())


class Data(Working):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.data * 1)


class ByNumPy(Working):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.from_numpy(self.features(images).detach().numpy() * 2))


class ByNumPyDirectly(Working):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(images.numpy().clip(0, 1)))


class Votes(Working):
    def forward(self, images: Tensor) -> Tensor:
        votes = torch.stack([super(Votes, self).forward(images + shift).argmax(1) for shift in (-0.1, 0, 0.1)])
        return nn.functional.one_hot(votes, 10).sum(0).float()


class InSteps(Working):
    """Gradients there are, all zero."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 255).round() / 255)


NONE = (FrozenTrunk, InferenceTrunk, WhollyInference, Detached, Data, ByNumPy, ByNumPyDirectly, Votes)
