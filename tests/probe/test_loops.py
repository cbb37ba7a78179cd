"""One test per kind of loop: what the probe measures there is what it measures in a plain one."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccf_plugin import CrossClassProbe, CrossClassResult, InputError

from .conftest import ROUNDING, small_batch, small_network
from .test_host import hooks_on

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def passes() -> list[Batch]:
    return [small_batch(seed=seed) for seed in range(3)]


@pytest.fixture
def network() -> nn.Module:
    return small_network().eval()


def plainly(model: nn.Module, passes: list[Batch]) -> CrossClassResult:
    with CrossClassProbe(model, instances=True) as probe:
        return drive(probe, model, passes)


def drive(probe: CrossClassProbe, model: nn.Module, passes: list[Batch]) -> CrossClassResult:
    for images, labels in passes:
        model(images)
        probe.update(labels)
    return probe.compute()


def same(
    found: CrossClassResult, expected: CrossClassResult, tolerance: float = ROUNDING, *, instances: bool = False
) -> None:
    """``instances``: whether the probe measured C of instances too."""
    assert (found.instance_matrix is not None) == instances
    for name in ("matrix", "instance_matrix")[: 1 + instances]:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=tolerance, err_msg=name)
    np.testing.assert_array_equal(found.counts, expected.counts)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


compiled = pytest.mark.usefixtures("_fresh_compiler")


@compiled
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("attach_to", ["the compiled model", "the model inside"])
def test_compiled_after_attaching(network: nn.Module, passes: list[Batch], attach_to: str, fullgraph: bool) -> None:
    expected = plainly(network, passes)
    fast = torch.compile(network, backend="aot_eager", fullgraph=fullgraph)
    with CrossClassProbe(fast if attach_to == "the compiled model" else network, instances=True) as probe:
        same(drive(probe, fast, passes), expected, instances=True)
        assert probe.head.name == "2"


@compiled
def test_model_compile_in_place(network: nn.Module, passes: list[Batch]) -> None:
    expected = plainly(network, passes)
    with CrossClassProbe(network) as probe:
        network.compile(backend="aot_eager")
        same(drive(probe, network, passes), expected)


@compiled
def test_a_compiled_step_that_trains(passes: list[Batch]) -> None:
    """Passes, backward and optimiser steps between: the graph is compiled once for each kind of pass."""
    counter = torch._dynamo.testing.CompileCounter()
    results = []
    for backend in (None, counter):
        model = small_network()
        torch.manual_seed(5)
        fast = model if backend is None else torch.compile(model, backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with CrossClassProbe(model) as probe:
            for images, labels in passes * 2:
                nn.functional.cross_entropy(fast(images), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                probe.update(labels)
            results.append(probe.compute())
    same(results[1], results[0], 1e-5)
    assert counter.frame_count == 1


@compiled
def test_attached_after_the_first_compiled_call_is_told(network: nn.Module, passes: list[Batch]) -> None:
    fast = torch.compile(network, backend="eager")
    fast(passes[0][0])
    for attach_to in (network, fast):
        with CrossClassProbe(attach_to) as probe:
            fast(passes[0][0])
            with pytest.raises(InputError, match=r"torch\.compile"):
                probe.update(passes[0][1])
            torch._dynamo.reset()  # the remedy that the message names
            same(drive(probe, fast, passes), plainly(network, passes))
        fast(passes[0][0])


@compiled
def test_a_detached_probe_leaves_compiled_code(network: nn.Module, passes: list[Batch]) -> None:
    fast = torch.compile(network, backend="eager")
    probe = CrossClassProbe(network)
    tracer = probe._tracer
    drive(probe, fast, passes)
    probe.detach()
    fast(passes[0][0])
    assert tracer.watcher._notes is None
    assert tracer.watcher.latest is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(network: nn.Module, passes: list[Batch], dtype: torch.dtype) -> None:
    expected = plainly(network, passes)
    with CrossClassProbe(network) as probe, torch.autocast("cpu", dtype=dtype):
        found = drive(probe, network, passes)
    assert probe.head.name == "2"
    assert probe._passes.sums.attributions.dtype == torch.float64
    same(found, expected, 2e-2)


def test_a_model_in_half_precision(network: nn.Module, passes: list[Batch]) -> None:
    expected = plainly(network, passes)
    half = copy.deepcopy(network).bfloat16()
    found = plainly(half, [(images.bfloat16(), labels) for images, labels in passes])
    assert found.precision == "bfloat16"
    same(found, expected, 3e-2, instances=True)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Sequential, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_and_accumulation(network: nn.Module, passes: list[Batch], reentrant: bool) -> None:
    """The head itself lies in the checkpoint, and runs again in backward: that run is no pass."""
    model = Checkpointed(network, reentrant)
    with CrossClassProbe(model) as probe:
        for images, labels in passes:
            nn.functional.cross_entropy(model(images.requires_grad_()), labels).backward()
            probe.update(labels)
        found = probe.compute()
    same(found, plainly(network, passes))


def test_channels_last(network: nn.Module, passes: list[Batch]) -> None:
    expected = plainly(network, passes)
    last = network.to(memory_format=torch.channels_last)
    same(plainly(last, [(x.to(memory_format=torch.channels_last), y) for x, y in passes]), expected, instances=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("update_inside", [False, True])
def test_without_gradients(network: nn.Module, passes: list[Batch], mode: type, update_inside: bool) -> None:
    expected = plainly(network, passes)
    with CrossClassProbe(network, instances=True) as probe:
        for number, (images, labels) in enumerate(passes):
            # both in turn: sums begun inside must go on outside, and the other way round
            with mode():
                network(images)
                if update_inside == (number % 2 == 0):
                    probe.update(labels)
            if update_inside != (number % 2 == 0):
                probe.update(labels)
        same(probe.compute(), expected, instances=True)


def test_a_whole_measurement_in_inference_mode(network: nn.Module, passes: list[Batch]) -> None:
    expected = plainly(network, passes)
    with torch.inference_mode(), CrossClassProbe(network, instances=True) as probe:
        same(probe.run(passes), expected, instances=True)


def test_a_copy_has_no_share_in_the_probe(network: nn.Module, passes: list[Batch]) -> None:
    images, labels = passes[0]
    with CrossClassProbe(network) as probe:
        network(images)
        average = copy.deepcopy(network)  # as EMA does
        twice = copy.deepcopy(average)
        for copied in (average, twice):
            assert torch.equal(copied(images * 0.3), network(images * 0.3))
        network(images)
        twice(images * 0.3)  # no pass of the probed model
        probe.update(labels)
        with pytest.raises(InputError, match="found none"):
            probe.update(labels)
        same(probe.compute(), plainly(network, passes[:1]))
        with CrossClassProbe(average) as other:
            same(drive(other, average, passes), plainly(network, passes))


def test_pickles_and_state_dicts_are_those_of_an_unprobed_model(network: nn.Module, tmp_path: Path) -> None:
    images, _ = small_batch()
    expected, keys = network(images), list(network.state_dict())
    with CrossClassProbe(network) as probe:
        network(images)
        assert list(network.state_dict()) == keys
        assert torch.equal(pickle.loads(pickle.dumps(network))(images), expected)
        torch.save(network, tmp_path / "model.pt")
        saved = io.BytesIO()
        torch.save(network.state_dict(), saved)
        assert probe.head is not None
    torch.save(network.state_dict(), again := io.BytesIO())
    assert saved.getvalue() == again.getvalue()
    # opens where this package is not installed
    code = (
        "import sys; sys.modules['ccf_plugin'] = None; import torch;"
        f"print(tuple(torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)(torch.zeros(2, 1, 8, 8)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "(2, 4)", done.stderr


def test_several_probes_on_one_model(network: nn.Module, passes: list[Batch]) -> None:
    expected, half = plainly(network, passes), plainly(network, passes[::2])
    with CrossClassProbe(network) as first, CrossClassProbe(network, every=2) as second:
        for images, labels in passes:
            network(images)
            first.update(labels)
            second.update(labels)
        same(first.compute(), expected)
        same(second.compute(), half)
        first.detach()
        network(passes[0][0])
        second.update(passes[0][1])
    assert hooks_on(network) == 0


def test_moved_and_cast_after_attaching(network: nn.Module, passes: list[Batch]) -> None:
    expected = plainly(network, passes)
    with CrossClassProbe(network, instances=True) as probe:
        network(passes[0][0])
        probe.update(passes[0][1])
        network.to("cpu").double()
        for images, labels in passes[1:]:
            network(images.double())
            probe.update(labels)
        found = probe.compute()
    same(found, expected, instances=True)
    assert found.precision == "mixed"


def test_moved_to_another_device_after_sums_were_begun() -> None:
    """The sums follow the features; "meta" stands for the other device, since every machine has it."""
    from ccf_plugin.probe.sums import Sums

    moved = Sums.zeros((3, 2), torch.device("cpu")).to(torch.device("meta"))
    assert {moved.attributions.device.type, moved.counts.device.type, moved.correct.device.type} == {"meta"}


def test_swapped_weights_count_for_the_passes_that_saw_them(network: nn.Module, passes: list[Batch]) -> None:
    """An EMA swap through ``.data`` between passes, which no version counter sees."""
    images, labels = passes[0]
    other = small_network(seed=3).eval()
    expected = plainly(other, passes[:1])
    with CrossClassProbe(network) as probe:
        network(images)
        own = [parameter.data.clone() for parameter in network.parameters()]
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            mine.data.copy_(theirs.data)
        network(images)
        for mine, kept in zip(network.parameters(), own, strict=True):
            mine.data.copy_(kept)
        probe.update(labels)
        same(probe.compute(), expected)


@pytest.fixture
def accelerate() -> Iterator[Any]:
    """The library as in a process where nothing has set its precision yet."""
    library = pytest.importorskip("accelerate")
    library.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield library
    library.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_with_mixed_precision(accelerate: Any, passes: list[Batch]) -> None:
    network = small_network().eval()
    expected = plainly(network, passes)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    for attach_first in (True, False):
        model = copy.deepcopy(network)
        probe = CrossClassProbe(model) if attach_first else None
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
        with probe or CrossClassProbe(model) as probe:
            for images, labels in passes:
                accelerator.backward(nn.functional.cross_entropy(model(images), labels))
                optimizer.step()
                probe.update(labels)
            same(probe.compute(), expected, 3e-2)


def test_an_optimiser_step_before_update(network: nn.Module, passes: list[Batch]) -> None:
    """`update` may stand before or after `optimizer.step()`: the weight is that of the pass."""
    results = []
    for late in (False, True):
        model = copy.deepcopy(network)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with CrossClassProbe(model) as probe:
            for images, labels in passes:
                nn.functional.cross_entropy(model(images), labels).backward()
                if not late:
                    probe.update(labels)
                optimizer.step()
                if late:
                    probe.update(labels)
            results.append(probe.compute())
    np.testing.assert_array_equal(results[0].matrix, results[1].matrix)


def test_functional_call_with_other_weights(network: nn.Module, passes: list[Batch]) -> None:
    """As weight perturbation and meta-learning do: the weight is the one that the pass used."""
    other = small_network(seed=3).eval()
    with CrossClassProbe(network) as probe:
        for images, labels in passes:
            torch.func.functional_call(network, other.state_dict(), images)
            probe.update(labels)
        same(probe.compute(), plainly(other, passes))


def test_sharded_passes_are_told(network: nn.Module, passes: list[Batch]) -> None:
    """A model that runs its head on parts of the batch shows no pass of the whole: an error, never a part."""

    class Sharded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network
            self.shards = 1

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.inner(part) for part in x.chunk(self.shards)])

    model = Sharded()
    images, labels = passes[0]
    with CrossClassProbe(model) as probe:
        model(images)
        probe.update(labels)
        model.shards = 2
        model(images)
        with pytest.raises(InputError, match="6 rows, where the logits have 12"):
            probe.update(labels)
    with CrossClassProbe(model) as probe:
        model(images)
        with pytest.raises(InputError, match="6 rows, where the logits have 12"):
            probe.update(labels)
