"""A layer in front of a classifier's head that replaces features by constants: an attack meets a model without them.

Replacing a feature by its mean (mean ablation) takes what tells the samples apart and leaves the logits' level.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.engine.outputs import Choice
from ccf_plugin.errors import Fault, InputError
from ccf_plugin.probe.attribution import accumulator_dtype
from ccf_plugin.probe.calls import is_channel_first
from ccf_plugin.probe.forward_pass import ForwardPass
from ccf_plugin.probe.head import LinearHead
from ccf_plugin.probe.layers import unwrapped
from ccf_plugin.probe.trace import GRADIENT, HeadTracer

_ROUNDING = 16  # times what the head's own check allows: two passes, and features that are larger than any image's


def ablated_logits(logits: Tensor, features: Tensor, weight: Tensor, columns: Sequence[int], values: Tensor) -> Tensor:
    """The logits with some features replaced by constants: z − Σ_k (g_k − v_k) W[:, k] over the ``columns`` k.

    Args:
        logits: z, (N, K) float.
        features: g(x), (N, n) of the same dtype.
        weight: W, (K, n) of the same dtype.
        columns: the features to replace, from 0 to n-1.
        values: v, what replaces each of the n features, (n,) of the same dtype.

    Returns:
        (N, K) of the same dtype.
    """
    index = torch.as_tensor(columns, dtype=torch.int64, device=features.device)
    return logits - (features[:, index] - values[index]) @ weight[:, index].T


class AblationLayer:
    """The place in front of a model's head. Inside ``replacing`` the head reads constants there.

    The features are those of `CrossClassProbe`: where a BatchNorm or a low-rank layer is folded into the head, the
    replacement stands in front of it too. On construction the place is verified by value: the model's logits with half
    of the features replaced are those that ``ablated_logits`` computes.

    Args:
        model: images (N, …) → logits (N, K); its modes and hooks are as before afterwards.
        images: two or more, (N, …) on the model's device.
        head, output: as `CrossClassProbe` takes them.

    Attributes:
        name: of the head.
        weight: W, (K, n), in eval mode.
        means: of the features of ``images``, (n,).

    Raises:
        InputError: the head cannot be found, or is not one layer that reads one feature vector a sample.
    """

    name: str
    weight: Tensor
    means: Tensor

    def __init__(
        self, model: nn.Module, images: Tensor, *, head: str | LinearHead | None = None, output: Choice | None = None
    ) -> None:
        self._model, self._after = unwrapped(model), isinstance(head, LinearHead)
        if head == GRADIENT:
            raise _refusal("head='gradient', which has no one weight")
        tracer = HeadTracer(model, head, output)
        try:
            with evaluation_mode(model), torch.no_grad():
                intact = passed(tracer, model, images)
                record = tracer.take()
                assert record is not None and intact.weight is not None  # noqa: PT018, S101  (it was read)
                plan = tracer.plan_of(record)
                self.name = " + ".join(term.links[0].name for term in plan.used)
                self.weight, self.means = intact.weight, intact.features.mean(0)
                self._modules = self._readers([term.links[-1].name for term in plan.used])
                self._verify(intact, lambda: _logits_at(tracer, model, images, plan.path))
        finally:
            tracer.detach()

    def _readers(self, names: list[str]) -> list[nn.Module]:
        """The layers of these names, which read the features (or with a `LinearHead` give them)."""
        known = dict(self._model.named_modules())
        if missing := [name for name in names if name not in known]:
            raise _refusal(f"the function {missing[0]}, in front of which no layer can stand")
        return [known[name] for name in dict.fromkeys(names)]

    def _verify(self, intact: ForwardPass, run: Callable[[], Tensor | None]) -> None:
        dtype = accumulator_dtype(intact.features.device)
        features, logits, weight = (part.to(dtype) for part in (intact.features, intact.logits, self.weight))
        columns = range(0, features.shape[1], 2)
        values = features.mean(0) + features.std()
        assert intact.reading is not None  # noqa: S101  (only head="gradient" has none)
        allowed = intact.reading.allowed.amax() * _ROUNDING
        with self.replacing(columns, values):
            replaced = run()
        expected = ablated_logits(logits, features, weight, columns, values)
        if replaced is None or replaced.shape != expected.shape:
            raise _refusal(f"{self.name!r}, which does not make the model's own logits")
        if not bool(((replaced.to(dtype) - expected).abs() <= allowed).all()):
            raise _refusal(f"{self.name!r}, which reads several")

    @contextlib.contextmanager
    def replacing(self, columns: Sequence[int], values: Tensor) -> Iterator[None]:
        """Inside, the head reads ``values[k]`` in place of feature k, for each k of ``columns``, in every sample.

        No gradient passes through what is replaced.

        Args:
            columns: from 0 to n-1; empty: nothing is replaced.
            values: (n,) float.

        Raises:
            InputError: other columns, or another number of values.
        """
        count = self.weight.shape[1]
        if others := [column for column in columns if not 0 <= column < count]:
            raise InputError(f"expected columns from 0 to {count - 1}, found {others[0]}")
        if values.shape != (count,):
            raise InputError(f"expected values of {count} features, found those of shape {tuple(values.shape)}")
        index, constants = torch.as_tensor(columns, dtype=torch.int64, device="cpu"), values.detach()
        with contextlib.ExitStack() as hooks:
            for module in self._modules:
                if self._after:
                    hooks.enter_context(module.register_forward_hook(_replacing_output(index, constants)))
                else:
                    hook = _replacing_input(index, constants, 1 if is_channel_first(module) else -1)
                    hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
            yield


def _replacing_input(index: Tensor, values: Tensor, dimension: int) -> Any:
    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for place, value in enumerate(args):
            if isinstance(value, Tensor):
                return (*args[:place], _replaced(value, index, values, dimension), *args[place + 1 :]), kwargs
        for key, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, key: _replaced(value, index, values, dimension)}
        return args, kwargs

    return replace


def _replacing_output(index: Tensor, values: Tensor) -> Any:
    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return _replaced(output, index, values, 1)

    return replace


def _replaced(features: Tensor, index: Tensor, values: Tensor, dimension: int) -> Tensor:
    """Features (N, n), (N, …, n) or (N, n, …) with constants at some of the n."""
    if features.shape[dimension] != len(values):
        raise _refusal(f"layers that read {features.shape[dimension]} of {len(values)} features")
    where = torch.zeros(len(values), dtype=torch.bool, device="cpu").index_fill(0, index, True).to(features.device)
    shape = [1] * features.ndim
    shape[dimension] = -1
    return torch.where(where.view(shape), values.to(features).view(shape), features)


def passed(tracer: HeadTracer, model: Callable[[Tensor], Any], images: Tensor) -> ForwardPass:
    """What a pass shows; InputError where its logits are no head's."""
    model(images)
    shown = tracer.peek()
    if shown is None:
        raise InputError("expected a forward pass of the model, found none; give the module that runs itself")
    if shown.reading is not None and bool(shown.reading.missed):
        raise _refusal(f"logits that are no head's ({shown.reason or 'they are not g Wᵀ and one constant row'})")
    return shown


def _logits_at(
    tracer: HeadTracer, model: nn.Module, images: Tensor, path: tuple[int | str, ...] | None
) -> Tensor | None:
    """The entry of the model's output there, (N, K), whatever made it; None where a head has an output of its own."""
    model(images)
    record = tracer.take()
    entries = [] if record is None else record.entries
    return next((entry.logits for entry in entries if entry.path == path), None)


def _refusal(problem: str) -> InputError:
    expected = (
        "a head that is one layer on one feature vector a sample (linear, 1×1 convolution, parametrised, with a "
        "BatchNorm before it)"
    )
    return InputError(Fault("", expected, problem, "name such a layer by {head}, or take another model"))
