"""What a training step minimises: one function per loss, each from its paper's formula, and the table of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ccf_plugin.errors import CCFError, Fault, InputError, did_you_mean
from ccf_plugin.probe.head_reader import ReadForward
from ccf_plugin.zoo.python_code import failed, is_python, load_object

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepOutput:
    """loss: a scalar to minimise; logits (N, K): of the adversarial images, which a teacher would soften."""

    loss: Tensor
    logits: Tensor


# forward, clean images, adversarial images (both (N, C, H, W) in [0, 1]), labels (N,), or shares (N, K)
Loss = Callable[[Forward, Tensor, Tensor, Tensor], StepOutput]


@dataclass(frozen=True)
class Objective:
    """A loss that recipes name, with all that is known of it.

    Attributes:
        loss: (forward, images, adversarial, labels, …) → StepOutput. It gets ``beta`` and ``label_smoothing`` by
            keyword where it takes them.
        about: what it is, in a few words.
        attack: the torchattacks class that crafts ``adversarial``; None trains on clean images alone.
        batchnorm: the mode of the model under that attack in the authors' code, "train" or "eval".
        beta: the default weight of its second term; None where it has none.
        takes_smoothing: whether it takes ``label_smoothing``, and labels (N, K) that are shares of the classes, as of
            mixed images; ``why_not`` says why it does not.
        takes_options: whether objective.options are its further keywords.
    """

    loss: Callable[..., StepOutput]
    about: str = ""
    attack: str | None = "PGD"
    batchnorm: Literal["train", "eval"] = "train"
    beta: float | None = None
    takes_smoothing: bool = True
    why_not: str = ""
    takes_options: bool = False

    def faults(self, table: Mapping[str, Any]) -> Iterator[Fault]:
        """Faults for those keys of a recipe's [objective] that this loss does not use."""
        name = f"loss {table.get('loss', 'madry')!r}" if self is not CUSTOM_LOSS else "a loss of your own"
        if table.get("label_smoothing", 0) and not self.takes_smoothing:
            yield Fault("objective.label_smoothing", f"0 with {name}, {self.why_not}", "smoothing")
        if table.get("beta") is not None and self.beta is None:
            yield Fault("objective.beta", f"no beta with {name}, which has no second term", "one")
        if table.get("options") and not self.takes_options:
            yield Fault("objective.options", "options with a loss of your own alone ('python:…')", "some")


def find_objective(name: str) -> Objective | None:
    """What is known of a loss: its entry of ``OBJECTIVES``, or ``CUSTOM_LOSS``, whose code is not loaded for this."""
    return CUSTOM_LOSS if is_python(name) else OBJECTIVES.get(name)


def is_adversarial(name: str) -> bool:
    """Whether a loss trains on adversarial images, as the user's own does; a name that is not known counts as such."""
    objective = find_objective(name)
    return objective is None or objective.attack is not None


def loss_forms() -> str:
    """The names of losses that a recipe may hold, for messages."""
    return f"{', '.join(map(repr, OBJECTIVES))} or 'python:package.module:function'"


def build_objective(
    loss: str, *, options: Mapping[str, Any] | None = None, label_smoothing: float = 0.0, beta: float | None = None
) -> Loss:
    """The loss of this name with its weights, as a recipe's [objective] has them.

    The user's own ``python:package.module:function`` is called as function(forward, images, adversarial, labels,
    **options). ``forward`` maps images to float32 logits (N, K); ``images`` and ``adversarial`` are float32
    (N, C, H, W) in [0, 1], ``labels`` int64 (N,). It returns a ``StepOutput``: the mean loss over these rows and the
    logits (N, K) of the adversarial images, which accuracies and teachers use. ``adversarial`` follows [attack].

    Where it has parameters of these names, it also gets ``head``, W (K, n), and ``features``, which gives g(x) (N, n)
    of the pass that gave the logits that it is called with; both with their graph.

    Raises:
        InputError: no such loss; at a step: it fails, or returns something else.
    """
    objective = find_objective(loss)
    if objective is None:
        raise InputError(f"expected loss {loss_forms()}, found {loss!r}{did_you_mean(loss, OBJECTIVES)}")
    keywords = dict(options or {})
    if objective.beta is not None:
        keywords["beta"] = objective.beta if beta is None else beta
    if objective.takes_smoothing:
        keywords["label_smoothing"] = label_smoothing
    function = _load(loss, keywords) if objective is CUSTOM_LOSS else objective.loss
    checked = partial(_checked_loss, loss, function) if objective is CUSTOM_LOSS else function
    wanted = _wanted_of_head(function)
    return partial(_with_head, partial(checked, **keywords), wanted) if wanted else partial(checked, **keywords)


def reads_head(loss: Loss) -> bool:
    """Whether a loss that ``build_objective`` gave needs a forward pass that can be read (``ReadForward``)."""
    return isinstance(loss, partial) and loss.func is _with_head


def _wanted_of_head(function: Callable[..., StepOutput]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters
    return tuple(name for name in ("features", "head") if name in parameters)


def _with_head(
    loss: Loss, wanted: tuple[str, ...], forward: ReadForward, images: Tensor, adversarial: Tensor, labels: Tensor
) -> StepOutput:
    """The loss; it gets from the head what it names as parameters."""
    of_head: dict[str, Any] = {name: getattr(forward, name) for name in wanted}
    return partial(loss, **of_head)(forward, images, adversarial, labels)


def _load(name: str, options: Mapping[str, Any]) -> Callable[..., StepOutput]:
    """The user's function, checked to take the arguments that it will get."""
    function = load_object(name)
    if not callable(function):
        raise InputError(f"{name}: expected a function, found {type(function).__name__}")
    signature = "forward, images, adversarial, labels"
    try:
        of_head = dict.fromkeys(_wanted_of_head(function))
        inspect.signature(function).bind(*signature.split(", "), **options, **of_head)
    except TypeError as error:
        raise InputError(
            f"{name}: expected a function of ({signature}) and objective.options, found one that refuses: {error}"
        ) from None
    return cast(Callable[..., StepOutput], function)


def _checked_loss(
    name: str,
    function: Callable[..., StepOutput],
    forward: Forward,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    **options: Any,
) -> StepOutput:
    """What the user's loss returns, checked."""
    try:
        output = function(forward, images, adversarial, labels, **options)
    except (CCFError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise failed(name, error) from error
    if (fault := _output_fault(output, len(labels))) is not None:
        raise InputError(
            f"{name}: expected a StepOutput of a scalar loss with a gradient and logits ({len(labels)}, K), "
            f"found {fault}"
        )
    return output


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


# What is known of the user's loss, python:package.module:function.
CUSTOM_LOSS = Objective(
    _checked_loss,
    "a loss of your own",
    takes_smoothing=False,
    why_not="which may take it from objective.options",
    takes_options=True,
)

OBJECTIVES: dict[str, Objective] = {
    "standard": Objective(madry, "cross-entropy on clean images", attack=None),
    "madry": Objective(madry, "cross-entropy on adversarial images (Madry et al. 2018)"),
    "trades": Objective(
        trades,
        "clean cross-entropy and β times the divergence (Zhang et al. 2019)",
        attack="TPGD",
        batchnorm="eval",
        beta=6.0,
    ),
    "mart": Objective(
        mart,
        "boosted cross-entropy and β times the weighted divergence (Wang et al. 2020)",
        batchnorm="eval",
        beta=5.0,
        takes_smoothing=False,
        why_not="whose terms need the one true class",
    ),
}
