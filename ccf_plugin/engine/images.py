"""What images must be before an attack sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from ccf_plugin.errors import InputError


def check_images(images: Tensor, source: str) -> None:
    """Check once per source of batches that ``images`` are floating and in [0, 1] (tolerance 1e-6).

    torchattacks clamps to [0, 1] without a check. This waits for the device, so that attacks do not call it at each
    step. Raises InputError with what was found.
    """
    if not images.is_floating_point():
        raise InputError(f"{source}: expected float images in [0, 1], found {images.dtype}; use images.float() / 255")
    if images.numel() == 0:
        return
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also true of NaN
        remedy = "divide by 255" if low >= 0 and 1 < high <= 255 else "normalisation belongs inside the model"
        raise InputError(f"{source}: expected images in [0, 1], found {low:.4g} to {high:.4g}; {remedy}")
