"""Models whose result does not depend on the processor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InFloat64(nn.Module):
    """A model computed in float64 behind float32 images, as training and attacks make them.

    An attack's step is a gradient's sign, so that one gradient of mere rounding moves a pixel by a whole step, and the
    weights after it. In float32 some processor meets one within 20 steps; in float64 it is 10⁹ times as rare.

    ``logits`` is their dtype. A probe finds no head whose logits are rounded after it: it needs float64.
    """

    def __init__(self, inner: nn.Module, logits: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.inner = inner.double()
        self._logits = logits
        self.training = inner.training

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images.to(next(self.parameters()).dtype))  # float32 again, once so loaded
        return logits.to(self._logits)
