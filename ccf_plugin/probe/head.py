"""The head (the linear map with logits = g(x) Wᵀ + a constant row), and how a user names one that no layer shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """The linear map that makes the logits: its layer's name and type, K classes, n features.

    ``history`` tells where the head was in the passes that counted, if it moved: one line per change, the first pass's
    included; empty where it stayed.
    """

    name: str
    kind: str
    classes: int
    features: int
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class LinearHead:
    """A linear head that no layer holds, such as a CLIP zero-shot or a cosine classifier, named by hand.

    The probe verifies on every counted pass that g Wᵀ and one constant row are the model's logits.

    Args:
        features: the name of the module whose output is g: (N, n), or (N, n, 1, 1).
        weight: W, (K, n), on any device, or a function of the model that gives it; asked at the end of every pass.

    Example:
        >>> import torch
        >>> from ccf_plugin import CrossClassProbe, LinearHead
        >>> class ZeroShot(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.image_encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        ...         self.register_buffer("text_features", torch.randn(3, 8))
        ...     def forward(self, x):
        ...         return 100 * self.image_encoder(x) @ self.text_features.T
        >>> model = ZeroShot()
        >>> head = LinearHead(features="image_encoder", weight=lambda model: 100 * model.text_features)
        >>> probe = CrossClassProbe(model, head=head)
        >>> _ = model(torch.rand(6, 3, 2, 2))
        >>> probe.update(torch.arange(6) % 3)
        >>> probe.compute().head.features
        8
    """

    features: str
    weight: Tensor | Callable[[nn.Module], Tensor]
