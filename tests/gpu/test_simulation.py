"""What the simulated GPU does as CUDA does; the tests beside this one rely on it where there is no GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from .models import CUDA, SIMULATED, plain_network

pytestmark = pytest.mark.skipif(not SIMULATED, reason="of the simulation: PYTHONPATH=tests/simulated_gpu")


def test_tensors_of_two_devices_do_not_mix() -> None:
    there, here = torch.rand(3, device=CUDA), torch.rand(3)
    for operation in (torch.add, torch.dot, torch.minimum, nn.functional.mse_loss):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            operation(there, here)
    assert (there + torch.tensor(1.0)).is_cuda  # a number of the CPU may take part
    assert there[torch.tensor([2, 0])].tolist() == [there.tolist()[2], there.tolist()[0]]
    there.copy_(here)
    assert torch.equal(there.cpu(), here)
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()


@pytest.mark.parametrize("wait", [float, lambda t: t.cpu(), lambda t: t[t > 0], torch.nonzero, lambda t: bool(t.any())])
def test_what_waits_is_told(wait: object) -> None:
    value = torch.ones((), device=CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        value.add_(1).sqrt().expand(3).sum()
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
            wait(value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wait(value)


def test_a_graph_repeats_what_the_device_was_given() -> None:
    model = plain_network().train()
    images = torch.rand(6, 3, 32, 32, device=CUDA)
    ran = []
    before = copy.deepcopy(model.state_dict())
    graph = torch.cuda.CUDAGraph()
    torch.manual_seed(3)
    with torch.cuda.graph(graph), torch.no_grad():
        ran.append(1)
        noisy = images + torch.rand_like(images)
        logits = model(noisy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "capturing runs nothing"
    twin = plain_network().train()
    for _ in range(2):
        torch.manual_seed(3)
        graph.replay()
        torch.manual_seed(3)
        with torch.no_grad():
            expected = twin(images + torch.rand_like(images))
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)
        for one in (model, twin):
            one[0].weight.data.mul_(0.5)
        images.copy_(torch.rand_like(images))
    assert ran == [1]
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
    first = noisy.clone()
    graph.replay()
    assert not torch.equal(noisy, first), "random numbers are drawn anew"


def test_what_waits_cannot_be_recorded() -> None:
    with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            float(torch.ones((), device=CUDA))
    assert not torch.cuda.is_current_stream_capturing()


def test_a_network_moves_with_its_gradients_and_momentum() -> None:
    torch.manual_seed(0)
    here = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).double()
    there = copy.deepcopy(here).to(CUDA, memory_format=torch.channels_last)
    weights = list(there.parameters())
    images = torch.rand(7, 3, 8, 8, dtype=torch.float64)
    for model in (here, there):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=model is there)
        for _ in range(3):
            model(images.to(next(model.parameters()).device)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert weights[0].stride() == (27, 1, 9, 3)
    assert all(one is other for one, other in zip(weights, there.parameters(), strict=True))
    for name, value in copy.deepcopy(there).cpu().state_dict().items():
        torch.testing.assert_close(value, here.state_dict()[name])
