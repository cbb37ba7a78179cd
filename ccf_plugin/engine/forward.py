"""The one forward pass that training, attacks and measurement share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ccf_plugin.engine.precision import Precision
from ccf_plugin.errors import InputError

_CAST_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


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
        values = [torch.empty_like(original, dtype=torch.bfloat16) for original in kept]
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
        cast: dict[int, nn.Parameter] = {}
        others: set[int] = set()
        for module in self.model.modules():
            owned = [parameter for parameter in module._parameters.values() if parameter is not None]
            if type(module) in _CAST_LAYERS:  # not a subclass, which may compute its weight first
                cast |= {id(weight): weight for weight in owned if weight.is_cuda and weight.dtype == torch.float32}
            else:
                others |= {id(parameter) for parameter in owned}
        return [weight for key, weight in cast.items() if key not in others]
