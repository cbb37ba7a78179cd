"""The attack of TRADES in the L2 ball, which torchattacks has for Linf alone (its TPGD)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
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
