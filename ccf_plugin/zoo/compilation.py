"""torch.compile for the forward pass of training and its attack, where it pays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ccf_plugin.errors import UnavailableError
from ccf_plugin.zoo.containment import one_line
from ccf_plugin.zoo.memory import is_out_of_memory
from ccf_plugin.zoo.precision import Forward, Precision

Compile = Literal["auto"] | bool


def build_forward(
    model: nn.Module, *, precision: Precision, device: torch.device, compiled: Compile, batch_size: int
) -> Forward:
    """``Forward``, compiled for batches of ``batch_size``. "auto" is: on CUDA, unless compiling fails there.

    There the passes are CUDA graphs, which spare the launch of each kernel. On a CPU, whose convolutions are a
    library's either way, compiling made a step slower.
    """
    if compiled is True or (compiled == "auto" and device.type == "cuda"):
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        return CompiledForward(model, precision=precision, batch_size=batch_size, mode=mode, required=compiled is True)
    return Forward(model, precision=precision)


class CompiledForward(Forward):
    """A ``Forward`` that is compiled for one batch size; batches of another run as they are.

    It is compiled anew for each combination of the model's mode and of what gradients are asked for.

    Raises:
        UnavailableError: from the first pass, where torch.compile does not work and is ``required``.
    """

    def __init__(self, model: nn.Module, *, precision: Precision, batch_size: int, mode: str, required: bool) -> None:
        super().__init__(model, precision=precision)
        self._batch_size = batch_size
        self._required = required
        self._has_run = False
        torch.compiler.reset()  # or the passes of runs before in this process count against torch's limit of variants
        self._compiled: Callable[[Tensor], Tensor] | None = torch.compile(super().forward, dynamic=False, mode=mode)

    def forward(self, images: Tensor) -> Tensor:
        if self._compiled is None or len(images) != self._batch_size:
            return super().forward(images)
        try:
            # A copy, since a CUDA graph writes its next logits where these lie, and attacks keep some (TPGD the clean).
            logits = self._compiled(images).clone()
        except Exception as error:  # no compiler, no Triton, an operation that it cannot trace: of many types
            if self._has_run or is_out_of_memory(error):
                raise
            if self._required:
                raise UnavailableError(
                    f"compile = true: torch.compile fails here ({one_line(error)}); use compile = false"
                ) from error
            warnings.warn(f"going on without torch.compile, which fails here ({one_line(error)})", stacklevel=2)
            self._compiled = None
            return super().forward(images)
        self._has_run = True
        return logits
