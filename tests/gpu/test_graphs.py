"""An attack that is replayed as one CUDA graph gives what it gives as it is; what cannot be recorded is left alone."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.probe import CrossClassProbe
from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.attacks import build_attack

from .models import CUDA, SIMULATED, Counted, batch, network, plain_network

NAMES = ["PGD", "PGDL2", "TPGD", "TPGDL2", "FFGSM", "MIFGSM", "CWPGD"]
# Whole batches, and from time to time the last smaller one.
SIZES = (12, 12, 12, 5, 12, 5, 5, 12)


def _attack(model: nn.Module, graphs: Counted, name: str = "PGD", **options: Any) -> Any:
    threat = threat_model(norm="L2" if name.endswith("L2") else "Linf", steps=3)
    return build_attack(name, model, threat, graphs=graphs, **options)


def _crafted(name: str, mode: Any, precision: Any, graphs: Counted) -> tuple[list[Tensor], list[Tensor]]:
    """What an attack makes of one batch after the other while the weights move, and the model's state after it."""
    model = network().train()
    attack = _attack(Forward(model, precision=precision), graphs, name, mode=mode)
    torch.manual_seed(7)
    found = []
    for number, size in enumerate(SIZES):
        found.append(attack(*batch(size, seed=number)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.95).add_(0.001)
    return [*found, torch.rand(3, device=CUDA)], [value.clone() for value in model.state_dict().values()]


@pytest.mark.usefixtures("same_every_time")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_replays_are_the_attack(name: str, mode: str, precision: str) -> None:
    replayed, eager = Counted(), Counted(serves=False)
    found, state = _crafted(name, mode, precision, replayed)
    expected, expected_state = _crafted(name, mode, precision, eager)
    assert (replayed.recorded, eager.recorded) == (2, 0)
    for one, other in zip(found, expected, strict=True):  # and the generator stands where it would
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for one, other in zip(state, expected_state, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_every_replay_draws_anew_and_follows_the_seed() -> None:
    graphs = Counted()
    attack = _attack(network().eval(), graphs)
    images, labels = batch(8)
    for _ in range(2):
        attack(images, labels)
    first, second = (attack(images, labels) for _ in range(2))
    assert not torch.equal(first, second)
    seeded = []
    for _ in range(2):
        torch.manual_seed(3)
        seeded.append(attack(images, labels))
    torch.testing.assert_close(*seeded, rtol=0, atol=1e-6)
    assert graphs.recorded == 1


@pytest.mark.usefixtures("same_every_time")
def test_weights_cast_once_are_those_that_autocast_casts() -> None:
    model = network().eval()
    images, _ = batch(6)
    forward = Forward(model, precision="bf16")
    kept = [parameter.data_ptr() for parameter in model.parameters()]
    with torch.no_grad():
        expected = forward(images)
        with forward.weights_cast_once():
            kinds = {parameter.dtype for parameter in model.parameters()}
            found = forward(images)
    assert kinds == {torch.bfloat16, torch.float32}
    assert torch.equal(found, expected)
    assert [parameter.data_ptr() for parameter in model.parameters()] == kept
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.usefixtures("same_every_time")
def test_compiled_passes_are_replayed_too() -> None:
    images, labels = batch(16, side=32)
    found = []
    for compiled in (True, False):
        graphs, model = Counted(), plain_network().eval()
        forward = Forward(model)
        if compiled:
            inner = torch.compile(forward.forward, dynamic=False)
            forward = _Calls(model, inner)
        attack = _attack(forward, graphs)
        for number in range(5):
            torch.manual_seed(number)
            adversarial = attack(images, labels)
        found.append(adversarial)
        assert graphs.recorded == 1
    # A gradient of mere rounding may point the other way.
    assert (found[0] - found[1]).abs().gt(1e-5).float().mean() < 0.02


class _Calls(Forward):
    def __init__(self, model: nn.Module, function: Any) -> None:
        super().__init__(model)
        self._function = function

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._function(images)
        return logits


class _Waits(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits * (1 + 0 * float(logits.detach().sum()))


class _Drops(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits if random.random() < 0.5 else 2 * logits


class _Scaled(nn.Module):
    """Its pass follows a number that no tensor holds."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale, self.shift = inner, 1.0, torch.zeros(10, device=CUDA)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits * self.scale + self.shift


CHANGES: dict[str, Any] = {
    "a number of the module": lambda model, _: setattr(model, "scale", -1.0),
    "a tensor that is no buffer": lambda model, _: setattr(model, "shift", torch.linspace(-9, 9, 10, device=CUDA)),
    "BatchNorm's momentum": lambda model, _: setattr(model.inner[1], "momentum", 0.9),
    "a hook": lambda model, _: model.inner.register_forward_hook(lambda _, __, logits: -logits),
    "a layer without weights": lambda model, _: model.inner.__setitem__(2, nn.SiLU()),
    "the attack's eps": lambda _, attack: setattr(attack._attack, "eps", 1 / 255),
}


@pytest.mark.usefixtures("same_every_time")
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_replays_is_seen(name: str) -> None:
    """All that decides what a pass computes, and is no tensor changed in place, makes another graph."""
    found = []
    for serves in (True, False):
        model, graphs = _Scaled(plain_network()).train(), Counted(serves=serves)
        attack = _attack(model, graphs, mode="train", options={"random_start": False})
        for number in range(3):
            attack(*batch(6, side=32, seed=number))
        CHANGES[name](model, attack)
        adversarial = [attack(*batch(6, side=32, seed=number)) for number in range(3, 6)]
        found.append((torch.stack(adversarial), model.inner[1].running_mean.clone()))
        assert graphs.recorded == 2 * serves
    (replayed, statistics), (expected, expected_statistics) = found
    torch.testing.assert_close(replayed, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(statistics, expected_statistics, rtol=1e-5, atol=1e-6)


def test_a_probe_that_comes_and_goes_needs_no_other_graph() -> None:
    """Its hooks change nothing; a run attaches a new one at every epoch's end."""
    model, graphs = network().eval(), Counted()
    attack = _attack(Forward(model), graphs)
    for _ in range(3):
        with CrossClassProbe(model) as probe:
            for _ in range(2):
                images, labels = batch(12)
                model(attack(images, labels))
                probe.update(labels)
    assert graphs.recorded == 1


def test_a_model_that_counts_its_passes_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """What follows the count cannot be replayed; after a few calls it is no longer tried."""

    class Counts(_Scaled):
        def forward(self, images: Tensor) -> Tensor:
            self.scale += 1.0
            return super().forward(images)

    caplog.set_level(logging.DEBUG, logger="ccf_plugin")
    model, graphs = Counts(plain_network()).eval(), Counted()
    attack = _attack(model, graphs)
    for _ in range(9):
        attack(*batch(4, side=32))
    assert (graphs.recorded, model.scale) == (0, 1 + 9 * 3)
    (record,) = caplog.records
    assert "attributes" in record.getMessage()


@pytest.mark.parametrize(("kind", "reason"), [(_Waits, "waits for the device"), (_Drops, "random numbers on the host")])
def test_models_that_a_replay_would_not_repeat_run_as_they_are(
    kind: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="ccf_plugin")
    graphs = Counted()
    attack = _attack(kind(network().eval()), graphs)
    for _ in range(4):
        attack(*batch(4))
    assert graphs.recorded == 0
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert torch.cuda.get_sync_debug_mode() == 0


FAILS = """
import torch
from ccf_plugin.engine.graphs import CudaGraphs

graphs, device = CudaGraphs(), torch.device("cuda", 0)
given = torch.ones(4, device=device)
before, stream = torch.rand(4, device=device), torch.cuda.current_stream()

def waits():
    noise = torch.rand(4, device=device)
    return given * float(noise.sum())

for _ in range(2):
    try:
        graphs.record(waits, device)
    except Exception as error:
        print("refused", type(error).__name__)
    assert torch.cuda.current_stream() == stream
    torch.manual_seed(1)
    first = torch.rand(4, device=device)
    torch.manual_seed(1)
    assert torch.equal(first, torch.rand(4, device=device))
    big = torch.zeros(2**26, device=device) + 1
    assert float(big.sum()) == 2**26
    (torch.rand(64, 64, device=device, requires_grad=True) @ torch.rand(64, 64, device=device)).sum().backward()
replay = graphs.record(lambda: given * 2 + torch.rand(4, device=device), device)
one, other = replay().clone(), replay().clone()
assert not torch.equal(one, other) and float((one - 2).min()) >= 0 and float((one - 3).max()) <= 0
print("as before")
"""


def test_a_recording_that_fails_leaves_cuda_as_it_was() -> None:
    """In a process of its own, which it may ruin."""
    done = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("refused") == 2
    assert "as before" in done.stdout


def test_a_probe_counts_the_passes_after_replayed_attacks() -> None:
    model, graphs = network().eval(), Counted()
    batches = [batch(12, seed=number) for number in range(5)]
    matrices = []
    for serves in (True, False):
        graphs = Counted(serves=serves)
        with CrossClassProbe(model, instances=True) as probe:
            result = probe.run(batches, _attack(Forward(model), graphs), seed=0)
        matrices.append(result)
        assert graphs.recorded == serves
    one, other = matrices
    assert one.counts.tolist() == other.counts.tolist()
    assert abs(one.cas - other.cas) < 1e-2
    assert one.robust_accuracy == pytest.approx(other.robust_accuracy, abs=0.02)


@pytest.mark.skipif(SIMULATED, reason="NCCL takes no simulated GPU")
def test_synchronised_batchnorm_in_a_job_of_one_process() -> None:
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain = network().train()
        model = nn.SyncBatchNorm.convert_sync_batchnorm(network().train())
        found = []
        for one in (plain, model):
            attack = _attack(Forward(one), Counted(), mode="train")
            for number in range(4):
                torch.manual_seed(number)
                adversarial = attack(*batch(12, seed=number))
            found.append(adversarial)
        assert (found[0] - found[1]).abs().gt(1e-5).float().mean() < 0.02
    finally:
        dist.destroy_process_group()


def test_the_users_own_graph_around_an_attack() -> None:
    attack = _attack(network().eval(), Counted())
    images, labels = batch(6)
    for _ in range(3):
        attack(images, labels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        adversarial = attack(images, labels)
    graph.replay()
    difference = (adversarial - images).abs().max()
    assert 0 < float(difference) <= 8 / 255 + 1e-6
