"""Whether a model passes gradients to the images of an attack, without which most attacks cannot move them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.outputs import output_entries
from ccf_plugin.errors import Fault, InputError

# What torch says where a step takes no gradient back.
_BROKEN_OFF = ("nference tensors", "numpy() on Tensor that requires grad")


class NoGradientError(InputError):
    """Gradients of the images are needed, and the model passes none to them."""


def no_gradient(remedy: str) -> NoGradientError:
    """That error, with what to do."""
    found = "that none reaches them: a step of it runs without (no_grad, inference_mode, detach, NumPy, argmax)"
    return NoGradientError(Fault("", "a model that passes a gradient to its images", found, remedy))


def is_broken_off(error: Exception | None) -> bool:
    """Whether a pass forward or back failed since a step of it takes no gradient back."""
    return error is not None and any(words in str(error) for words in _BROKEN_OFF)


class GradientWatch:
    """Inside the block it notes what gradients a model passes to its images. It changes no number, and waits for none.

    Attributes:
        asked: whether the model was given images that require gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._reached = self.asked = False
        self._moves: Tensor | None = None  # whether any gradient was not zero

    def __enter__(self) -> GradientWatch:
        self._hook = self._model.register_forward_hook(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def check(self, attack: str, count: int, remedy: str, error: Exception | None = None) -> None:
        """Report missing gradients by an error, and gradients that are all zero by a warning.

        Args:
            attack: its name.
            count: how many images there were.
            remedy: what to do where there are none.
            error: what the attack failed by, if it did.

        Raises:
            NoGradientError: none reaches the images.
        """
        if is_broken_off(error) or (self.asked and not self._reached):
            raise no_gradient(remedy) from error
        if error is None and self._moves is not None and not bool(self._moves):
            warnings.warn(
                f"attack {attack}: the gradients of all {count} images of its first batch are zero, so that it leaves "
                "them where it starts; RA under it says nothing of this model",
                stacklevel=3,
            )

    def _watch(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        images = args[0] if args else None
        if isinstance(images, Tensor) and images.requires_grad and torch.is_grad_enabled():
            self.asked = True
            if not self._reached:
                self._reached = leads_to([entry.tensor for entry in output_entries(output)], images)
            images.register_hook(self._note)  # type: ignore[no-untyped-call]

    _watch.only_reads = True  # type: ignore[attr-defined]  # see `engine.graphs.model_state`

    def _note(self, gradient: Tensor) -> None:
        moves = (gradient != 0).any()
        self._moves = moves if self._moves is None else self._moves | moves


def leads_to(results: Sequence[Tensor], source: Tensor) -> bool:
    """Whether autograd knows a way from one of the results to the source; without running it."""
    ahead: list[Any] = [result.grad_fn for result in results if result.grad_fn is not None]
    known = set(ahead)
    while ahead:
        node = ahead.pop()
        if node is source.grad_fn or getattr(node, "variable", None) is source:
            return True
        new = {before for before, _ in node.next_functions if before is not None} - known
        known |= new
        ahead += new
    return any(result is source for result in results)
