"""The one forward pass that training, attacks and measurement share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ccf_plugin.engine.outputs import Choice, logits_of
from ccf_plugin.engine.precision import Precision
from ccf_plugin.errors import InputError

# Networks that take feature maps apart by `.view`, as many a LeNet does, which refuses those that are channels_last.
_CONTIGUOUS: WeakSet[nn.Module] = WeakSet()
_CAST_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Forward(nn.Module):
    """``model`` as every part of the package runs it: channels_last in, float32 logits out.

    A network that fails on channels_last feature maps becomes contiguous, weights and images, when it first does.

    forward: images float32 (N, C, H, W) in [0, 1] → logits float32 (N, K), taken from what the model returns
    (``outputs.logits_of``). With ``precision="bf16"`` the model runs under bfloat16 autocast; with ``"float32"`` an
    autocast of the caller is switched off, so that the name holds.

    Args:
        output: the index or key of the logits in the model's output, where several entries of it may be them.
        classes: K, where it is known; it decides between several entries too.

    Raises:
        InputError: another precision; from a pass: no entry of the output may be the logits, or several may.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: Precision = "float32",
        output: Choice | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bf16"):
            raise InputError(f"precision: expected 'float32' or 'bf16', found {precision!r}")
        self.model = model
        self.precision = precision
        self.output, self.classes = output, classes
        # The wrapper reports the mode of what it wraps, so that wrapping an evaluating model changes nothing.
        self.training = model.training
        self._is_contiguous = any(module in _CONTIGUOUS for module in model.modules())

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            output = self._output(images)
        logits = logits_of(output, self.output, classes=self.classes, model=self.model).float()
        if not torch.compiler.is_compiling() and logits.is_inference() and not torch.is_inference_mode_enabled():
            return logits.clone()  # a model with its own mode made them: attacks without gradients change them in place
        return logits

    def _output(self, images: Tensor) -> Any:
        if images.dim() != 4:
            return self.model(images)
        if self._is_contiguous:
            return self.model(contiguous(images))
        laid_out = images.contiguous(memory_format=torch.channels_last)
        if torch.compiler.is_compiling():
            return self.model(laid_out)
        try:
            return self.model(laid_out)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
        for weight in self.model.parameters():
            weight.data = contiguous(weight.data)
        torch.clear_autocast_cache()  # of the weights as they were
        _CONTIGUOUS.add(self.model)
        self._is_contiguous = True
        return self.model(contiguous(images))

    @contextlib.contextmanager
    def weights_cast_once(self) -> Iterator[None]:
        """Inside, passes on CUDA find the weights as autocast would cast them in each: for passes between two steps.

        They are those of plain convolutions and linear layers, which stand at their cast values meanwhile.
        """
        cast = self._cast_by_autocast() if self.precision == "bf16" else []
        originals = [parameter.data for parameter in cast]
        values = [torch.empty_like(original, dtype=torch.bfloat16) for original in originals]
        if cast:
            torch._foreach_copy_(values, originals)
        try:
            for parameter, value in zip(cast, values, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, value in zip(cast, originals, strict=True):
                parameter.data = value

    def _cast_by_autocast(self) -> list[nn.Parameter]:
        """On CUDA, and of no other layer, which might compute with them in float32."""
        cast: dict[int, nn.Parameter] = {}
        others: set[int] = set()
        for module in self.model.modules():
            owned = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
            # a subclass, or a layer with the parts of a weight (weight_norm), may compute its weight first
            if type(module) in _CAST_LAYERS and owned.keys() <= {"weight", "bias"}:
                cast |= {id(p): p for p in owned.values() if p.is_cuda and p.dtype == torch.float32}
            else:
                others |= {id(parameter) for parameter in owned.values()}
        return [weight for key, weight in cast.items() if key not in others]


def contiguous(tensor: Tensor) -> Tensor:
    """A copy, since a tensor of one channel may pass for contiguous and for channels_last both."""
    return tensor.clone(memory_format=torch.contiguous_format)
