"""How the loss slopes in the images: how steeply, and whether the same way nearby."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.gradients import is_broken_off, no_gradient
from ccf_plugin.engine.modes import device_of, evaluation_mode
from ccf_plugin.engine.noise import PerImageNoise, image_keys
from ccf_plugin.engine.outputs import Choice
from ccf_plugin.probe.distributed import gather_objects, num_processes, rank
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.datasets import Split


@dataclass(frozen=True)
class InputGradients:
    """Means over a split's images, g(x) being the gradient of the cross-entropy of x by its pixels in [0, 1].

    Attributes:
        norm: of |g(x)|₂.
        alignment: of cos(g(x), g(x + u)), u a random perturbation of size eps: uniform in the Linf ball, on the sphere
            in L2. Andriushchenko and Flammarion 2020, eq. 3: it falls towards 0 as one-step training overfits
            catastrophically. An image without a gradient at either point does not count; NaN where none does.
    """

    norm: float
    alignment: float


def input_gradients(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    *,
    seed: int = 0,
    batch_size: int = 250,
    output: Choice | None = None,
    classes: int | None = None,
) -> InputGradients:
    """Two passes forward and back over a split, in eval mode and float32; each image has its own u.

    Where torch.distributed runs several processes, each takes its part and all return the whole's.

    Args:
        model: images (N, C, H, W) in [0, 1] → logits (N, K), or what holds them (``output`` as `CrossClassProbe` takes
            it); lies on the device that is used. Its modes and ``.grad`` are as before.

    Raises:
        NoGradientError: the model passes no gradient to its images.
    """
    device, forward = device_of(model), Forward(model, output=output, classes=classes)
    sums = torch.zeros(4, dtype=torch.float64, device="cpu")  # |g|, images, cosines, images that have one
    with evaluation_mode(model):
        for images, labels in split.part(rank(), num_processes()).batches(batch_size, device):
            with PerImageNoise(image_keys(images, seed)):
                moved = images + _perturbation(images, threat)
            here, there = (_gradient(forward, points, labels) for points in (images, moved))
            lengths = here.norm(dim=1)
            has_both = (lengths > 0) & (there.norm(dim=1) > 0)
            cosines = F.cosine_similarity(here, there, dim=1, eps=0)[has_both]
            added = (float(lengths.sum()), len(images), float(cosines.sum()), len(cosines))
            sums += torch.tensor(added, dtype=torch.float64, device="cpu")
    if num_processes() > 1:
        sums = torch.stack(gather_objects(sums)).sum(0)
    length, count, cosine, with_both = sums.tolist()
    return InputGradients(length / count, cosine / with_both if with_both else math.nan)


def check_gradients(
    model: nn.Module, images: Tensor, labels: Tensor, *, output: Choice | None = None, classes: int | None = None
) -> None:
    """Take the gradients of a few images as ``input_gradients`` does, which raises NoGradientError where none are."""
    with evaluation_mode(model):
        _gradient(Forward(model, output=output, classes=classes), images, labels)


def _perturbation(images: Tensor, threat: ThreatModel) -> Tensor:
    if threat.norm == "Linf":
        return torch.empty_like(images).uniform_(-threat.eps, threat.eps)
    directions = torch.randn_like(images)
    lengths: Tensor = directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return directions * (threat.eps / lengths)


def _gradient(forward: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of each image's own cross-entropy, (N, C·H·W) float64, which no small norm rounds to 0."""
    points = images.detach().requires_grad_()
    gradient, broken = None, None
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(forward(points), labels, reduction="sum")
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, points, allow_unused=True)
    except RuntimeError as error:
        if not is_broken_off(error):
            raise
        broken = error
    if gradient is None:
        raise no_gradient("measure no gradients") from broken
    rows: Tensor = gradient.flatten(1).double()
    return rows
