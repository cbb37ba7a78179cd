"""When a function is recorded and replayed: the logic, with graphs that need no GPU. ``tests/gpu`` has CUDA's."""

from __future__ import annotations

import logging

import pytest
import torch
from support.graphs import FakeGraphs
from torch import Tensor, nn

from ccf_plugin.engine.graphs import CudaGraphs, Replayed, model_state


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _replayed(model: nn.Module, graphs: FakeGraphs) -> Replayed:
    return Replayed(model, "the network", lambda: model_state(model), graphs)


def test_the_second_call_is_recorded_and_all_give_what_the_function_gives() -> None:
    model, twin, graphs = _network(), _network(), FakeGraphs()
    run = _replayed(model, graphs)
    given = [torch.rand(5, 3) for _ in range(4)]
    found = []
    for number, inputs in enumerate(given):
        found.append(run(inputs))
        expected = twin(inputs)
        torch.testing.assert_close(found[-1], expected)
        assert graphs.recorded == min(number, 1)
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            parameter.data.mul_(1.1)
            other.data.mul_(1.1)
    assert (graphs.watched, graphs.replayed) == (1, 3)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), twin.buffers(), strict=True))
    # What was given stays, though a graph writes its next result where this one lay.
    torch.testing.assert_close(found[1] - found[3], found[1].clone() - found[3].clone())
    assert not torch.equal(found[1], found[3])


def test_each_kind_of_input_and_state_has_its_own_graph() -> None:
    model, graphs = _network(), FakeGraphs()
    run = _replayed(model, graphs)

    def twice(rows: int) -> int:
        """How many graphs that made."""
        before = graphs.recorded
        for _ in range(2):
            inputs = torch.rand(rows, 3)
            buffers = [buffer.clone() for buffer in model.buffers()]
            found = run(inputs)
            for buffer, old in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(old)
            torch.testing.assert_close(found, model(inputs))
        return graphs.recorded - before

    assert [twice(5), twice(5), twice(2), twice(5)] == [1, 0, 1, 0]
    model.eval()
    assert [twice(5), twice(5)] == [1, 0]
    model[0].weight.data = model[0].weight.data.clone()  # elsewhere in memory
    assert [twice(5), twice(5)] == [1, 0]
    model.train()
    for rows in range(10, 20):
        twice(rows)
    assert twice(5) == 1, "old graphs make room for new ones"


@pytest.mark.parametrize(
    ("findings", "recorded"), [(("waits", "waits"), 0), (("waits", ""), 1), (("waits", "draws"), 0), (("",), 1)]
)
def test_what_a_replay_would_leave_out_is_never_replayed(
    findings: tuple[str, ...], recorded: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="ccf_plugin")
    model, graphs = _network().eval(), FakeGraphs(*findings)
    run = _replayed(model, graphs)
    for _ in range(5):
        inputs = torch.rand(4, 3)
        torch.testing.assert_close(run(inputs), model(inputs))
    assert graphs.recorded == recorded
    assert graphs.watched == len(findings)
    expected = [] if recorded else [f"the network is not replayed as a CUDA graph: {findings[-1]}"]
    assert [record.getMessage() for record in caplog.records] == expected


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="ccf_plugin")
    model, graphs = _network().eval(), FakeGraphs(refuses=RuntimeError("operation not permitted\nwhen capturing"))
    run = _replayed(model, graphs)
    for rows in (4, 4, 4, 3, 3, 3):
        inputs = torch.rand(rows, 3)
        torch.testing.assert_close(run(inputs), model(inputs))
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage().endswith("RuntimeError: operation not permitted when capturing")


def test_a_model_that_replaces_its_tensors_is_not_recorded() -> None:
    """A replay would go on reading the ones that were there before."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.calls = self.calls + 1
            result: Tensor = images * self.calls
            return result

    model, graphs = Counting(), FakeGraphs()
    run = _replayed(model, graphs)
    assert [float(run(torch.ones(1))) for _ in range(4)] == [1.0, 2.0, 3.0, 4.0]
    assert graphs.recorded == 0


def test_errors_of_the_function_reach_its_caller() -> None:
    def broken(_: Tensor) -> Tensor:
        raise ValueError("of its own")

    run = Replayed(broken, "it", lambda: None, FakeGraphs())
    for _ in range(3):
        with pytest.raises(ValueError, match="of its own"):
            run(torch.ones(1))


def test_tensors_of_the_host_are_none_of_cudas() -> None:
    assert not CudaGraphs().can_record((torch.ones(1),))
