"""The hooks: they watch a model's forward passes and keep what the latest one showed at the head.

What runs inside the host's pass only notes tensors, so that torch.compile can trace it and nothing in it can fail;
finding the head waits until the pass has ended (or, in compiled code, until somebody asks).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ccf_plugin.errors import InputError, did_you_mean
from ccf_plugin.probe.attribution import gradient_attribution
from ccf_plugin.probe.detect import detect_in_output, gradient_members, head_by_name
from ccf_plugin.probe.head import (
    Head,
    LayerCall,
    Part,
    chosen_entry,
    find_logits,
    is_channel_first,
    is_matrix,
    logit_candidates,
)
from ccf_plugin.probe.hook import Hook

GRADIENT = "gradient"
# Before the head is known, noted calls keep their inputs alive. Those with one row per sample are small and all are
# kept (an ensemble has many heads); of those with many (tokens, pixels) only the latest so many.
_WIDE_CALLS = 4


@dataclass(frozen=True)
class ForwardPass:
    """What one forward pass showed, detached: features (N, n), logits (N, K), weight (K, n) of that pass.

    With head='gradient' there is no one weight: ``members`` are the calls whose inputs, with ``graph`` (N, K), give
    g ⊙ ∂logit_y/∂g.
    """

    features: Tensor
    logits: Tensor
    weight: Tensor | None
    training: bool
    members: tuple[LayerCall, ...] = ()
    graph: Tensor | None = None

    def gradient_attribution(self, labels: Tensor, rows: slice) -> Tensor:
        """A(x) by gradients, (len(labels), n): members side by side, positions of one member added.

        Raises:
            InputError: the pass's graph is gone.
        """
        assert self.graph is not None  # noqa: S101  (only asked of passes that keep one)
        try:
            shares = gradient_attribution([call.inputs for call in self.members], self.graph, labels, rows=rows)
        except RuntimeError as error:
            raise InputError(
                "expected the graph of the pass for head='gradient', found that it is gone; "
                f"call update before loss.backward() and optimizer.step() ({str(error).splitlines()[0]})"
            ) from error
        calls = zip(self.members, shares, strict=True)
        return torch.cat([replace(call, inputs=share).positions().sum(1) for call, share in calls], 1)


class HeadTracer:
    """Watches ``model``; ``take`` gives the latest complete forward pass, once."""

    def __init__(self, model: nn.Module, head: str | None = None, output: int | str | None = None) -> None:
        model = _unwrapped(model)
        self._model = model
        self._output = output
        self._gradient = head == GRADIENT
        self._by_hand = None if self._gradient else head
        self._head: Head | None = None
        self._parts: tuple[Part, ...] = ()
        self._entry = 0  # which of the output's candidates are the logits
        self._noting: list[tuple[int, LayerCall]] | None = None  # with the call's number in the pass
        self._wide: list[tuple[int, LayerCall]] = []
        self._number = 0
        self._pending: tuple[list[LayerCall], Any, bool] | None = None
        self._last: ForwardPass | InputError | None = None
        self._considered: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        watched = self._unconsidered()
        if self._by_hand is not None:
            if self._by_hand not in watched:
                raise InputError(
                    f"expected head to name a layer with a weight, found {head!r}"
                    f"{did_you_mean(self._by_hand, watched) or '; see model.named_modules()'}"
                )
            watched = {self._by_hand: watched[self._by_hand]}
        # The root's hooks enclose the layers', also where the root is itself the head.
        self._root = [Hook(self._begin).on(model.register_forward_pre_hook, prepend=True)]
        self._layers = {name: list(self._watch(name, module)) for name, module in watched.items()}
        self._root.append(Hook(self._end).on(model.register_forward_hook))

    @property
    def head(self) -> Head | None:
        """The head, or None before the first pass, or where it was not found."""
        self._resolve()
        return self._head

    def take(self) -> ForwardPass | InputError | None:
        """The latest pass since the last `take` or `drop`, or why it cannot be measured, or None where none came."""
        self._resolve()
        taken, self._last = self._last, None
        return taken

    def check(self) -> None:
        """Raises InputError where the latest pass cannot be measured; it stays to be taken."""
        self._resolve()
        if isinstance(self._last, InputError):
            raise self._last

    def peek(self) -> ForwardPass | None:
        """The latest pass, which stays to be taken; raises as ``check``."""
        self.check()
        return None if isinstance(self._last, InputError) else self._last

    def drop(self) -> None:
        """Forget the latest pass."""
        self._pending = self._last = None

    def detach(self) -> None:
        """Remove every hook and drop what was noted."""
        self._resolve()
        for hook in self._root:
            hook.remove()
        self._unwatch(set())
        self._noting = None
        self._wide.clear()
        self.drop()

    def _watch(self, name: str, module: nn.Module) -> Iterator[Hook]:
        computed: dict[str, Tensor] = {}

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if self._noting is None or not tensors or tensors[0].ndim < 2:
                return
            inputs = tensors[0]
            if not self._gradient:
                inputs = inputs.detach()
            kept, dtype = None, None
            if isinstance(output, Tensor):
                dtype = output.dtype
                if self._by_hand is not None:
                    kept = output.detach().clone()  # the host may go on to change it in place
                elif self._gradient:
                    kept = output
            call = LayerCall(name, module, inputs, kept, dtype, {**_tensors(module), **computed})
            wide = inputs.shape[2:].numel() > 1 if is_channel_first(module) else inputs.ndim > 2
            self._number += 1
            (self._wide if wide else self._noting).append((self._number, call))
            # Written so that torch 2.6 can trace it: no deque with a length, no next() of a generator.
            if len(self._wide) > _WIDE_CALLS:
                self._wide.pop(0)

        yield Hook(note).on(module.register_forward_hook, with_kwargs=True)
        # Reading a parametrised weight computes it anew (spectral_norm even takes a power-iteration step), so the
        # value that the pass itself computed is noted.
        for key, parametrization in _parametrizations(module).items():

            def note_weight(_: nn.Module, args: Any, output: Tensor, key: str = key) -> None:
                computed[key] = output.detach()

            yield Hook(note_weight).on(parametrization.register_forward_hook)

    def _unwatch(self, kept: set[str]) -> None:
        for name in set(self._layers) - kept:
            for hook in self._layers.pop(name):
                hook.remove()

    def _begin(self, *_: Any) -> None:
        self._noting = []
        self._wide = []
        self._number = 0
        self._pending = self._last = None

    def _end(self, _: nn.Module, args: Any, output: Any) -> None:
        if self._noting is None:  # the model called itself: the inner pass was the pass
            return
        calls = [call for _, call in sorted([*self._noting, *self._wide], key=lambda noted: noted[0])]
        self._noting = None
        self._wide = []
        if self._by_hand is None:
            sizes = {logits.shape[1] for logits in logit_candidates(output)}
            calls = [call for call in calls if any(sizes & set(matrix.shape) for _, matrix in call.matrices())]
        # W of this pass: an optimiser, a swap of averaged weights or the next pass may change it in place, and writes
        # through `.data` leave no trace in a version counter.
        calls = [
            replace(call, tensors={name: tensor.detach().clone() for name, tensor in call.tensors.items()})
            for call in calls
        ]
        self._pending = calls, output, self._model.training
        if not torch.compiler.is_compiling():
            self._resolve()

    def _resolve(self) -> None:
        """Turn the noted calls into a `ForwardPass`, finding the head where it is not known yet."""
        if self._pending is None:
            return
        calls, output, training = self._pending
        self._pending = None
        with torch.set_grad_enabled(self._gradient):
            try:
                output = chosen_entry(output, self._output)
                if self._head is None:
                    self._find_head(calls, output)
                self._last = self._read(calls, output, training)
            except InputError as error:
                self._last = self._with_new_layers(error)
            except Exception as error:  # whatever it is, the host's pass does not fail for the probe's sake
                what = " ".join(str(error).split())
                self._last = InputError(
                    f"expected a pass that the probe can read, found one where it fails ({type(error).__name__}: "
                    f"{what}); name the head by hand with head='its.name'"
                )

    def _unconsidered(self) -> dict[str, nn.Module]:
        """The layers that may be a head and were not there at the last look, by name."""
        found = {}
        for name, module in self._model.named_modules():
            if module not in self._considered and _may_be_head(module):
                self._considered.add(module)
                found[name] = module
        return found

    def _with_new_layers(self, error: InputError) -> InputError:
        """Watch layers that the model has got since, and look for the head among them in the next pass."""
        built = {} if self._by_hand is not None else self._unconsidered()
        if not built:
            return error
        self._head = None
        self._layers.update({name: list(self._watch(name, module)) for name, module in built.items()})
        names = ", ".join(map(repr, built))
        return InputError(f"{error}. The layers {names} were built in this pass or since: run another, then update")

    def _read(self, calls: list[LayerCall], output: Any, training: bool) -> ForwardPass:
        runs: dict[str, list[LayerCall]] = {}
        for call in calls:
            runs.setdefault(call.name, []).append(call)
        missing = [part.name for part in self._parts if len(runs.get(part.name, ())) <= part.call]
        if missing:
            raise InputError(
                f"expected the head {missing[0]!r} to run in every pass, found that the last pass went around it; "
                "probe the part of the model that always runs, or attach before torch.compile's first call"
            )
        used = tuple(runs[part.name][part.call] for part in self._parts)
        pairs = list(zip(self._parts, used, strict=True))
        features = [part.features(call).detach() for part, call in pairs]
        joined = features[0] if len(features) == 1 else torch.cat(features, 1)
        graph = self._logits(used[-1], output)
        if len(joined) != len(graph):
            raise InputError(
                f"expected the head to see the batch as the logits show it, found that it ran on {len(joined)} rows, "
                f"where the logits have {len(graph)}; probe the module inside, which sees them together"
            )
        if self._gradient:
            return ForwardPass(joined, graph.detach(), None, training, used, graph)
        weights = [part.weight_of(call) for part, call in pairs]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights, 1)
        return ForwardPass(joined, graph.detach(), weight, training)

    def _logits(self, call: LayerCall, output: Any) -> Tensor:
        """The model's (N, K); a head named by hand may have other classes than the model's output: then its own."""
        candidates = logit_candidates(output)
        if self._head is not None and len(candidates) > self._entry:
            logits = candidates[self._entry]
            if logits.shape[1] == self._head.classes:
                return logits
        own = find_logits(call.output)
        if own is None:
            raise InputError("expected logits in every pass, found none in the last")
        return own

    def _find_head(self, calls: list[LayerCall], output: Any) -> None:
        if self._by_hand is not None:
            if not calls:
                raise InputError(f"expected layer {self._by_hand!r} to run in the pass, found that it did not")
            parts = head_by_name(calls)
        elif self._gradient:
            parts = self._find_members(calls, output)
        else:
            self._entry, parts = detect_in_output(calls, output)
        sizes = []
        for part in parts:
            used = [call for call in calls if call.name == part.name][part.call]
            sizes.append(part.weight_of(used).shape)
        self._head = Head(
            name=" + ".join(part.name for part in parts),
            kind=" + ".join(part.kind for part in parts),
            classes=sizes[0][0],
            features=sum(size[1] for size in sizes),
        )
        self._parts = parts
        self._unwatch({part.name for part in parts})

    def _find_members(self, calls: list[LayerCall], output: Any) -> tuple[Part, ...]:
        with contextlib.suppress(InputError):
            self._entry, parts = detect_in_output(calls, output)
            return parts
        logits = find_logits(output)
        if logits is None:
            detect_in_output(calls, output)  # says what is wrong with it
            raise InputError("expected logits, found none")
        return gradient_members(calls, logits)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and DistributedDataParallel's wrappers: passes through either are its passes.

    Raises:
        InputError: a kind of module whose passes hooks cannot follow.
    """
    if isinstance(model, nn.DataParallel):
        raise InputError(
            "expected one module per process, found nn.DataParallel, whose replicas hooks cannot follow; "
            "use one process per GPU (DistributedDataParallel), or probe model.module"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "expected an eager nn.Module, found a TorchScript module, which shows nothing to hooks; "
            "probe the module that it was made from"
        )
    split = [name for name, m in model.named_modules() if isinstance(m, nn.DataParallel) and len(m.device_ids) > 1]
    if split:
        raise InputError(
            f"expected a model that runs whole in one process, found nn.DataParallel at {split[0]!r}; "
            "use one process per GPU (DistributedDataParallel)"
        )
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


def _parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.parametrizations.items()) if parametrize.is_parametrized(module) else {}  # type: ignore


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The layer's own tensors by name: parameters, buffers, and the plain attributes that old weight norms set."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    owned = {**module._buffers, **module._parameters}
    return plain | {name: value for name, value in owned.items() if value is not None}


def _may_be_head(module: nn.Module) -> bool:
    """Whether a layer has a matrix, or may have one by the end of its first pass."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) or _parametrizations(module):
        return True
    return any(is_matrix(tensor) for tensor in _tensors(module).values())
