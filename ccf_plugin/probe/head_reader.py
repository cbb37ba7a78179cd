"""What a head reads in passes that are trained on, with the graph: so that CAS can be a term of a loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.engine.outputs import Choice
from ccf_plugin.errors import Fault, InputError
from ccf_plugin.probe.ablation import passed
from ccf_plugin.probe.layers import unwrapped
from ccf_plugin.probe.trace import GRADIENT, HeadTracer

_ABOUT_1 = 1e-3


class HeadReader:
    """The layer that is a model's head, found and verified by value on construction.

    Args:
        model: images (N, …) → logits (N, K); its modes, buffers and hooks are as before afterwards.
        images: two or more, (N, …) on the model's device.
        head, output: as `CrossClassProbe` takes them.

    Raises:
        InputError: the head cannot be found, or is not one layer with a matrix (K, n), of which the logits are
            g(x) Wᵀ and one constant row, on one feature vector a sample.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, *, head: str | None = None, output: Choice | None = None
    ) -> None:
        if head == GRADIENT:
            raise _refusal("head='gradient', which has no one weight")
        tracer = HeadTracer(model, head, output)
        try:
            with evaluation_mode(model), torch.no_grad():
                passed(tracer, model, images)
                assert tracer.head is not None  # noqa: S101  (else the pass was refused)
                name = tracer.head.name
                module = dict(unwrapped(model).named_modules()).get(name)
                if module is None or not isinstance(getattr(module, "weight", None), Tensor):
                    raise _refusal(f"{name!r}")
                self._module = module
                with self.reading(model) as read:
                    shown = passed(tracer, read, images)
                    features = read.latest_features()
        finally:
            tracer.detach()
        assert shown.weight is not None  # noqa: S101  (only head="gradient" has none)
        if not (_is_weight(self.weight.detach(), shown.weight) and torch.equal(features, shown.features)):
            raise _refusal(f"{name!r}, which is only a part of it")

    @property
    def weight(self) -> Tensor:
        """W, (K, n), as it is now, with its graph."""
        weight = self._module.weight
        assert isinstance(weight, Tensor)  # noqa: S101  (looked at on construction)
        return weight.flatten(1)

    @contextlib.contextmanager
    def reading(self, forward: Callable[[Tensor], Tensor]) -> Iterator[ReadForward]:
        """Inside, ``forward`` as a `ReadForward`: of the model, or of a wrapper of it that is not compiled."""
        read = ReadForward(forward, self)
        with self._module.register_forward_pre_hook(read.note):
            yield read


class ReadForward:
    """A forward pass that can be asked what the head read in it."""

    def __init__(self, forward: Callable[[Tensor], Tensor], reader: HeadReader) -> None:
        self._forward, self._reader = forward, reader
        self._read: list[Tensor] = []
        self._passes: list[tuple[Tensor, list[Tensor]]] = []

    def __call__(self, images: Tensor) -> Tensor:
        """The pass itself, images (N, …) → logits (N, K)."""
        self._read = []
        logits = self._forward(images)
        self._passes.append((logits, self._read))
        return logits

    def note(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """The head runs."""
        self._read.extend(args[:1])

    @property
    def head(self) -> Tensor:
        """W, (K, n), with its graph."""
        return self._reader.weight

    def features(self, logits: Tensor) -> Tensor:
        """g(x) of the pass that gave these logits, (N, n), with its graph.

        Raises:
            InputError: ``logits`` are not what this pass gave, or the head ran several times in it.
        """
        for given, read in self._passes:
            if given is logits:
                return self._only(read)
        raise InputError(
            "expected logits as forward gave them, to know the features of their pass, found others; give StepOutput "
            "and features() what forward returned, unchanged"
        )

    def latest_features(self) -> Tensor:
        """g(x) of the latest pass, (N, n)."""
        return self._only(self._read)

    def _only(self, read: list[Tensor]) -> Tensor:
        if len(read) != 1 or read[0].flatten(1).shape[1] != self.head.shape[1]:
            shapes = " and ".join(str(tuple(features.shape)) for features in read) or "nothing"
            raise _refusal(f"one that read {shapes} in a pass")
        return read[0].flatten(1)


def _is_weight(weight: Tensor, shown: Tensor) -> bool:
    """Whether the head's weight is the layer's, up to a factor of about 1, which no cosine depends on.

    Such a factor is fitted where the rounding of a few samples' logits looks like one.
    """
    if weight.shape != shown.shape:
        return False
    weight = weight.to(shown.dtype)
    factor = (weight * shown).sum() / weight.square().sum()
    return bool((factor - 1).abs() < _ABOUT_1) and torch.allclose(factor * weight, shown, rtol=1e-6, atol=0)


def _refusal(found: str) -> InputError:
    expected = "a head that is one linear layer or 1×1 convolution on one feature vector a sample"
    return InputError(Fault("", expected, found, "name such a layer by {head}, or take another model"))
