"""Devices, numeric precision, and the one forward pass that training, attacks and measurement share."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError, UnavailableError, did_you_mean

Precision = Literal["float32", "bf16"]

_CAST_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_BF16_CAPABILITY = (8, 0)  # NVIDIA Ampere: the first with bfloat16 tensor cores


class Forward(nn.Module):
    """``model`` as every part of the package runs it: channels_last in, float32 logits out.

    forward: images float32 (N, C, H, W) in [0, 1] → logits float32 (N, K). With ``precision="bf16"`` the model runs
    under bfloat16 autocast; with ``"float32"`` an autocast of the caller is switched off, so that the name holds.
    Raises InputError for another precision.
    """

    def __init__(self, model: nn.Module, *, precision: Precision = "float32") -> None:
        super().__init__()
        if precision not in ("float32", "bf16"):
            raise InputError(f"precision: expected 'float32' or 'bf16', found {precision!r}")
        self.model = model
        self.precision = precision
        # The wrapper reports the mode of what it wraps, so that wrapping an evaluating model changes nothing.
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits: Tensor = self.model(images)
        return logits.float()

    @contextlib.contextmanager
    def weights_cast_once(self) -> Iterator[None]:
        """Inside, passes on CUDA find the weights as autocast would cast them in each: for passes between two steps.

        They are those of plain convolutions and linear layers, which stand at their cast values meanwhile.
        """
        cast = self._cast_by_autocast() if self.precision == "bf16" else []
        kept = [parameter.data for parameter in cast]
        values = [torch.empty_like(one, dtype=torch.bfloat16) for one in kept]
        if cast:
            torch._foreach_copy_(values, kept)
        try:
            for parameter, value in zip(cast, values, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, value in zip(cast, kept, strict=True):
                parameter.data = value

    def _cast_by_autocast(self) -> list[nn.Parameter]:
        """On CUDA, and of no other layer, which might compute with them in float32."""
        taken: dict[int, nn.Parameter] = {}
        others: set[int] = set()
        for module in self.model.modules():
            owned = [one for one in module._parameters.values() if one is not None]
            if type(module) in _CAST_LAYERS:  # not a subclass, which may compute its weight first
                taken |= {id(one): one for one in owned if one.is_cuda and one.dtype == torch.float32}
            else:
                others |= {id(one) for one in owned}
        return [one for key, one in taken.items() if key not in others]


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
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
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


def now() -> float:
    """Seconds of a steady clock, once the GPU has done what it was given."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()


def resolve_device(name: str) -> torch.device:
    """``"auto"`` (CUDA where there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Raises UnavailableError where this machine lacks the device and InputError for another name. MPS is never chosen by
    itself: it lacks float64.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device: expected auto, cpu, cuda, cuda:N or mps, found {name!r}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device: expected auto, cpu, cuda, cuda:N or mps, found {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UnavailableError(f"device {name!r}: torch sees {found} CUDA devices here; use 'cpu' or 'auto'")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # on by itself; float32 is to be float32, to the last digit reported
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UnavailableError(f"device {name!r}: torch sees no MPS device here; use 'cpu' or 'auto'")
    return device


def job_device(name: str) -> torch.device:
    """As ``resolve_device``; in a job of several processes (accelerate, torchrun) this process's, the group being made.

    Raises as ``resolve_device`` does.
    """
    device = resolve_device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    from accelerate import PartialState

    return torch.device(PartialState(cpu=device.type == "cpu").device)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
    if device.type != "cpu":
        return False
    # Private names that come and go between torch releases; without them the answer is the safe one.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)
