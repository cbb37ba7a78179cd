"""Networks as a user would write them, for ``python:zoo.own_networks:NAME``."""

from __future__ import annotations

from torch import Tensor, nn


class Activated(nn.Module):
    """A class is among its arguments, and the number of classes has MAIR's name."""

    def __init__(self, n_classes: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.activation = activation()
        self.head = nn.Linear(16, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.activation(images.flatten(1)))
