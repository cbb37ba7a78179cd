"""The hooks: they watch a model's forward passes and keep what the latest one showed at the head."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from ccf_plugin.errors import InputError, did_you_mean
from ccf_plugin.probe.head import Head, LayerCall, Part, detect_head, find_logits, head_by_name

# Calls noted before the head is known: a bound on the activations that noting them keeps alive.
_NOTED_CALLS = 64


@dataclass(frozen=True)
class ForwardPass:
    """What one forward pass showed, detached: features (N, n), logits (N, K), weight (K, n) of that pass."""

    features: Tensor
    logits: Tensor
    weight: Tensor
    training: bool


class HeadTracer:
    """Keeps the latest complete forward pass of ``model`` in ``last`` (None before it, and while one runs)."""

    def __init__(self, model: nn.Module, head: str | None = None) -> None:
        if isinstance(model, nn.DataParallel):
            raise InputError(
                "expected one module per process, found nn.DataParallel, whose replicas hooks cannot follow; "
                "use one process per GPU (DistributedDataParallel), or probe model.module"
            )
        self.head: Head | None = None
        self.last: ForwardPass | None = None
        self._model = model
        self._by_hand = head
        self._parts: tuple[Part, ...] = ()
        self._calls: deque[LayerCall] = deque(maxlen=_NOTED_CALLS)
        self._computed: dict[tuple[nn.Module, str], Tensor] = {}
        self._running = False
        watched = {name: module for name, module in model.named_modules() if _may_be_head(module)}
        if head is not None:
            if head not in watched:
                raise InputError(
                    f"expected head to name a layer with a weight, found {head!r}"
                    f"{did_you_mean(head, watched) or '; see model.named_modules()'}"
                )
            watched = {head: watched[head]}
        # The root's hooks enclose the layers', also where the root is itself the head.
        self._root = [model.register_forward_pre_hook(_Hook(self._begin), prepend=True)]
        self._layers = {name: list(self._watch(name, module)) for name, module in watched.items()}
        self._root.append(model.register_forward_hook(_Hook(self._end)))

    def detach(self) -> None:
        """Remove every hook and drop what was noted."""
        for handle in self._root:
            handle.remove()
        self._unwatch(set())
        self._calls.clear()
        self._computed.clear()
        self.last = None

    def _watch(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if self._running and inputs is not None and inputs.ndim >= 2:
                computed = {key: tensor for (owner, key), tensor in self._computed.items() if owner is module}
                self._calls.append(LayerCall(name, module, inputs.detach(), output, _tensors(module) | computed))

        yield module.register_forward_hook(_Hook(note), with_kwargs=True)
        # Reading a parametrised weight computes it anew (spectral_norm even takes a power-iteration step), so the
        # value that the pass itself computed is noted.
        for key, parametrization in _parametrizations(module).items():

            def note_weight(_: nn.Module, args: Any, output: Tensor, key: str = key) -> None:
                self._computed[module, key] = output.detach()

            yield parametrization.register_forward_hook(_Hook(note_weight))

    def _unwatch(self, kept: set[str]) -> None:
        for name in set(self._layers) - kept:
            for handle in self._layers.pop(name):
                handle.remove()

    def _begin(self, *_: Any) -> None:
        self._running = True
        self._calls.clear()
        self.last = None

    def _end(self, _: nn.Module, args: Any, output: Any) -> None:
        calls = list(self._calls)
        self._running = False
        self._calls.clear()
        if self.head is None:
            self._find_head(calls, output)
        latest = {call.name: call for call in calls}
        if not all(part.name in latest for part in self._parts):
            return  # the pass went around the head: `last` stays None, and `update` says so
        features = [part.features(latest[part.name]) for part in self._parts]
        weights = [part.weight_of(latest[part.name]) for part in self._parts]
        logits = find_logits(latest[self._parts[-1].name].output if self._by_hand is not None else output)
        if logits is None:
            return
        self.last = ForwardPass(
            features=features[0] if len(features) == 1 else torch.cat(features, 1),
            logits=logits.detach(),
            weight=weights[0] if len(weights) == 1 else torch.cat(weights, 1),
            training=self._model.training,
        )

    def _find_head(self, calls: list[LayerCall], output: Any) -> None:
        if self._by_hand is not None:
            if not calls:
                raise InputError(f"expected layer {self._by_hand!r} to run in the pass, found that it did not")
            parts = head_by_name(calls[-1])
        else:
            logits = find_logits(output)
            if logits is None:
                shape = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                raise InputError(
                    f"expected a classifier's logits of shape (N, K), found an output of {shape}; "
                    "name the classification head by hand with head='its.name'"
                )
            parts = detect_head(calls, logits)
        used = {call.name: call for call in calls}
        weights = [part.weight_of(used[part.name]) for part in parts]
        self.head = Head(
            name=" + ".join(part.name for part in parts),
            kind=" + ".join(part.kind for part in parts),
            classes=len(weights[0]),
            features=sum(weight.shape[1] for weight in weights),
        )
        self._parts = parts
        self._unwatch({part.name for part in parts})


class _Hook:
    """A hook that neither a copy nor a pickle of the host model takes along: there it becomes one that does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        if self._call is not None:
            self._call(*args)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.parametrizations.items()) if parametrize.is_parametrized(module) else {}  # type: ignore


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The layer's own tensors by name: parameters, buffers, and the plain attributes that old weight norms set."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    owned = {**module._buffers, **module._parameters}
    return plain | {name: value for name, value in owned.items() if value is not None}


def _may_be_head(module: nn.Module) -> bool:
    """Whether a layer has a matrix (a 1×1 kernel counts), or may have one by the end of its first pass."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) or _parametrizations(module):
        return True
    return any(tensor.ndim >= 2 and tensor.shape[2:].numel() == 1 for tensor in _tensors(module).values())
