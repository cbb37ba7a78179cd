"""Notes where a model with weights of the user's own seems to be used otherwise than it was trained.

Two things tell: clean accuracy, which jumps behind the data set's usual normalisation, or with the channels as OpenCV
reads them (blue, green, red); and BatchNorm's running mean and variance, a record of what each such layer saw in
training. Where the layers see something else now, and would see just that again behind a normalisation or with another
activation, this is the one that is missing. A deviation alone is no sign: it is as large in right models that were
trained for a few steps.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.measuring.evaluate import MeasuredSplit
from ccf_plugin.zoo.datasets import Split
from ccf_plugin.zoo.normalizations import USUAL, Normalization
from ccf_plugin.zoo.normalize import with_normalization

_JUMP = 0.1  # of clean accuracy: beyond chance for the images that are tried
_IMAGES, _BATCH_SIZE = 400, 100
# Of `_Seen.deviation`. Right models trained for epochs have up to 0.01 on images like those of training; ReLU in place
# of SiLU, GELU or LeakyReLU gives 0.016 to 0.15, the right one then 0.004 or less. Right models on other images, or
# trained for a few steps, have any deviation, and no alternative brings it below 0.01.
_LARGE, _SMALL, _RATIO = 0.01, 0.01, 5.0

_Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, _Activation] = {
    "ReLU": F.relu,
    "SiLU": F.silu,
    "GELU": F.gelu,
    "LeakyReLU of slope 0.1": lambda values: F.leaky_relu(values, 0.1),
    "ELU": F.elu,
    "Softplus": F.softplus,
    "Mish": F.mish,
}
_NAMES = ("relu", "relu6", "silu", "gelu", "leaky_relu", "elu", "celu", "selu", "softplus", "mish", "hardswish")
_REPLACED = {
    getattr(place, name)
    for base in _NAMES
    for name in (base, f"{base}_")
    for place in (F, torch, Tensor)
    if hasattr(place, name)
}


def note_mismatch(model: nn.Module, data: MeasuredSplit, *, device: torch.device, is_normalized: bool) -> None:
    """Warn where some test images suggest that the model was trained behind a normalisation or with other activations.

    Nothing of the model changes. ``is_normalized``: its normalisation is known. Models whose output is not the logits
    alone are left as they are.
    """
    rows = torch.arange(0, len(data.split), max(1, len(data.split) // _IMAGES), device="cpu")[:_IMAGES]
    some = data.split.subset(rows)
    plain = _seen(model, some, device)
    if plain is None:
        return
    name = None if is_normalized else _usual_name(data)
    if name is not None:
        behind = _seen(with_normalization(model, *USUAL[name], channels=3).to(device), some, device)
        if behind is not None and behind.accuracy > plain.accuracy + _JUMP:
            warnings.warn(
                f"clean accuracy is {plain.accuracy:.1%} on {len(some)} test images, and {behind.accuracy:.1%} where "
                f"they are normalised as {name} usually is; if the model was trained so, say it: normalize {name}",
                stacklevel=2,
            )
            return
    if some.images.shape[1] == 3:
        turned = _seen(nn.Sequential(_TurnedChannels(), model), some, device)
        if turned is not None and turned.accuracy > plain.accuracy + _JUMP:
            warnings.warn(
                f"clean accuracy is {plain.accuracy:.1%} on {len(some)} test images, and {turned.accuracy:.1%} where "
                "their channels are blue, green, red, as OpenCV reads them; if the model was trained so, let its "
                "forward turn them: images.flip(1)",
                stacklevel=2,
            )
            return
    if plain.deviation is None or plain.deviation <= _LARGE:
        return
    seen_with = {}
    for alternative in _alternatives(model, some, is_normalized=is_normalized):
        with alternative.model as network:
            seen = _seen(network.to(device), some, device)
        if seen is not None and seen.deviation is not None:
            seen_with[alternative] = seen.deviation
    best = min(seen_with, key=seen_with.__getitem__, default=None)
    if best is not None and seen_with[best] < min(_SMALL, plain.deviation / _RATIO):
        warnings.warn(
            f"BatchNorm layers see other values than they recorded in training (distance {plain.deviation:.2g}), and "
            f"the recorded ones {best.words} ({seen_with[best]:.2g}); if the model was trained so, {best.remedy}",
            stacklevel=2,
        )


def _usual_name(data: MeasuredSplit) -> str | None:
    """Which data set's images these are: by name, or by the number of classes for images of a file or folder."""
    if data.name in USUAL or data.split.images.shape[1] != 3:
        return data.name if data.name in USUAL else None
    return {10: "cifar10", 100: "cifar100", 200: "tinyimagenet", 1000: "imagenet"}.get(len(data.classes))


@dataclass(frozen=True, eq=False)
class _Alternative:
    """What the model may have been trained with instead: in words, and the model as it is then."""

    words: str
    remedy: str
    model: contextlib.AbstractContextManager[nn.Module]


def _alternatives(model: nn.Module, images: Split, *, is_normalized: bool) -> Iterator[_Alternative]:
    channels = images.images.shape[1]
    half = [0.5] * channels
    known = {f"normalize {name}": values for name, values in USUAL.items() if channels == 3}
    known[f"mean and std {','.join(map(str, half))}"] = Normalization(half, half)
    white = [round(1 / 255, 8)] * channels  # for networks that were given pixels from 0 to 255
    listed = (",".join(map(str, values)) for values in ([0] * channels, white))
    known["mean {}, std {} (pixels up to 255)".format(*listed)] = Normalization([0.0] * channels, white)
    for option, values in known.items() if not is_normalized else ():
        normalized = with_normalization(model, *values, channels=channels)
        yield _Alternative("of normalised images", f"say it: {option}", contextlib.nullcontext(normalized))
    for name, activation in _ACTIVATIONS.items():
        words = f"with {name} in place of the network's activation"
        yield _Alternative(words, "build it so", _with_activation(model, activation))


class _TurnedChannels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flip(1)


@dataclass(frozen=True)
class _Seen:
    """A pass over images: clean accuracy, and how far the median layer's values are from BatchNorm's record of them.

    That distance is the Kullback-Leibler divergence of two normal distributions, with the mean and variance of a
    channel's values and with its running ones, of the median channel. None without such layers.
    """

    accuracy: float
    deviation: float | None


def _seen(model: nn.Module, images: Split, device: torch.device) -> _Seen | None:
    """None for a model that cannot be run so, or whose output is not the logits alone."""
    hits: list[Tensor] = []
    with torch.no_grad(), evaluation_mode(model), _recording(model) as records:
        for batch, labels in images.batches(_BATCH_SIZE, device):
            try:
                logits = model(batch)
            except Exception:  # the measurement itself will say what is wrong
                return None
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                return None
            hits.append(logits.argmax(dim=1) == labels)
    deviations = [record.deviation() for record in records if record.count]
    deviation = torch.stack(deviations).median().item() if deviations else None
    return _Seen(torch.cat(hits).double().mean().item(), deviation)


class _Record:
    """Sums of the values (N, C, …) that a BatchNorm layer is given, per channel."""

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        self._layer = layer
        self.count = 0
        self._mean = self._square = torch.zeros((), dtype=torch.float32, device="cpu")

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Is a hook before the layer's forward pass."""
        values = inputs[0].transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(values, dim=1, correction=0)
        variance, mean = variance.double().cpu(), mean.double().cpu()
        self._mean = self._mean + mean * values.shape[1]
        self._square = self._square + (variance + mean**2) * values.shape[1]
        self.count += values.shape[1]

    def deviation(self) -> Tensor:
        """See ``_Seen``."""
        assert self._layer.running_mean is not None and self._layer.running_var is not None  # noqa: S101, PT018
        mean = self._mean / self.count
        variance = self._square / self.count - mean**2 + self._layer.eps
        expected = self._layer.running_var.double().cpu() + self._layer.eps
        shift = (mean - self._layer.running_mean.double().cpu()) ** 2 / expected
        ratio = variance / expected
        return ((ratio + shift - 1 - ratio.log()) / 2).median()


@contextlib.contextmanager
def _recording(model: nn.Module) -> Iterator[list[_Record]]:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    records = [_Record(layer) for layer in layers if layer.running_mean is not None]
    with contextlib.ExitStack() as hooks:
        for record in records:
            hooks.enter_context(record._layer.register_forward_pre_hook(record.add))
        yield records


class _Replacing(TorchFunctionMode):
    """Every activation that is called inside, as a module, a function or a method, is this one instead."""

    def __init__(self, activation: _Activation) -> None:
        super().__init__()
        self._activation = activation

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        options = kwargs or {}
        if function not in _REPLACED:
            return function(*args, **options)
        values = args[0] if args else options["input"]
        result = self._activation(values)
        is_in_place = (
            function.__name__.endswith("_") or options.get("inplace") or any(value is True for value in args[1:])
        )
        return values.copy_(result) if is_in_place else result


@contextlib.contextmanager
def _with_activation(model: nn.Module, activation: _Activation) -> Iterator[nn.Module]:
    with _Replacing(activation):
        yield model
