"""torch.compile for the forward pass of training and its attack, where it pays."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Literal

import torch
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.memory import is_out_of_memory
from ccf_plugin.engine.outputs import Choice
from ccf_plugin.engine.precision import Precision
from ccf_plugin.errors import UnavailableError, one_line

_log = logging.getLogger(__name__)

Compile = Literal["auto"] | bool
Mode = Literal["default", "reduce-overhead"]

# Compiling a step took 52 s on an H100, which in that time computed 7e15 operations (18 % of 782 TFLOP/s); it must gain
# what it takes, from a third of the run.
_PAYS_FROM = 2e16


def build_forward(
    model: nn.Module,
    *,
    precision: Precision,
    device: torch.device,
    compiled: Compile,
    batch_size: int,
    work: float = math.inf,
    is_replayed: bool = False,
    output: Choice | None = None,
    classes: int | None = None,
) -> Forward:
    """``Forward``, compiled for batches of ``batch_size``. "auto" is: on CUDA, where the run is long enough for it.

    On a CPU, whose convolutions are a library's either way, compiling made a step slower. Where compiling fails "auto"
    goes on without.

    Args:
        work: operations of the whole run, by which "auto" decides.
        is_replayed: whether the attack's passes are parts of one CUDA graph; else each is made one.
        output, classes: as ``Forward`` takes them.
    """
    pays = compiling_pays(device, work)
    if compiled == "auto" and device.type == "cuda":
        relation = "at least" if pays else "less than"
        _log.info(
            "%s: the run takes about %.1e operations, %s the %.0e from which compiling pays",
            *("compiled" if pays else "not compiled", work, relation, _PAYS_FROM),
        )
    if compiled is True or (compiled == "auto" and pays):
        mode: Mode = "reduce-overhead" if device.type == "cuda" and not is_replayed else "default"
        required = compiled is True
        return CompiledForward(
            model, output, classes, precision=precision, batch_size=batch_size, mode=mode, required=required
        )
    return Forward(model, precision=precision, output=output, classes=classes)


def compiling_pays(device: torch.device, work: float) -> bool:
    """Whether a run of ``work`` operations saves more time by compiling than that takes."""
    return device.type == "cuda" and work >= _PAYS_FROM


class CompiledForward(Forward):
    """A ``Forward`` that is compiled for one batch size; batches of another run as they are.

    It is compiled anew for each combination of the model's mode and of what gradients are asked for.

    Raises:
        UnavailableError: from the first pass, where torch.compile does not work and is ``required``.
    """

    def __init__(
        self,
        model: nn.Module,
        output: Choice | None = None,
        classes: int | None = None,
        *,
        precision: Precision,
        batch_size: int,
        mode: Mode,
        required: bool,
    ) -> None:
        super().__init__(model, precision=precision, output=output, classes=classes)
        self._batch_size = batch_size
        self._required = required
        self._has_run = False
        self._overwrites = mode == "reduce-overhead"
        method = MethodType(_copy_of(Forward.forward), self)
        self._compiled: Callable[[Tensor], Tensor] | None = torch.compile(method, dynamic=False, mode=mode)

    def forward(self, images: Tensor) -> Tensor:
        if self._compiled is None or len(images) != self._batch_size:
            return super().forward(images)
        try:
            logits = self._compiled(images)
            if self._overwrites:  # a graph of one pass writes its next logits there, and TPGD keeps the clean ones
                logits = logits.clone()
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


def _copy_of(function: Callable[..., Tensor]) -> FunctionType:
    """With code of its own: torch limits the variants that it compiles of one code, also over runs in one process."""
    assert isinstance(function, FunctionType)  # noqa: S101  (it is no callable of C)
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
