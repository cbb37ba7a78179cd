"""The loss is minimised where the weights nearby are worst: AWP (Wu et al. 2020) and SAM (Foret et al. 2021)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ccf_plugin.training.objectives import StepOutput
from ccf_plugin.training.recipe import PerturbationSection


@contextlib.contextmanager
def perturbed_weights(
    model: nn.Module,
    step: Callable[[], StepOutput],
    section: PerturbationSection | None,
    mean: Callable[[list[Tensor]], list[Tensor]] = lambda tensors: tensors,
) -> Iterator[None]:
    """Inside, each weight matrix or kernel w stands at w + γ · ‖w‖ · ∇loss / ‖∇loss‖; afterwards at w, bit for bit.

    One ascent step per batch, layer by layer, as in the paper's Section 4 (its step size equals γ). Biases and
    normalisation layers stay. "sam" moves all parameters, to w + γ · ∇loss / ‖∇loss‖ with the norm of all gradients
    together (Foret et al. 2021, eq. 2; its ρ is γ). The pass behind the gradient leaves BatchNorm's statistics alone.

    Args:
        model: whose parameters are moved in place.
        step: gives the loss at the model's present weights, with its graph.
        section: γ and the kind; None changes nothing.
        mean: over the processes that train together, of each tensor.
    """
    if section is None:
        yield
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if section.kind == "sam" or parameter.ndim > 1]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients = mean(list(torch.autograd.grad(step().loss, weights)))
    originals = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        together = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for weight, gradient in zip(weights, gradients, strict=True):
            size = 1.0 / (together + 1e-12) if section.kind == "sam" else weight.norm() / (gradient.norm() + 1e-12)
            weight.add_(gradient * (section.gamma * size))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)
