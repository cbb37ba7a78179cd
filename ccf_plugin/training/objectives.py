"""What a training step minimises: one function per loss, each from its paper's formula."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ccf_plugin.errors import CCFError, InputError
from ccf_plugin.training.recipe import ObjectiveSection
from ccf_plugin.zoo.python_code import failed, is_python, load_object

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepOutput:
    """loss: a scalar to minimise; logits (N, K): of the adversarial images, which a teacher would soften."""

    loss: Tensor
    logits: Tensor


# forward, clean images, adversarial images (both (N, C, H, W) in [0, 1]), labels (N,)
Objective = Callable[[Forward, Tensor, Tensor, Tensor], StepOutput]


def build_objective(section: ObjectiveSection) -> Objective:
    """The loss that a recipe's [objective] names, with its weights."""
    smoothing, beta = section.label_smoothing, section.beta
    if is_python(section.loss):
        return own(section.loss, section.options)
    objectives: dict[str, Objective] = {
        "standard": partial(madry, label_smoothing=smoothing),  # whose "adversarial" images are the clean ones
        "madry": partial(madry, label_smoothing=smoothing),
        "trades": partial(trades, beta=6.0 if beta is None else beta, label_smoothing=smoothing),
        "mart": partial(mart, beta=5.0 if beta is None else beta),
    }
    return objectives[section.loss]


def own(spec: str, options: Mapping[str, Any]) -> Objective:
    """The user's loss ``python:package.module:function``: function(forward, images, adversarial, labels, **options).

    ``forward`` maps images to float32 logits (N, K); ``images`` and ``adversarial`` are float32 (N, C, H, W) in [0, 1],
    ``labels`` int64 (N,). It returns a ``StepOutput``: the mean loss over these rows and the logits (N, K) of the
    adversarial images, which accuracies and teachers use. ``adversarial`` follows the recipe's [attack].

    Raises:
        InputError: no such function; at a step: it fails, or returns something else.
    """
    function = load_object(spec)
    if not callable(function):
        raise InputError(f"{spec}: expected a function, found {type(function).__name__}")
    signature = "forward, images, adversarial, labels"
    try:
        inspect.signature(function).bind(*signature.split(", "), **options)
    except TypeError as error:
        raise InputError(
            f"{spec}: expected a function of ({signature}) and objective.options, found one that refuses: {error}"
        ) from None

    def checked(forward: Forward, images: Tensor, adversarial: Tensor, labels: Tensor) -> StepOutput:
        try:
            output: StepOutput = function(forward, images, adversarial, labels, **options)
        except (CCFError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise failed(spec, error) from error
        if (fault := _output_fault(output, len(labels))) is not None:
            raise InputError(
                f"{spec}: expected a StepOutput of a scalar loss with a gradient and logits ({len(labels)}, K), found "
                f"{fault}"
            )
        return output

    return checked


def _output_fault(output: object, count: int) -> str | None:
    if not isinstance(output, StepOutput):
        return type(output).__name__
    if not isinstance(output.loss, Tensor) or not isinstance(output.logits, Tensor):
        return f"a {type(output.loss).__name__} and a {type(output.logits).__name__}"
    if output.loss.ndim or output.logits.ndim != 2 or len(output.logits) != count:
        return f"shapes {tuple(output.loss.shape)} and {tuple(output.logits.shape)}"
    return None if output.loss.requires_grad else "a loss without one, which nothing can be trained by"


def madry(
    forward: Forward, images: Tensor, adversarial: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> StepOutput:
    """CE(f(x'), y): cross-entropy on adversarial examples (Madry et al. 2018; eq. 1)."""
    logits = forward(adversarial)
    return StepOutput(F.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits)


def trades(
    forward: Forward,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    *,
    beta: float = 6.0,
    label_smoothing: float = 0.0,
) -> StepOutput:
    """CE(f(x), y) + β · KL(f(x) ‖ f(x')), x' maximising that KL within the ball (Zhang et al. 2019, TRADES, eq. 5).

    The attack of a recipe should be TPGD, which maximises the KL. Both passes get gradients.
    """
    clean = forward(images)
    logits = forward(adversarial)
    loss = F.cross_entropy(clean, labels, label_smoothing=label_smoothing)
    return StepOutput(loss + beta * divergence(clean, logits).mean(), logits)


def mart(forward: Forward, images: Tensor, adversarial: Tensor, labels: Tensor, *, beta: float = 5.0) -> StepOutput:
    """BCE(p', y) + β · KL(p ‖ p') · (1 − p_y), p clean and p' adversarial probabilities (MART, Wang et al. 2020).

    BCE(p', y) = −log p'_y − log(1 − max_{k≠y} p'_k). That paper calls the weight λ.
    """
    clean = forward(images)
    logits = forward(adversarial)
    boosted = _boosted_cross_entropy(logits, labels)
    true_probability = clean.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    loss = boosted.mean() + beta * (divergence(clean, logits) * (1 - true_probability)).mean()
    return StepOutput(loss, logits)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(logits)) per sample, (N,), in log space: no probability of 0 becomes NaN."""
    return F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="none", log_target=True).sum(1)


def _boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p_y − log(1 − p_m), m the strongest wrong class; 1 − p_m is summed from the others and never rounds to 0."""
    log_p = logits.log_softmax(1)
    is_true = torch.arange(logits.shape[1], device=logits.device) == labels.unsqueeze(1)
    strongest = log_p.masked_fill(is_true, -torch.inf).argmax(1, keepdim=True)
    others = log_p.scatter(1, strongest, -torch.inf).logsumexp(1)
    return -log_p.gather(1, labels.unsqueeze(1)).squeeze(1) - others
