"""Adversarial weight perturbation (AWP, Wu et al. 2020): the loss is minimised where the weights nearby are worst."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ccf_plugin.training.objectives import StepOutput


@contextlib.contextmanager
def perturbed_weights(
    model: nn.Module,
    step: Callable[[], StepOutput],
    gamma: float,
    mean: Callable[[list[Tensor]], list[Tensor]] = lambda tensors: tensors,
) -> Iterator[None]:
    """Inside, each weight matrix or kernel w stands at w + γ · ‖w‖ · ∇loss / ‖∇loss‖; afterwards at w, bit for bit.

    One ascent step per batch, layer by layer, as in the paper's Section 4 (its step size equals γ). Biases and
    normalisation layers stay. The pass behind the gradient leaves BatchNorm's statistics alone.

    Args:
        model: whose parameters are moved in place.
        step: gives the loss at the model's present weights, with its graph.
        gamma: the relative size of the perturbation; 0 changes nothing.
        mean: over the processes that train together, of each tensor.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    if not gamma or not weights:
        yield
        return
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients = mean(list(torch.autograd.grad(step().loss, weights)))
    originals = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(gradient * (gamma * weight.norm() / (gradient.norm() + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)
