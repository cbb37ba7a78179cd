from __future__ import annotations

from typing import Any

import pytest
import torch
from support.precise import InFloat64
from torch import nn

from ccf_plugin.engine import compilation
from ccf_plugin.engine.compilation import CompiledForward, build_forward
from ccf_plugin.engine.forward import Forward
from ccf_plugin.errors import UnavailableError
from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.attacks import build_attack

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def _count_compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that reach compiled code, which here is the eager one."""
    sizes: list[int] = []

    def compile_nothing(function: Any, **_: Any) -> Any:
        def run(images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            logits: torch.Tensor = function(images)
            return logits

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return sizes


@pytest.mark.parametrize(
    ("compiled", "device", "work", "expected"),
    [
        ("auto", CPU, 1e20, False),
        ("auto", CUDA, 1e20, True),
        ("auto", CUDA, 1e14, False),
        (True, CPU, 1e14, True),
        (False, CUDA, 1e20, False),
    ],
)
def test_auto_compiles_on_cuda_alone_and_long_runs_alone(
    compiled: compilation.Compile,
    device: torch.device,
    work: float,
    expected: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="ccf_plugin")
    forward = build_forward(_model(), precision="float32", device=device, compiled=compiled, batch_size=8, work=work)
    assert isinstance(forward, CompiledForward) == expected
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (compiled == "auto" and device == CUDA)
    assert all(message.startswith("compiled: " if expected else "not compiled: ") for message in said)


@pytest.mark.parametrize(
    ("device", "is_replayed", "expected"),
    [(CUDA, True, "default"), (CUDA, False, "reduce-overhead"), (CPU, False, "default")],
)
def test_a_pass_is_a_graph_of_its_own_unless_it_is_part_of_one(
    device: torch.device, is_replayed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: modes.append(options["mode"]) or function)
    build_forward(_model(), precision="float32", device=device, compiled=True, batch_size=8, is_replayed=is_replayed)
    assert modes == [expected]


def test_only_whole_batches_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = _count_compiled(monkeypatch)
    forward = build_forward(_model(), precision="float32", device=CPU, compiled=True, batch_size=8)
    for size in (8, 5, 8):
        assert forward(torch.rand(size, 3, 6, 6)).shape == (size, 3)
    assert sizes == [8, 8]


def test_runs_one_after_another_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend=backend))
    with torch._dynamo.config.patch(recompile_limit=2):  # setattr and back would leave the setting hidden for good
        for number in range(1, 5):
            forward = build_forward(_model(), precision="float32", device=CPU, compiled=True, batch_size=8)
            forward(torch.rand(8, 3, 6, 6))
            assert len(graphs) == number


def test_logits_survive_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph's do not by themselves."""
    memory = torch.zeros(8, 3)

    def graph(function: Any, **_: Any) -> Any:
        return lambda images: memory.copy_(function(images).detach())

    monkeypatch.setattr(torch, "compile", graph)
    forward = CompiledForward(_model(), precision="float32", batch_size=8, mode="reduce-overhead", required=True)
    first, second = (forward(torch.rand(8, 3, 6, 6)) for _ in range(2))
    assert not torch.equal(first, second)


def test_what_cannot_be_compiled_is_an_error_or_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def run(images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nfound")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    images = torch.rand(8, 3, 6, 6)
    with pytest.raises(UnavailableError, match=r"compile = true: .*no C\+\+ compiler.* use compile = false"):
        build_forward(_model(), precision="float32", device=CPU, compiled=True, batch_size=8)(images)
    forward = build_forward(_model(), precision="float32", device=CUDA, compiled="auto", batch_size=8)
    with pytest.warns(UserWarning, match="going on without torch.compile"):
        logits = forward(images)
    assert torch.equal(logits, Forward(_model())(images))
    forward(images)  # without a second attempt, or a second warning


def test_running_out_of_memory_is_not_taken_for_a_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: full)
    forward = build_forward(_model(), precision="float32", device=CUDA, compiled="auto", batch_size=8)
    with pytest.raises(torch.OutOfMemoryError):
        forward(torch.rand(8, 3, 6, 6))


@pytest.mark.slow
def test_compiled_passes_are_the_eager_ones() -> None:
    images, labels = torch.rand(8, 3, 6, 6), torch.arange(8) % 3
    results = []
    for compiled in (True, False):
        model = InFloat64(_model())  # by its steps' signs an attack makes much of float32's rounding
        forward = build_forward(model, precision="float32", device=CPU, compiled=compiled, batch_size=8)
        attack = build_attack("PGD", forward, threat_model(norm="Linf", eps=0.1, steps=3), mode="train")
        torch.manual_seed(1)
        adversarial = attack(images, labels)
        nn.functional.cross_entropy(forward(adversarial), labels).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([adversarial, *gradients, *model.buffers(), forward(images[:5])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
