"""A note where a model with weights of the user's own seems to lack the normalisation that it was trained with."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.measuring.evaluate import MeasuredSplit
from ccf_plugin.zoo.datasets import Split
from ccf_plugin.zoo.normalizations import USUAL
from ccf_plugin.zoo.normalize import with_normalization

_JUMP = 0.1  # of clean accuracy: beyond chance for the images that are tried
_IMAGES, _BATCH_SIZE = 400, 100


def note_normalization(model: nn.Module, data: MeasuredSplit, *, device: torch.device) -> None:
    """Warn where clean accuracy on some test images is far higher behind the data set's usual normalisation.

    Nothing of the model changes. Models whose output is not the logits alone are left as they are.
    """
    name = _usual_name(data)
    if name is None:
        return
    rows = torch.arange(0, len(data.split), max(1, len(data.split) // _IMAGES))[:_IMAGES]
    some = data.split.subset(rows)
    normalized = with_normalization(model, *USUAL[name], channels=3).to(device)
    plain, behind = (_accuracy(network, some, device) for network in (model, normalized))
    if plain is not None and behind is not None and behind > plain + _JUMP:
        warnings.warn(
            f"clean accuracy is {plain:.1%} on {len(some)} test images, and {behind:.1%} where they are normalised as "
            f"{name} usually is; if the model was trained so, say it: normalize {name}",
            stacklevel=2,
        )


def _usual_name(data: MeasuredSplit) -> str | None:
    """Which data set's images these are: by name, or by the number of classes for images of a file or folder."""
    if data.name in USUAL or data.split.images.shape[1] != 3:
        return data.name if data.name in USUAL else None
    return {10: "cifar10", 100: "cifar100", 200: "tinyimagenet", 1000: "imagenet"}.get(len(data.classes))


def _accuracy(model: nn.Module, images: Split, device: torch.device) -> float | None:
    hits: list[Tensor] = []
    with torch.no_grad(), evaluation_mode(model):
        for batch, labels in images.batches(_BATCH_SIZE, device):
            try:
                logits = model(batch)
            except Exception:  # the measurement itself will say what is wrong
                return None
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                return None
            hits.append(logits.argmax(dim=1) == labels)
    return torch.cat(hits).double().mean().item()
