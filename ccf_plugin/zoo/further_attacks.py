"""Attacks that torchattacks lacks, with its interface: that of TRADES in the L2 ball, and PGD along the margin."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchattacks import PGD, PGDL2
from torchattacks.attack import Attack

_TINY = 1e-12  # so that a vanishing gradient or perturbation divides by something


class TPGDL2(Attack):  # type: ignore[misc]  # torchattacks is not typed
    """Steps along the L2-normalised gradient of KL(f(x) ‖ f(x + δ)), projected into the ball.

    The inner maximisation of Zhang et al. 2019, eq. 5. Like TPGD it starts at small Gaussian noise (standard deviation
    0.001), here inside the ball as well, and takes no labels. ``eps`` and ``alpha`` (the step) are L2 norms per image,
    in [0, 1] pixel units. Images: (N, C, H, W).
    """

    def __init__(self, model: Any, eps: float = 128 / 255, alpha: float = 16 / 255, steps: int = 10) -> None:
        super().__init__("TPGDL2", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.supported_mode = ["default"]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images (N, C, H, W) in [0, 1]; ``labels`` do not count."""
        images = images.detach().to(self.device)
        clean = self.get_logits(images).detach().log_softmax(1)
        adversarial = self._projected(images, images + 0.001 * torch.randn_like(images))
        for _ in range(self.steps):
            adversarial.requires_grad_(True)
            log_p = self.get_logits(adversarial).log_softmax(1)
            divergence = F.kl_div(log_p, clean, reduction="sum", log_target=True)
            (gradient,) = torch.autograd.grad(divergence, adversarial)
            step = gradient / (_norm(gradient) + _TINY)
            adversarial = self._projected(images, adversarial.detach() + self.alpha * step)
        return adversarial

    def _projected(self, images: Tensor, adversarial: Tensor) -> Tensor:
        delta = adversarial - images
        # Clamping pixels afterwards moves them towards the image, so it does not leave the ball.
        return (images + delta * (self.eps / (_norm(delta) + _TINY)).clamp(max=1)).clamp(0, 1)


def _norm(batch: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(batch, dim=(1, 2, 3), keepdim=True)
    return norms


class _AlongTheMargin:
    """A torchattacks class that climbs max_{k≠y} z_k − z_y instead of the cross-entropy, z being the logits.

    The loss of Carlini and Wagner 2017 (their f_6 with the sign of an ascent), not cut off at a confidence: it keeps
    its slope where the cross-entropy's vanishes, as on images that are classified right with great certainty.
    """

    _labels: Tensor

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images (N, C, H, W) in [0, 1]; labels int64 (N,)."""
        self._labels = labels.unsqueeze(1)
        adversarial: Tensor = super().forward(images, torch.zeros_like(labels))  # type: ignore[misc]
        return adversarial

    def get_logits(self, inputs: Tensor, *others: Any, **named: Any) -> Tensor:
        """(N, 2), 0 and a multiple of the margin less its value: the mean cross-entropy of class 0 has the margin's
        gradient in each image."""
        logits: Tensor = super().get_logits(inputs, *others, **named)  # type: ignore[misc]
        strongest = logits.scatter(1, self._labels, -torch.inf).amax(1)
        margin = strongest - logits.gather(1, self._labels).squeeze(1)
        return torch.stack((torch.zeros_like(margin), 2 * len(margin) * (margin - margin.detach())), 1)


class CWPGD(_AlongTheMargin, PGD):  # type: ignore[misc]
    """PGD in the Linf ball along the margin."""

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        super().__init__(model, eps=eps, alpha=alpha, steps=steps)
        self.supported_mode = ["default"]


class CWPGDL2(_AlongTheMargin, PGDL2):  # type: ignore[misc]
    """PGD in the L2 ball along the margin."""

    def __init__(self, model: Any, eps: float = 128 / 255, alpha: float = 16 / 255, steps: int = 10) -> None:
        super().__init__(model, eps=eps, alpha=alpha, steps=steps)
        self.supported_mode = ["default"]


FURTHER = {"TPGDL2": TPGDL2, "CWPGD": CWPGD, "CWPGDL2": CWPGDL2}
