"""A host that trains with us as a library finds its process as it was."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.defaults import other_defaults
from support.runs import Quiet, assert_same_run, tiny
from torch import Tensor

from ccf_plugin.errors import CCFError
from ccf_plugin.training.loop import train


def _process() -> dict[str, Any]:
    """Every switch that we know of."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "threads": torch.get_num_threads(),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic],
        "cudnn.enabled": torch.backends.cudnn.enabled,
        "matmul": [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
        "autocast": [torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()],
        "defaults": [torch.get_default_dtype(), torch.empty(0).device],
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's": [kind, keys.tolist(), *rest],
        "python's": random.getstate(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "logging": logging.root.manager.disable,
        "folder": Path.cwd(),
        "threads alive": [thread.name for thread in threading.enumerate()],
    }


@pytest.fixture
def changed() -> Any:
    """Switches as a host might have set them, none as it is by itself."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True
    torch.manual_seed(123)
    yield
    torch.set_num_threads(before[0])
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[1:]


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize("ends", ["well", "by its host", "by a fault"])
def test_every_switch_is_as_before(ends: str, tmp_path: Path) -> None:
    train(tiny("optim.epochs=1"), tmp_path / "first", Quiet())  # what is imported and made once in a process
    before = _process()
    inside: list[int] = []

    class Host(Quiet):
        def step(self, epoch: int, done: int, total: int) -> None:
            inside.append(torch.get_num_threads())

    settings = ["optim.lr=1e30"] if ends == "by a fault" else []
    host = Host(stop_after=1 if ends == "by its host" else None)
    try:
        train(tiny("threads=1", "optim.epochs=2", *settings), tmp_path / "run", host)
        ended = "well"
    except KeyboardInterrupt:
        ended = "by its host"
    except CCFError:
        ended = "by a fault"
    assert ended == ends
    assert set(inside) == {1}
    assert _process() == before


def test_the_hosts_default_device_and_dtype_change_nothing(tmp_path: Path) -> None:
    recipe = tiny("average.kind=ema", "probe.gradients=true", "data.augmentation=crop-flip", "data.cutout=2")
    whole = train(recipe, tmp_path / "whole", Quiet())
    with other_defaults():
        before = _process()["defaults"]
        assert_same_run(train(recipe, tmp_path / "run", Quiet()), whole)
        assert _process()["defaults"] == before


def test_the_hosts_compiled_code_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(1)
        return graph.forward

    @torch.compile(backend=backend)
    def of_the_host(values: Tensor) -> Tensor:
        return values * 2

    of_the_host(torch.ones(3))
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend="eager"))  # soon done
    train(tiny("compile=true", "optim.epochs=1"), tmp_path / "run", Quiet())
    of_the_host(torch.ones(3))
    assert compiled == [1]


def test_a_host_sees_the_models_of_each_epoch_before_it_is_written(tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, Any]]] = []

    class Hook(Quiet):
        def measured(self, epoch: int, models: Any) -> None:
            assert len(self.rows) == epoch - 1
            seen.append((epoch, {name: model.state_dict()["linear.bias"].clone() for name, model in models.items()}))

    average = "average={kind='ema', start_epoch=1}"
    train(tiny("optim.epochs=2", average), tmp_path / "run", Hook())
    assert [(epoch, sorted(models)) for epoch, models in seen] == [(1, [""]), (2, ["", "_average"])]
    for suffix in ("", "_average"):
        written = load_file(tmp_path / "run" / f"last{suffix}.safetensors")
        assert torch.equal(seen[-1][1][suffix], written["linear.bias"])
