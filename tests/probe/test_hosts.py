"""Whatever holds the model, its pass is the same with a probe and without, bit for bit, and never fails for the probe's
sake; the probe measures it, or says in `update` why not.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import gc
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ccf_plugin import CrossClassProbe, CrossClassResult, InputError

from . import oracle
from .test_host import hooks_on

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

N, n, K = 12, 6, 4
Pass = Callable[[nn.Module], Any]


class Body(nn.Module):
    """Images (N, 1, 4, 4) → g (N, n) → logits (N, K)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, n), nn.Tanh())
        self.head = nn.Linear(n, K)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


def images(seed: int = 0) -> Tensor:
    return torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")


LABELS = torch.arange(N) % K


def right(parts: list[tuple[Tensor, Tensor]], labels: Tensor = LABELS) -> np.ndarray:
    """C of several passes, each g (N, n) and W (K, n), in plain float64 loops."""
    rows = [g.detach().double() * weight.detach().double()[labels] for g, weight in parts]
    values = torch.cat(rows).tolist()
    # A(x) = g ⊙ W[y] is already multiplied out, since W differs between passes
    ones = torch.ones(K, rows[0].shape[1]).tolist()
    return np.array(oracle.correlation_matrix(values, ones, labels.tolist() * len(parts)))


def measured(probe: CrossClassProbe, expected: np.ndarray, tolerance: float = 1e-5) -> CrossClassResult:
    result = probe.compute()
    np.testing.assert_allclose(result.matrix, expected, atol=tolerance)
    return result


def refusal(call: Callable[[], Any]) -> str | None:
    """The message of the InputError that a call raised, or None where it raised none."""
    try:
        call()
    except InputError as error:
        return str(error)
    return None


def update_or_refuse(
    probe: CrossClassProbe, expected: np.ndarray | None, remedy: str = "", tolerance: float = 1e-5
) -> str:
    """What became of the latest pass: "measured", and then rightly, or "refused", and then in one line."""
    message = refusal(lambda: probe.update(LABELS))
    if message is None and (message := refusal(probe.compute)) is not None:
        assert "off by" in message  # values are checked on the device, and told by `compute`
    elif message is not None:
        assert remedy in message
    if message is not None:
        assert "\n" not in message
        return "refused"
    assert expected is not None, "expected a refusal"
    measured(probe, expected, tolerance)
    return "measured"


def equal(found: Any, expected: Any) -> bool:
    """Bit for bit, also inside tuples, lists and mappings."""
    if isinstance(expected, Tensor):
        if found.device.type == "meta":
            return found.shape == expected.shape
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[key], expected[key]) for key in expected)
    if isinstance(expected, (tuple, list)):
        return len(found) == len(expected) and all(equal(a, b) for a, b in zip(found, expected, strict=True))
    return bool(found == expected)


# --- ways to run a pass: the host gets what it gets without a probe -------------------------------------------------


def plain(model: nn.Module) -> Tensor:
    return model(images())


def without_gradients(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(images())


def inference(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(images()).clone()


def training(model: nn.Module) -> list[Tensor]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(3):
        nn.functional.cross_entropy(model(images(step)), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [model(images()), *model.parameters()]


def by_functional_call(model: nn.Module) -> Tensor:
    doubled = {name: 2 * value.detach() for name, value in model.named_parameters()}
    return torch.func.functional_call(model, doubled, images())


def gradients_of_weights(model: nn.Module) -> dict[str, Tensor]:
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return torch.func.grad(lambda p: torch.func.functional_call(model, p, images()).square().sum())(parameters)


def gradients_of_images(model: nn.Module) -> Tensor:
    return torch.func.grad(lambda x: model(x).square().sum())(images())


def jacobian(model: nn.Module) -> Tensor:
    return torch.func.jacrev(model)(images())


def tangents(model: nn.Module) -> tuple[Tensor, Tensor]:
    return torch.func.jvp(model, (images(),), (images(1),))


def forward_mode(model: nn.Module) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(images(), images(1))
        return torch.autograd.forward_ad.unpack_dual(model(dual)).tangent


def second_derivatives(model: nn.Module) -> Tensor:
    x = images().requires_grad_()
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), list(model.parameters()), allow_unused=True)[0]


def over_samples(model: nn.Module) -> Tensor:
    return torch.func.vmap(lambda x: model(x.unsqueeze(0)).squeeze(0))(images())


def over_weights(model: nn.Module) -> Tensor:
    """An ensemble's members side by side."""
    stacked = {name: torch.stack([value.detach(), 2 * value.detach()]) for name, value in model.named_parameters()}
    x = images()
    return torch.func.vmap(lambda p: torch.func.functional_call(model, p, x))(stacked)


def sample_gradients(model: nn.Module) -> dict[str, Tensor]:
    """As differentially private training takes them."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, x.unsqueeze(0))
        return nn.functional.cross_entropy(logits, y.unsqueeze(0))

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, images(), LABELS)


def on_fake_tensors(model: nn.Module) -> tuple[int, ...]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return tuple(model(mode.from_tensor(images())).shape)


def on_meta(model: nn.Module) -> Tensor:
    return model.to("meta")(images().to("meta"))


def counted(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        model(images())
    return int(counter.get_total_flops())


def operations(model: nn.Module) -> list[str]:
    """What a profiler of operations sees of the host's own products."""
    seen: list[str] = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Note():
        model(images())
    return [name for name in seen if name in ("mm", "addmm", "bmm", "baddbmm", "tanh", "_local_scalar_dense")]


def under_a_function_mode(model: nn.Module) -> tuple[Tensor, list[str]]:
    seen: list[str] = []

    class Note(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    with Note():
        logits = model(images())
    return logits, [name for name in seen if name in ("linear", "tanh")]


def with_warnings_as_errors(model: nn.Module) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model(images())


def on_another_default_device(model: nn.Module) -> Tensor:
    with torch.device("meta"):
        return model(images())


def with_another_default_type(model: nn.Module) -> Tensor:
    torch.set_default_dtype(torch.float64)
    try:
        return model(images())
    finally:
        torch.set_default_dtype(torch.float32)


def saving_elsewhere(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = images().requires_grad_()
    with torch.autograd.graph.save_on_cpu():
        logits = model(x)
    return logits, torch.autograd.grad(logits.square().sum(), x)[0]


def saved_tensors(model: nn.Module) -> int:
    """How many tensors the graph saves: the probe adds none."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(images())
    return len(saved)


def looking_for_anomalies(model: nn.Module) -> Tensor:
    with torch.autograd.detect_anomaly(check_nan=True):
        logits = model(images())
        logits.square().sum().backward()
    return logits


def deterministically(model: nn.Module) -> Tensor:
    torch.use_deterministic_algorithms(True)
    try:
        return model(images())
    finally:
        torch.use_deterministic_algorithms(False)


def traced(model: nn.Module) -> Tensor:
    return torch.jit.trace(model, images(1))(images())


def symbolically_traced(model: nn.Module) -> tuple[Tensor, str]:
    module = torch.fx.symbolic_trace(model)
    return module(images()), module.code


def exported(model: nn.Module) -> Tensor:
    return torch.export.export(model, (images(1),), strict=False).module()(images())


def exported_nodes(model: nn.Module) -> list[str]:
    """The graph holds nothing of the probe."""
    program = torch.export.export(model, (images(),), strict=False)
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def in_threads(model: nn.Module) -> list[Tensor]:
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        for _ in range(20):
            found[number] = model(images(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in sorted(found)]


def changed_in_place(model: nn.Module) -> tuple[Tensor, Tensor]:
    logits = model(images())
    logits[:, 0] = -1e4
    logits.mul_(2)
    logits.sum().backward()
    return logits, model.head.weight.grad


def checkpointed(model: nn.Module) -> tuple[Tensor, Tensor]:
    logits = checkpoint(model, images().requires_grad_(), use_reentrant=False)
    logits.square().sum().backward()
    return logits, model.head.weight.grad


def checkpointed_reentrant(model: nn.Module) -> tuple[Tensor, Tensor]:
    logits = checkpoint(model, images().requires_grad_(), use_reentrant=True)
    logits.square().sum().backward()
    return logits, model.head.weight.grad


def with_weights_of_inference_mode(model: nn.Module) -> Tensor:
    """Inference tensors have no version counter."""
    with torch.inference_mode():
        model.head.weight.data = model.head.weight * 2
        model.head.weight = nn.Parameter(model.head.weight.clone(), requires_grad=False)
        return model(images()).clone()


def with_a_sparse_weight(model: nn.Module) -> Tensor:
    weight = model.head.weight.detach().to_sparse()
    model.head.weight = nn.Parameter(weight, requires_grad=False)
    model.head.forward = lambda g: torch.sparse.mm(model.head.weight, g.T).T + model.head.bias
    return model(images())


def with_a_complex_body(model: nn.Module) -> Tensor:
    model.features[1].to(torch.complex64)
    model.features.register_forward_hook(lambda *arguments: arguments[2].real.contiguous())
    return model(images().to(torch.complex64))


def with_a_quantised_head(model: nn.Module) -> Tensor:
    quantised = torch.ao.quantization.quantize_dynamic(model, {"head": torch.ao.quantization.default_dynamic_qconfig})
    return quantised(images())


def replaced_by_a_hook(model: nn.Module) -> Tensor:
    model.head.register_forward_hook(lambda *arguments: arguments[2] * 2)
    model.register_forward_hook(lambda *arguments: arguments[2] + 1)
    return model(images())


def with_a_global_hook(model: nn.Module) -> Tensor:
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 1.5)
    try:
        return model(images())
    finally:
        handle.remove()


def with_another_forward(model: nn.Module) -> Tensor:
    model.forward = lambda x: model.head(model.features(x)) / 2
    return model(images())


def with_shared_memory(model: nn.Module) -> Tensor:
    return model.share_memory()(images())


PASSES: list[Pass] = [
    plain, without_gradients, inference, training, by_functional_call, gradients_of_weights, gradients_of_images,
    jacobian, tangents, forward_mode, second_derivatives, over_samples, over_weights, sample_gradients,
    on_fake_tensors, on_meta, counted, operations, under_a_function_mode, with_warnings_as_errors,
    on_another_default_device, with_another_default_type, saving_elsewhere, saved_tensors, looking_for_anomalies,
    deterministically, traced, symbolically_traced, exported, exported_nodes, in_threads, changed_in_place,
    checkpointed, checkpointed_reentrant, with_weights_of_inference_mode, with_a_sparse_weight, with_a_complex_body,
    with_a_quantised_head, replaced_by_a_hook, with_a_global_hook, with_another_forward, with_shared_memory,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """No mode and no hook of all modules outlives a test."""
    yield
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("warmed", [False, True], ids=["first pass", "after another"])
@pytest.mark.parametrize("run", PASSES, ids=lambda run: run.__name__)
def test_a_pass_is_bit_identical(run: Pass, warmed: bool) -> None:
    expected = run(Body())
    model = Body()
    rng = torch.get_rng_state()
    with CrossClassProbe(model, instances=True) as probe:
        if warmed:
            model(images())
            probe.update(LABELS)
        found = run(model)
        assert equal(found, expected)
        assert torch._C._len_torch_function_stack() == 0
        with contextlib.suppress(InputError):
            probe.update(LABELS)
    assert torch.equal(torch.get_rng_state(), rng)


# of those passes, the ones whose figure is known
FIGURES: dict[str, tuple[Pass, Callable[[nn.Module], list[tuple[Tensor, Tensor]]]]] = {
    "functional_call": (by_functional_call, lambda m: [(_doubled(m).features(images()), 2 * m.head.weight)]),
    "grad of weights": (gradients_of_weights, lambda m: [(m.features(images()), m.head.weight)]),
    "grad of images": (gradients_of_images, lambda m: [(m.features(images()), m.head.weight)]),
    "jvp": (tangents, lambda m: [(m.features(images()), m.head.weight)]),
    "forward mode": (forward_mode, lambda m: [(m.features(images()), m.head.weight)]),
    "checkpoint": (checkpointed, lambda m: [(m.features(images()), m.head.weight)]),
    "reentrant checkpoint": (checkpointed_reentrant, lambda m: [(m.features(images()), m.head.weight)]),
    "changed in place": (changed_in_place, lambda m: [(m.features(images()), m.head.weight)]),
    "function mode": (under_a_function_mode, lambda m: [(m.features(images()), m.head.weight)]),
    "inference": (inference, lambda m: [(m.features(images()), m.head.weight)]),
}


def _doubled(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FIGURES)
def test_what_is_measured_there(name: str) -> None:
    run, parts = FIGURES[name]
    model = Body()
    with CrossClassProbe(model) as probe:
        run(model)
        probe.update(LABELS)
        measured(probe, right(parts(model)))


@pytest.mark.parametrize("run", [over_samples, over_weights, sample_gradients, on_fake_tensors, on_meta])
def test_a_pass_without_one_figure_is_never_measured_wrongly(run: Pass) -> None:
    """Rows of vmap, tensors without values: an error."""
    model = Body()
    with CrossClassProbe(model) as probe:
        run(model)
        with pytest.raises(InputError) as caught:
            probe.update(LABELS)
            probe.compute()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_of_several_threads_passes_at_once_one_is_measured() -> None:
    model = Body()
    with CrossClassProbe(model) as probe:
        in_threads(model)
        probe.update(LABELS)
        figures = [right([(model.features(images(number)), model.head.weight)]) for number in range(3)]
        matrix = probe.compute().matrix
    assert any(np.allclose(matrix, figure, atol=1e-6) for figure in figures)


# --- outputs and inputs that a careless hook stumbles over ----------------------------------------------------------


class Moody:
    """An output whose ``logits`` cannot be read."""

    @property
    def logits(self) -> Tensor:
        raise RuntimeError("computed only on Tuesdays")


class MoodyMapping(collections.UserDict):
    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("closed")


class Once:
    """A generator-like output that may be read once, by the host."""

    def __init__(self, logits: Tensor) -> None:
        self.parts = iter([logits])

    def __iter__(self) -> Iterator[Tensor]:
        return self.parts


@dataclasses.dataclass
class Record:
    scores: Tensor
    note: str


def within_itself(logits: Tensor) -> list[Any]:
    output: list[Any] = [logits]
    output.append(output)
    return output


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "an unreadable attribute": lambda logits: Moody(),
    "an unreadable mapping": lambda logits: MoodyMapping(a=1),
    "an iterator": lambda logits: Once(logits),
    "a generator": lambda logits: (part for part in [logits]),
    "a list that holds itself": within_itself,
    "a dataclass": lambda logits: Record(logits, "note"),
    "nothing": lambda logits: None,
    "a number": lambda logits: float(logits.sum()),
    "text": lambda logits: "cat",
    "a NumPy array": lambda logits: logits.detach().numpy(),
    "integers": lambda logits: logits.argmax(1),
    "booleans": lambda logits: logits > 0,
    "complex numbers": lambda logits: logits.to(torch.complex64),
    "nested tuples": lambda logits: ((logits,), [None, {"a": logits.sum()}]),
    "a nested tensor": lambda logits: torch.nested.nested_tensor([logits[:5].detach(), logits[5:].detach()]),
    "a sparse tensor": lambda logits: logits.detach().to_sparse(),
    "an empty tensor": lambda logits: logits[:0],
    "a scalar": lambda logits: logits.sum(),
    "a transposed view": lambda logits: logits.T,
    "NaN": lambda logits: logits * torch.nan,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OUTPUTS)
def test_any_output_passes_through(name: str) -> None:
    made: list[Any] = []

    class Model(Body):
        def forward(self, x: Tensor) -> Any:
            made.append(OUTPUTS[name](super().forward(x)))
            return made[-1]

    model = Model()
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            output = model(images())
            assert output is made[-1]
            assert name not in ("an iterator", "a generator") or len(list(output)) == 1
        message = refusal(lambda: probe.update(LABELS)) or refusal(probe.compute)
        assert message is None or "\n" not in message


class Stubborn(nn.Parameter):
    """A weight that can be multiplied with and nothing else: as quantised ones of young libraries are."""

    REFUSED = ("clone", "detach", "detach_", "double", "float", "to", "reshape", "view", "equal", "__deepcopy__")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in cls.REFUSED:
            raise NotImplementedError(f"{name} of {cls.__name__}")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class StubbornActivation(Tensor):
    """Activations of such a kind: what is computed from them is of it too."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in Stubborn.REFUSED and name not in ("reshape", "view"):
            raise NotImplementedError(f"{name} of {cls.__name__}")
        return super().__torch_function__(func, types, args, kwargs or {})


class Opaque(Tensor):
    """A weight that shows torch.dispatch nothing but what a linear layer asks."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Opaque:
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=held.device)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        raise NotImplementedError("repr of Opaque")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            x, weight, bias = args
            return nn.functional.linear(x, weight.held, bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} of Opaque")


def stubborn_weight(model: nn.Module) -> Tensor:
    data = model.head.weight.detach().clone()
    model.head.weight = torch.Tensor._make_subclass(Stubborn, data, True)
    return data


def opaque_weight(model: nn.Module) -> Tensor:
    data = model.head.weight.detach().clone()
    del model.head.weight
    model.head.weight = Opaque(data)
    return data


def opaque_buffer(model: nn.Module) -> Tensor:
    data = model.head.weight.detach().clone()
    del model.head.weight
    model.head.register_buffer("weight", Opaque(data))
    return data


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("change", [stubborn_weight, opaque_weight, opaque_buffer], ids=lambda change: change.__name__)
def test_a_weight_that_cannot_be_copied(change: Callable[[nn.Module], Tensor], attach: str) -> None:
    expected = Body()(images())
    model = Body()
    probe = CrossClassProbe(model) if attach == "before" else None
    weight = change(model)
    probe = probe or CrossClassProbe(model)
    with probe:
        for _ in range(2):
            assert torch.equal(model(images()), expected)
            update_or_refuse(probe, right([(model.features(images()), weight)]))
            probe.reset()


def test_activations_that_cannot_be_copied() -> None:
    expected = Body()(images())
    model = Body()
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            found = model(images().as_subclass(StubbornActivation))
            assert type(found) is StubbornActivation
            assert torch.equal(found.as_subclass(Tensor), expected)
            update_or_refuse(probe, right([(model.features(images()), model.head.weight)]))
            probe.reset()


class Tagged(Tensor):
    """Activations of a library's own kind, such as fastai's."""


@pytest.mark.parametrize("head", [None, "gradient"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_activations_of_a_kind_of_their_own(dtype: torch.dtype, head: str | None) -> None:
    model = Body().to(dtype)
    with CrossClassProbe(model, head=head) as probe:
        for _ in range(2):
            inputs = images().to(dtype)
            assert type(model(inputs.as_subclass(Tagged))) is Tagged
            probe.update(LABELS)
            measured(probe, right([(model.features(inputs), model.head.weight)]))
            probe.reset()


# --- a pass that ends early -----------------------------------------------------------------------------------------


def _noted(probe: CrossClassProbe) -> int:
    """How many runs the probe has noted of a pass that goes on, or was broken off."""
    notes = probe._tracer.watcher._notes
    return 0 if notes is None else len(notes.calls)


def _refused(probe: CrossClassProbe) -> None:
    with TorchFunctionMode(), pytest.raises(InputError):
        probe.update(LABELS)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("where", ["features", "head"])
@pytest.mark.parametrize("then", ["update", "another pass", "detach"])
def test_a_pass_that_is_broken_off_leaves_nothing(error: type[BaseException], where: str, then: str) -> None:
    class Model(Body):
        failing = False

        def forward(self, x: Tensor) -> Tensor:
            g = self.features(x)
            if self.failing and where == "features":
                raise error
            logits = self.head(g)
            if self.failing:
                raise error
            return logits

    model = Model()
    expected = model(images())
    with CrossClassProbe(model) as probe:
        for warmed in (False, True):
            model.failing = True
            with pytest.raises(error):
                model(images())
            # torch tells no hook of what is not an Exception; whatever is asked of the probe next cleans up
            assert not issubclass(error, Exception) or torch._C._len_torch_function_stack() == 0
            noted = _noted(probe)
            assert torch.equal(images() @ images().mT, images() @ images().mT)
            assert _noted(probe) in (0, noted)
            asked = {"update": lambda: _refused(probe), "detach": probe.detach}.get(then, lambda: model(images()))
            model.failing = False
            asked()
            assert torch._C._len_torch_function_stack() == 0
            if then == "detach":
                return
            assert torch.equal(model(images()), expected), warmed
            assert torch._C._len_torch_function_stack() == 0
            probe.update(LABELS)
        measured(probe, right([(model.features(images()), model.head.weight)]))


def test_passes_that_run_inside_backward_are_none() -> None:
    model = Body()
    with CrossClassProbe(model) as probe:
        logits = checkpoint(model, images().requires_grad_(), use_reentrant=True)
        probe.update(LABELS)
        logits.sum().backward()
        with pytest.raises(InputError, match="found none"):
            probe.update(LABELS)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("late", [False, True], ids=["update first", "update after backward"])
def test_checkpoint_around_the_whole_model(reentrant: bool, late: bool) -> None:
    """The second run, inside backward, is no pass; its weights may already be others."""
    model = Body()
    with CrossClassProbe(model) as probe:
        parts = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for step in range(3):
            x = images(step).requires_grad_()
            parts.append((model.features(x).detach(), model.head.weight.detach().clone()))
            logits = checkpoint(model, x, use_reentrant=reentrant)
            if not late:
                probe.update(LABELS)
            nn.functional.cross_entropy(logits, LABELS).backward()
            optimizer.step()
            optimizer.zero_grad()
            if late:
                probe.update(LABELS)
        measured(probe, right(parts))


# --- torch's fused transformer layers look for hooks and modes ------------------------------------------------------


class Encoder(nn.Module):
    """torch's own encoder, which in eval mode runs as one fused operation unless something watches it."""

    def __init__(self, padding: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=padding)
        self.head = nn.Linear(16, K)
        self.padding = padding

    def tokens(self, x: Tensor) -> Tensor:
        mask = torch.zeros(N, 5, dtype=torch.bool)
        mask[::2, 3:] = True
        tokens = (
            torch.cat([x.flatten(1)[:, :, None].transpose(1, 2).expand(-1, 5, -1)], 1) * torch.arange(1, 6)[:, None]
        )
        return self.encoder(tokens, src_key_padding_mask=mask if self.padding else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x).mean(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, K)

    def tokens(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1)[:, None, :] * torch.arange(1, 6)[:, None]
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x).mean(1))


FUSED = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention")


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize(
    "build", [lambda: Encoder(False), lambda: Encoder(True), Attention], ids=["encoder", "with padding", "attention"]
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fused_layers_stay_fused(build: Callable[[], nn.Module], mode: type) -> None:
    """`nn.TransformerEncoderLayer` leaves its fused path, which gives other bits (and other values at padding), while
    its modules have hooks or a `TorchFunctionMode` is active."""
    seen: list[list[str]] = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen[-1].append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def fused(model: nn.Module) -> tuple[Tensor, list[str]]:
        seen.append([])
        with Note(), mode():
            logits = model(images())
        return logits, [name for name in seen[-1] if name in FUSED]

    model = build().eval()
    expected, operations = fused(model)
    assert operations
    with CrossClassProbe(model) as probe:
        for _ in range(3):
            found, again = fused(model)
            assert torch.equal(found, expected)
            assert again == operations
            probe.update(LABELS)
        with mode():
            g = model.tokens(images()).mean(1)
        measured(probe, right([(g.clone(), model.head.weight)]))


# --- TorchScript and graphs inside the model ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("convert", ["script", "trace", "fx"])
def test_a_body_that_hooks_cannot_enter(convert: str) -> None:
    """The head is eager, the layers before it are TorchScript or a graph."""
    model = Body()
    expected = model(images())
    g = model.features(images())
    if convert == "script":
        model.features = torch.jit.script(model.features)
    elif convert == "trace":
        model.features = torch.jit.trace(model.features, images())
    else:
        model.features = torch.fx.symbolic_trace(model.features)
    with CrossClassProbe(model) as probe:
        assert torch.equal(model(images()), expected)
        probe.update(LABELS)
        measured(probe, right([(g, model.head.weight)]))


@pytest.mark.filterwarnings("ignore")
def test_a_model_can_be_scripted_after_it_was_probed() -> None:
    """While a probe is attached it cannot: TorchScript compiles the Python hooks of a module along."""
    model = Body()
    expected = model(images())
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(LABELS)
    assert torch.equal(torch.jit.script(model)(images()), expected)
    _used(CrossClassProbe(model))
    gc.collect()
    assert torch.equal(torch.jit.script(model)(images()), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", ["script", "trace"])
def test_a_head_in_torchscript(head: str) -> None:
    model = Body()
    expected = model(images())
    g = model.features(images())
    figure = right([(g, model.head.weight)])
    model.head = torch.jit.script(model.head) if head == "script" else torch.jit.trace(model.head, g)
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            assert torch.equal(model(images()), expected)
            update_or_refuse(probe, figure, "TorchScript")
            probe.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_is_refused(strict: bool) -> None:
    program = torch.export.export(Body(), (images(),), strict=strict).module()
    with pytest.raises(InputError, match="export"):
        with CrossClassProbe(program) as probe:
            assert torch.equal(program(images()), Body()(images()))
            probe.update(LABELS)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_refused() -> None:
    model = torch.ao.quantization.quantize_dynamic(Body(), {nn.Linear})
    expected = model(images())
    with CrossClassProbe(model) as probe:
        assert torch.equal(model(images()), expected)
        with pytest.raises(InputError, match="quanti"):
            probe.update(LABELS)


# --- weights that are split among processes -------------------------------------------------------------------------

gloo = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build has no gloo")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """What each rank of so many processes found, by scenario."""
    known: dict[int, list[dict[str, Any]]] = {}

    def ranks(count: int) -> list[dict[str, Any]]:
        if count not in known:
            known[count] = _start(count, tmp_path_factory.mktemp("gloo") / "store")
        return known[count]

    return ranks


def _start(count: int, meeting: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "probe.hosts_worker", str(rank), str(count), str(meeting)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(count)
    ]
    found = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=240)
            lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
            end = {} if process.returncode == 0 else {"crash": errors[-1500:]}
            found.append({**{key: value for line in lines for key, value in line.items()}, **end})
    finally:
        for process in processes:
            process.kill()
    return found


def _of(rank: dict[str, Any], scenario: str) -> dict[str, Any]:
    found = rank.get(scenario, {"fault": f"the process ended before: {rank.get('crash')}"})
    assert "fault" not in found, found["fault"]
    return found


FSDP2 = ["head_in_its_own_group", "root_only", "every_layer", "body_and_head_together"]


@gloo
@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("split", [*FSDP2, "in_bfloat16", "flat", "flat_with_parameters"])
def test_fully_sharded(sharded: Callable[..., Any], split: str, processes: int, attach: str) -> None:
    """FSDP2 (and FSDP1, "flat"), weights freed after every layer's forward: what one whole model gives."""
    for rank in sharded(processes):
        found = _of(rank, f"{split}, {attach}")
        assert found["identical"]
        tolerance = 3e-2 if split == "in_bfloat16" else 1e-5
        np.testing.assert_allclose(np.array(found["matrix"]), np.array(found["expected"]), atol=tolerance)
        assert sum(found["counts"]) == 8 * 4 * processes
        assert found["kind"] == "Linear"  # FSDP2 puts its own name before the type's


@gloo
@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("plan", ["columns", "rows", "columns as DTensor", "columns left apart"])
def test_tensor_parallel(sharded: Callable[..., Any], plan: str, attach: str) -> None:
    ranks = sharded(2)
    outcomes = set()
    for rank in ranks:
        found = _of(rank, f"{plan}, {attach}")
        assert found["identical"]
        refused = found.get("refused", "")
        assert not refused or ("\n" not in refused and "tensor" in refused.lower())
        assert refused or plan != "columns left apart", "each process holds some classes alone"
        assert refused or np.allclose(np.array(found["matrix"]), np.array(found["expected"]), atol=1e-5)
        outcomes.add("refused" in found)
    assert len(outcomes) == 1  # one that waits for another that refused would wait for ever


# --- libraries that wrap, quantise or move the layers ---------------------------------------------------------------


def low_rank(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """peft's model, and the layer of it that holds the head's branch."""
    peft = pytest.importorskip("peft")
    targets = {"head": ["head"], "whole": ["features.1", "head"], "body": ["features.1"]}[name]
    extra = {"modules_to_save": ["head"]} if name == "body" else {}
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, **extra, **options)
    return peft.get_peft_model(Body(), config), None


def effective(model: nn.Module) -> Tensor:
    """W of peft's head from its parts, (K, n) float64: W0, or W0 + s B A, or that with DoRA's lengths."""
    layer = model.base_model.model.head
    if hasattr(layer, "modules_to_save"):
        return layer.modules_to_save["default"].weight.detach().double()
    base = layer.base_layer.weight.detach().double()
    if layer.merged or layer.disable_adapters:
        return base.clone()
    options = model.peft_config["default"]
    rank, alpha = options.r, options.lora_alpha
    scale = alpha / rank**0.5 if options.use_rslora else alpha / rank
    a, b = layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()
    weight = base + scale * b @ a
    if options.use_dora:
        lengths = layer.lora_magnitude_vector["default"].weight.detach().double()
        weight = weight * (lengths / weight.norm(dim=1)).unsqueeze(1)
    return weight


def g_of(model: nn.Module, x: Tensor, probe: CrossClassProbe) -> Tensor:
    """The features, from the body alone."""
    with torch.no_grad():
        return model.base_model.model.features(x).detach()


LORA = {
    "head": ("head", {}),
    "whole model": ("whole", {}),
    "body, head trained whole": ("body", {}),
    "rslora": ("head", {"use_rslora": True}),
    "DoRA": ("head", {"use_dora": True}),
    "whole model with DoRA": ("whole", {"use_dora": True}),
    "two ranks' bias": ("head", {"bias": "lora_only"}),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", LORA)
def test_low_rank_adapters(name: str, mode: str) -> None:
    """B is 0 at first, so that the base layer alone explains the first pass; then it is trained, merged, put apart
    again, switched off."""
    target, options = LORA[name]
    model, _ = low_rank(target, **options)
    model.train(mode == "train")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    parts = []
    with CrossClassProbe(model) as probe:

        def counted_pass(step: int) -> Tensor:
            parts.append((g_of(model, images(step), probe), effective(model)))
            logits = model(images(step))
            probe.update(LABELS)
            return logits

        for step in range(4):
            nn.functional.cross_entropy(counted_pass(step), LABELS).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert measured(probe, right(parts)).head.features == n
        apart, merged, moved = effective(model), effective(model), 1.0
        if target != "body":  # there the head has no adapter
            moved = float((apart - model.base_model.model.head.base_layer.weight).detach().abs().max())
            model.merge_adapter()
            counted_pass(4)
            merged = effective(model)
            model.unmerge_adapter()
            counted_pass(5)
            with model.disable_adapter():
                counted_pass(6)
        assert moved > 1e-2  # the adapter is more than rounding
        torch.testing.assert_close(merged, apart, atol=1e-5, rtol=0)
        measured(probe, right(parts))


def test_an_adapter_merged_for_good_has_the_same_figure() -> None:
    model, _ = low_rank("head", init_lora_weights=False)
    figures = []
    for _ in range(2):
        with CrossClassProbe(model) as probe:
            model(images())
            probe.update(LABELS)
            figures.append(probe.compute())
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    np.testing.assert_allclose(figures[0].matrix, figures[1].matrix, atol=1e-6)
    assert figures[0].head.features == figures[1].head.features == n


def test_an_adapter_whose_dropout_is_on() -> None:
    """The branch reads other features than the base layer in train mode, and the same in eval mode."""
    model, _ = low_rank("head", init_lora_weights=False, lora_dropout=0.5)
    model.train()
    with CrossClassProbe(model) as probe:
        torch.manual_seed(3)
        expected = model(images())
        torch.manual_seed(3)
        assert torch.equal(model(images()), expected)
        with contextlib.suppress(InputError):
            probe.update(LABELS)
            probe.compute()
        probe.reset()
        model.eval()
        model(images())
        probe.update(LABELS)
        measured(probe, right([(g_of(model, images(), probe), effective(model))]))


def _quantised(kind: str) -> tuple[nn.Module, nn.Module]:
    quantization = pytest.importorskip("torchao.quantization")
    config = {
        "int8 weights": lambda: quantization.Int8WeightOnlyConfig(),
        "int8 weights and activations": lambda: quantization.Int8DynamicActivationInt8WeightConfig(),
        "float8 weights": lambda: quantization.Float8WeightOnlyConfig(),
        "any int weights": lambda: quantization.IntxWeightOnlyConfig(),
    }[kind]()
    model = Body().eval()
    quantization.quantize_(model, config, filter_fn=lambda module, name: name == "head")
    return model, model.head


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("kind", ["int8 weights", "int8 weights and activations", "float8 weights", "any int weights"])
def test_torchao(kind: str, attach: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    reference, head = _quantised(kind)
    expected = reference(images())
    weight = head.weight.dequantize()
    model = Body().eval() if attach == "before" else reference
    probe = CrossClassProbe(model)
    if attach == "before":
        model(images())
        probe.update(LABELS)
        probe.reset()
        config = {
            "int8 weights": "Int8WeightOnlyConfig",
            "int8 weights and activations": "Int8DynamicActivationInt8WeightConfig",
            "float8 weights": "Float8WeightOnlyConfig",
            "any int weights": "IntxWeightOnlyConfig",
        }[kind]
        quantization.quantize_(model, getattr(quantization, config)(), filter_fn=lambda module, name: name == "head")
    with probe:
        for _ in range(2):
            for context in (contextlib.nullcontext(), torch.no_grad(), torch.inference_mode()):
                with context:
                    assert torch.equal(model(images()), expected)
            model(images())
            update_or_refuse(probe, right([(model.features(images()), weight)]), "quanti")
            probe.reset()


def _offloaded(kind: str, model: nn.Module, folder: Path) -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    if kind == "to the CPU":
        return accelerate.cpu_offload(model, execution_device="cpu")
    if kind == "to the disk":
        return accelerate.disk_offload(model, str(folder), execution_device="cpu")
    if kind == "hooks alone":
        return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    places = {"features": "cpu", "head": "disk"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("kind", ["to the CPU", "to the disk", "the head alone", "hooks alone"])
def test_weights_that_lie_elsewhere_between_passes(kind: str, attach: str, tmp_path: Path) -> None:
    """accelerate's hooks wrap `forward`: before and after it, where module hooks run, the weights are on "meta"."""
    reference = Body()
    expected = reference(images())
    model = Body()
    probe = CrossClassProbe(model) if attach == "before" else None
    model = _offloaded(kind, model, tmp_path)
    probe = probe or CrossClassProbe(model)
    with probe:
        outcomes = set()
        for context in (contextlib.nullcontext(), torch.no_grad(), contextlib.nullcontext()):
            with context:
                assert torch.equal(model(images()), expected)
            figure = right([(reference.features(images()), reference.head.weight)])
            outcomes.add(update_or_refuse(probe, figure, "offload"))
            probe.reset()
        assert len(outcomes) == 1
        assert kind != "hooks alone" or outcomes == {"measured"}


def test_a_model_that_is_all_on_meta() -> None:
    with torch.device("meta"):
        model = Body()
    with CrossClassProbe(model) as probe:
        assert model(torch.rand(N, 1, 4, 4, device="meta")).shape == (N, K)
        with pytest.raises(InputError, match="meta"):
            probe.update(LABELS)


# --- `run` inside other people's loops ------------------------------------------------------------------------------


def loader(seeds: range = range(3)) -> list[tuple[Tensor, Tensor]]:
    return [(images(seed), LABELS) for seed in seeds]


def pgd(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A plain callable that needs gradients."""

    def attack(x: Tensor, y: Tensor) -> Tensor:
        adversarial = x.clone()
        for _ in range(3):
            adversarial = adversarial.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(adversarial), y), adversarial)
            adversarial = (adversarial + 0.05 * gradient.sign()).clamp(0, 1)
        return adversarial.detach()

    return attack


def under_attack(model: nn.Module, attack: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """C of the attacked images, computed by hand."""
    parts = []
    for x, y in loader():
        adversarial = attack(x, y)
        with torch.no_grad():
            parts.append((model.features(adversarial), model.head.weight))
    return right(parts)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made", ["outside", "inside"])
def test_run_with_an_attack_inside_any_mode(mode: type, made: str) -> None:
    """The loader's tensors may be made inside too: inference tensors, which no graph may save."""
    model = Body().eval()
    expected = under_attack(model, pgd(model))
    batches = loader()
    with CrossClassProbe(model, instances=True) as probe, mode():
        if made == "inside":
            batches = [(x.clone(), y.clone()) for x, y in batches]
        result = probe.run(batches, pgd(model))
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    np.testing.assert_allclose(result.matrix, expected, atol=1e-6)
    assert result.robust_accuracy is not None
    assert result.clean_accuracy is not None


BATCHES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tuple": lambda x, y: (x, y),
    "a list": lambda x, y: [x, y],
    "with an index": lambda x, y: (x, y, torch.arange(len(x))),
    "with names": lambda x, y: (x, y, [f"{number}.png" for number in range(len(x))]),
    "image, label": lambda x, y: {"image": x, "label": y},
    "images, labels": lambda x, y: {"images": x, "labels": y, "path": ["a"] * len(x)},
    "pixel_values, labels": lambda x, y: {"pixel_values": x, "labels": y},
    "x, y": lambda x, y: {"x": x, "y": y},
    "input, target": lambda x, y: {"input": x, "target": y},
    "inputs, targets": lambda x, y: {"inputs": x, "targets": y},
    "a named tuple": lambda x, y: collections.namedtuple("Batch", "image label")(x, y),
    "a mapping": lambda x, y: collections.UserDict(image=x, label=y),
    "labels first in the dict": lambda x, y: {"label": y, "index": torch.arange(len(x)), "image": x},
}


@pytest.mark.parametrize("name", BATCHES)
def test_run_reads_batches_of_any_form(name: str) -> None:
    model = Body().eval()
    with CrossClassProbe(model) as probe:
        for attack in (None, pgd(model)):
            result = probe.run([BATCHES[name](x, y) for x, y in loader()], attack)
            expected = under_attack(model, attack or (lambda x, y: x))
            np.testing.assert_allclose(result.matrix, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "named"),
    [
        (lambda x, y: x, "labels"),
        (lambda x, y: (x,), "labels"),
        (lambda x, y: {"first": x, "second": y}, "first"),
        (lambda x, y: {"image": x}, "label"),
        (lambda x, y: "images", "str"),
        (lambda x, y: (x.numpy(), y), "ndarray"),
        (lambda x, y: (y, x), "labels"),
    ],
    ids=["images alone", "a tuple of one", "unknown keys", "no label", "text", "NumPy", "the wrong way round"],
)
def test_run_says_what_it_cannot_read(batch: Callable[..., Any], named: str) -> None:
    model = Body().eval()
    with CrossClassProbe(model) as probe:
        with pytest.raises(InputError, match=named) as caught:
            probe.run([batch(x, y) for x, y in loader()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (lambda x, y: (x, y), "tuple"),
        (lambda x, y: [x], "list"),
        (lambda x, y: {"adversarial": x}, "dict"),
        (lambda x, y: x.numpy(), "ndarray"),
        (lambda x, y: x.double(), "float64"),
        (lambda x, y: x.half(), "float16"),
        (lambda x, y: (x * 255).byte(), "uint8"),
        (lambda x, y: None, "None"),
        (lambda x, y: x[:3], "3"),
        (lambda x, y: x.flatten(1), "16"),
        (lambda x, y: y, "int64"),
    ],
    ids=["a tuple", "a list", "a dict", "NumPy", "float64", "float16", "bytes", "nothing", "fewer", "flat", "labels"],
)
def test_run_says_what_an_attack_returned(attack: Callable[..., Any], named: str) -> None:
    model = Body().eval()
    model.train()
    rng = torch.get_rng_state()
    with CrossClassProbe(model) as probe:
        with pytest.raises(InputError, match=named) as caught:
            probe.run(loader(), attack, seed=0)
    assert "\n" not in str(caught.value)
    assert "attack" in str(caught.value)
    assert model.training
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", ["PGD", "FGSM", "APGD", "PGDL2", "Square"])
@pytest.mark.parametrize("normalised", [False, True])
def test_torchattacks_in_run_and_in_a_loop(name: str, normalised: bool) -> None:
    """The same attack on the same images: the same figures, or the same refusal."""
    torchattacks = pytest.importorskip("torchattacks")
    options = {"PGD": {"steps": 3}, "PGDL2": {"steps": 3}, "APGD": {"steps": 3}, "Square": {"n_queries": 5}}
    mean, std = 0.4, 0.2
    outcomes = []
    for way in ("run", "loop"):
        model = Body().eval()
        attack = getattr(torchattacks, name)(model, **options.get(name, {}))
        if normalised:
            attack.set_normalization_used(mean=[mean], std=[std])
        batches = [((x - mean) / std if normalised else x, y) for x, y in loader()]
        torch.manual_seed(5)
        with CrossClassProbe(model, inputs="adversarial") as probe:
            try:
                if way == "run":
                    result = probe.run(batches, attack, seed=5)
                else:
                    for x, y in batches:
                        adversarial = attack(x, y)
                        model(adversarial)
                        probe.update(y)
                    result = probe.compute()
            except InputError as error:
                outcomes.append(str(error))
            else:
                outcomes.append((result.matrix, result.robust_accuracy))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert refusals in ([], [outcomes[0]] * 2)
    assert normalised or not refusals
    assert refusals or np.allclose(outcomes[0][0], outcomes[1][0], atol=1e-6)
    assert refusals or outcomes[0][1] == outcomes[1][1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ["torchattacks", "plain"])
def test_a_lightning_callback(attack: str, tmp_path: Path) -> None:
    """Lightning validates under no_grad in `fit` and under inference_mode in `validate`; batches are collated there."""
    lightning = pytest.importorskip("lightning")
    torchattacks = pytest.importorskip("torchattacks")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Body()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, number: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, number: int) -> None:
            self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def dataset() -> Any:
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.cat([x for x, _ in loader()]), LABELS.repeat(3)), batch_size=N
        )

    results: list[tuple[CrossClassResult, np.ndarray]] = []
    modes: list[bool] = []

    class Measure(lightning.Callback):
        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.sanity_checking:
                return
            modes.append(torch.is_inference_mode_enabled())
            assert not torch.is_grad_enabled()
            make = (lambda m: torchattacks.PGD(m, steps=3, random_start=False)) if attack == "torchattacks" else pgd
            with CrossClassProbe(module.net) as probe:
                result = probe.run(dataset(), make(module.net))
            with torch.inference_mode(False), torch.enable_grad():
                results.append((result, under_attack(copy.deepcopy(module.net), make(copy.deepcopy(module.net)))))

    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Measure()],
        default_root_dir=tmp_path,
    )
    module = Module()
    trainer.fit(module, dataset(), dataset())
    trainer.validate(module, dataset(), verbose=False)
    assert modes == [False, False, True]
    for result, expected in results:
        np.testing.assert_allclose(result.matrix, expected, atol=1e-5)
        assert result.robust_accuracy is not None


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_that_holds_its_probe(tmp_path: Path) -> None:
    """Updated in training and validation steps; checkpoints are written and read meanwhile."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Body()
            self.probe = CrossClassProbe(self.net)
            self.figures: list[tuple[int, float]] = []

        def training_step(self, batch: Any, number: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.probe.update(batch[1])
            return loss

        def validation_step(self, batch: Any, number: int) -> None:
            self.net(batch[0])
            self.probe.update(batch[1])

        def on_validation_epoch_end(self) -> None:
            result = self.probe.compute()
            self.figures.append((int(result.counts.sum()), result.cas))
            self.probe.reset()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = torch.utils.data.DataLoader(loader(), batch_size=None)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, batches, batches)
    # the sanity check's batches, then training's and validation's together
    assert [count for count, _ in module.figures] == [2 * N, 6 * N]
    assert not any("probe" in key for key in module.state_dict())


# --- copies, pickles, leftovers -------------------------------------------------------------------------------------


class Holder(nn.Module):
    """A module that holds its network and the probe of it."""

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        self.net = Body()
        self.probe = CrossClassProbe(self if own else self.net)  # `own`: the model and its probe are a cycle

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def by_torch(thing: Any) -> Any:
    torch.save(thing, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": by_torch,
    "a copy of a copy": lambda thing: copy.deepcopy(pickle.loads(pickle.dumps(thing))),
}


@pytest.mark.parametrize("own", [False, True], ids=["beside", "in a cycle"])
@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "after a pass"])
@pytest.mark.parametrize("way", COPIES)
def test_a_copied_holder_measures_the_copy(way: str, ran: bool, own: bool) -> None:
    holder = Holder(own)
    if ran:
        holder(images(1))
        holder.probe.update(LABELS)
        before = holder.probe.compute().matrix
    twin = COPIES[way](holder)
    assert twin.probe.model is (twin if own else twin.net)
    if ran:
        np.testing.assert_array_equal(twin.probe.compute().matrix, before)
        twin.probe.reset()
    with torch.no_grad():
        twin.net.head.weight.normal_()
        twin.net.features[1].weight.normal_()
    twin(images())
    holder(images(2))  # no pass of the copy
    twin.probe.update(LABELS)
    measured(twin.probe, right([(twin.net.features(images()), twin.net.head.weight)]))
    # and the original is as it was
    if ran:
        np.testing.assert_array_equal(holder.probe.compute().matrix, before)
        holder.probe.reset()
    holder(images())
    twin(images(3))
    holder.probe.update(LABELS)
    measured(holder.probe, right([(holder.net.features(images()), holder.net.head.weight)]))
    assert hooks_on(twin) <= hooks_on(holder)
    holder.probe.detach()
    twin.probe.detach()
    assert hooks_on(holder) == hooks_on(twin) == 0


@pytest.mark.parametrize("own", [False, True], ids=["beside", "in a cycle"])
def test_averaged_weights_are_measured(own: bool) -> None:
    """torch's AveragedModel copies the module with its probe, then writes the averages into the copy."""
    holder = Holder(own)
    average = torch.optim.swa_utils.AveragedModel(holder)
    for seed in range(1, 3):
        with torch.no_grad():
            for parameter, other in zip(holder.parameters(), Body(seed).parameters(), strict=True):
                parameter.copy_(other)
        average.update_parameters(holder)
    average(images())
    average.module.probe.update(LABELS)
    net = average.module.net
    assert not torch.equal(net.head.weight, holder.net.head.weight)
    measured(average.module.probe, right([(net.features(images()), net.head.weight)]))


def _spawned(holder: Holder, folder: str) -> None:
    torch.set_num_threads(1)
    holder(images())
    holder.probe.update(LABELS)
    np.save(Path(folder) / "matrix.npy", holder.probe.compute().matrix)


@pytest.mark.slow
def test_a_holder_that_is_sent_to_a_spawned_process(tmp_path: Path) -> None:
    holder = Holder()
    holder(images(1))
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=_spawned, args=(holder, str(tmp_path)))
    process.start()
    process.join(120)
    expected = right([(holder.net.features(images()), holder.net.head.weight)])
    np.testing.assert_allclose(np.load(tmp_path / "matrix.npy"), expected, atol=1e-6)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"instances": True, "max_per_class": 2}, {"head": "head"}, {"head": "gradient"}, {"class_names": "abcd"}],
    ids=str,
)
def test_a_probe_takes_its_network_along(way: str, options: dict[str, Any]) -> None:
    model = Body()
    with CrossClassProbe(model, **options) as probe:
        model(images(1))
        probe.update(LABELS)
        twin = COPIES[way](probe)
        assert twin.model is not model
        for each in (twin, probe):
            each.model(images())
            each.update(LABELS)
        found, expected = twin.compute(), probe.compute()
        np.testing.assert_array_equal(found.matrix, expected.matrix)
        assert found.class_names == expected.class_names
        if expected.instance_matrix is not None:
            np.testing.assert_array_equal(found.instance_matrix, expected.instance_matrix)
    assert hooks_on(model) == 0
    twin.detach()
    assert hooks_on(twin.model) == 0


@pytest.mark.parametrize("way", COPIES)
def test_a_detached_probe_can_be_copied(way: str) -> None:
    model = Body()
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(LABELS)
    twin = COPIES[way](probe)
    np.testing.assert_array_equal(twin.compute().matrix, probe.compute().matrix)
    twin.model(images())
    with pytest.raises(InputError, match="detach"):
        twin.update(LABELS)


class WithMetric(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from ccf_plugin.integrations.torchmetrics import ClassAttributionSimilarity

        self.net = Body()
        self.cas = ClassAttributionSimilarity(self.net, K, n)


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_metric_measures_the_copy(way: str) -> None:
    pytest.importorskip("torchmetrics")
    module = WithMetric()
    module.net(images(1))
    module.cas.update(LABELS)
    twin = COPIES[way](module)
    assert float(twin.cas.compute()) == float(module.cas.compute())
    with torch.no_grad():
        twin.net.head.weight.normal_()
    twin.cas.reset()
    twin.net(images())
    twin.cas.update(LABELS)
    expected = right([(twin.net.features(images()), twin.net.head.weight)])
    np.testing.assert_allclose(twin.cas.matrix().numpy(), expected, atol=1e-6)


def _used(probe: CrossClassProbe) -> None:
    probe.model(images())
    probe.update(LABELS)


@pytest.mark.parametrize("use", [None, _used], ids=["unused", "used"])
@pytest.mark.parametrize("head", [None, "head", "gradient"])
def test_dropped_probes_leave_no_hooks(use: Callable[[CrossClassProbe], None] | None, head: str | None) -> None:
    model = Body()
    for _ in range(20):
        probe = CrossClassProbe(model, head=head)
        if use is not None:
            use(probe)
    assert hooks_on(model) > 0
    del probe
    gc.collect()
    assert hooks_on(model) == 0
    assert torch.equal(model(images()), Body()(images()))


def test_a_probe_that_waits_for_its_result_is_not_dropped() -> None:
    """Nothing but the model, and code that holds the result, may outlive it; a probe that is held works."""
    model = Body()
    probes = [CrossClassProbe(model) for _ in range(3)]
    gc.collect()
    model(images())
    for probe in probes:
        probe.update(LABELS)
        measured(probe, right([(model.features(images()), model.head.weight)]))


def test_a_probe_that_its_model_held_leaves_no_hooks() -> None:
    model = Body()
    for number in range(20):
        model.probe = CrossClassProbe(model)
        model.probes = [*getattr(model, "probes", []), CrossClassProbe(model)]
        if number % 2:
            _used(model.probe)
    del model.probe, model.probes
    gc.collect()
    assert hooks_on(model) == 0


def test_models_are_not_kept_alive() -> None:
    import weakref

    models, probes = [], []
    for own in (False, True):
        holder = Holder(own)
        _used(holder.probe)
        models.append(weakref.ref(holder))
        models.append(weakref.ref(holder.net))
        probes.append(weakref.ref(holder.probe))
        del holder
    gc.collect()
    assert [ref() for ref in models] == [None] * 4
    assert [ref() for ref in probes] == [None] * 2


def test_probes_of_compiled_code_leave_no_hooks() -> None:
    torch._dynamo.reset()
    try:
        model = Body()
        fast = torch.compile(model, backend="eager")
        for _ in range(5):
            probe = CrossClassProbe(fast)
            fast(images())
            probe.update(LABELS)
            del probe
        torch._dynamo.reset()
        gc.collect()
        assert hooks_on(model) == 0
        assert torch.equal(fast(images()), model(images()))
    finally:
        torch._dynamo.reset()


def test_features_of_a_dropped_probe_are_not_kept() -> None:
    import weakref

    model = Body()
    probe = CrossClassProbe(model)
    x = images()
    logits = model(x)
    held = weakref.ref(logits)
    probe.update(LABELS)
    del logits
    gc.collect()
    assert held() is None  # after `update` nothing of the pass is held
    del probe
    gc.collect()
    assert hooks_on(model) == 0


def test_a_tracker_of_many_clones_does_not_slow_the_pass() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    from ccf_plugin.integrations.torchmetrics import ClassAttributionSimilarity

    model = Body()
    tracker = torchmetrics.MetricTracker(ClassAttributionSimilarity(model, K, n), maximize=False)
    hooks, expected = [], []
    for epoch in range(30):
        tracker.increment()
        model(images(epoch))
        tracker.update(LABELS)
        expected.append(float(tracker.compute()))
        hooks.append(hooks_on(model))
    assert max(hooks[5:]) <= 2 * hooks[1] + 4
    np.testing.assert_allclose(tracker.compute_all().numpy(), expected)


def test_a_collection_of_metrics() -> None:
    """Updated by (preds, target), as its other members are."""
    torchmetrics = pytest.importorskip("torchmetrics")
    from torchmetrics.classification import MulticlassAccuracy

    from ccf_plugin.integrations.torchmetrics import ClassAttributionSimilarity

    model = Body()
    collection = torchmetrics.MetricCollection(
        {"accuracy": MulticlassAccuracy(K, average="micro"), "cas": ClassAttributionSimilarity(model, K, n)}
    )
    parts = []
    for epoch in range(2):
        for number in range(3):
            logits = model(images(number + epoch))
            collection.update(logits, LABELS)
            parts.append((model.features(images(number + epoch)), model.head.weight))
        found = collection.compute()
        assert float(found["cas"]) == pytest.approx(oracle.cas(right(parts).tolist()), abs=1e-5)
        assert 0 <= float(found["accuracy"]) <= 1
        collection.reset()
        parts.clear()
    clone = collection.clone(prefix="test_")
    logits = model(images(7))
    clone.update(logits, LABELS)
    expected = oracle.cas(right([(model.features(images(7)), model.head.weight)]).tolist())
    assert float(clone.compute()["test_cas"]) == pytest.approx(expected, abs=1e-5)


def test_a_collection_that_is_called() -> None:
    """`forward` of a metric updates twice on some paths of torchmetrics: one pass is still one pass."""
    torchmetrics = pytest.importorskip("torchmetrics")
    from ccf_plugin.integrations.torchmetrics import ClassAttributionSimilarity

    model = Body()
    metric = ClassAttributionSimilarity(model, K, n)
    parts = []
    for number in range(3):
        logits = model(images(number))
        value = metric(logits, LABELS)
        parts.append((model.features(images(number)), model.head.weight))
        assert float(value) == pytest.approx(oracle.cas(right(parts[-1:]).tolist()), abs=1e-5)
    assert float(metric.compute()) == pytest.approx(oracle.cas(right(parts).tolist()), abs=1e-5)
    assert isinstance(metric, torchmetrics.Metric)
