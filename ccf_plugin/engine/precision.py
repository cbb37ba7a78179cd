"""Numeric precision, and what of it a device computes in."""

from __future__ import annotations

import warnings
from typing import Literal

import torch

from ccf_plugin.engine.timing import now
from ccf_plugin.errors import InputError, UnavailableError, did_you_mean

Precision = Literal["float32", "bf16"]

_BF16_CAPABILITY = (8, 0)  # NVIDIA Ampere: the first with bfloat16 tensor cores


def resolve_precision(name: Literal["auto", "float32", "bf16"], device: torch.device) -> Precision:
    """The precision to run at on ``device``: ``"auto"`` is bf16 where the hardware computes in it, else float32.

    ``"bf16"`` on hardware without units for it is allowed, with a warning that says what it costs there. Raises
    InputError for another name, UnavailableError where bf16 does not run at all.
    """
    if name == "float32":
        return "float32"
    if name not in ("auto", "bf16"):
        options = ("auto", "float32", "bf16")
        raise InputError(
            f"precision: expected one of {', '.join(options)}, found {name!r}{did_you_mean(name, options)}"
        )
    if _computes_bf16(device):
        return "bf16"
    if name == "auto":
        return "float32"
    try:
        times = matrix_rate(device, "float32", size=512) / matrix_rate(device, "bf16", size=512)
    except (RuntimeError, TypeError) as error:
        raise UnavailableError(
            f"precision 'bf16': expected a device that computes in it, found that this {device.type} device does not; "
            "use float32"
        ) from error
    warnings.warn(
        f"this {device.type} device has no units for bf16: a matrix product just took {times:.1f} times as long in it "
        "as in float32",
        stacklevel=2,
    )
    return "bf16"


def matrix_rate(device: torch.device, precision: Precision, *, size: int) -> float:
    """FLOP/s of a product of two (size, size) matrices: the best of five, of which each lasts 5 ms or more."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    left @ right
    best, repeats = 0.0, 1
    for _ in range(5):
        seconds = 0.0
        while seconds < 5e-3:
            start = now()
            for _ in range(repeats):
                left @ right
            seconds = now() - start
            repeats *= 1 if seconds >= 5e-3 else 2
        best = max(best, 2 * size**3 * repeats / seconds)
    return best


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
    if device.type != "cpu":
        return False
    # Private names that come and go between torch releases; without them the answer is the safe one.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)
