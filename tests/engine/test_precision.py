from __future__ import annotations

import pytest
import torch
from torch import nn

from ccf_plugin.engine import precision
from ccf_plugin.engine.devices import resolve_device
from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.precision import resolve_precision
from ccf_plugin.errors import InputError, UnavailableError

CPU = torch.device("cpu")


class Spy(nn.Module):
    """Keeps what its last pass saw."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.channels_last = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.channels_last = images.is_contiguous(memory_format=torch.channels_last)
        out: torch.Tensor = self.conv(images)
        self.dtype = out.dtype
        return out.mean(dim=(2, 3))


def test_forward_gives_float32_logits_from_channels_last_images() -> None:
    spy = Spy()
    logits = Forward(spy, precision="bf16")(torch.rand(2, 3, 8, 8))
    assert (logits.dtype, spy.dtype, spy.channels_last) == (torch.float32, torch.bfloat16, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = Forward(spy)(torch.rand(2, 3, 8, 8))
    assert (logits.dtype, spy.dtype) == (torch.float32, torch.float32)
    assert Forward(spy).model is spy
    assert not Forward(spy.eval()).training
    with pytest.raises(InputError, match="fp16"):
        Forward(spy, precision="fp16")  # type: ignore[arg-type]


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_computes_bf16", lambda device: True)
    assert resolve_precision("auto", CPU) == resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("float32", CPU) == "float32"
    monkeypatch.setattr(precision, "_computes_bf16", lambda device: False)
    assert resolve_precision("auto", CPU) == "float32"
    with pytest.warns(UserWarning, match=r"no units for bf16.* \d+\.\d times as long"):
        assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        resolve_precision("bf6", CPU)  # type: ignore[arg-type]


def test_older_torch_without_the_checks_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert resolve_precision("auto", CPU) == "float32"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(UnavailableError, match="0 CUDA devices"):
        resolve_device("cuda")
    for name in ("gpu", "meta", ""):
        with pytest.raises(InputError, match="expected auto, cpu"):
            resolve_device(name)


def test_float32_on_a_gpu_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert resolve_device("cuda") == torch.device("cuda")
    assert not torch.backends.cudnn.allow_tf32


def test_bf16_where_it_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bf16(device: torch.device, name: str, *, size: int) -> float:
        raise RuntimeError("\"addmm\" not implemented for 'BFloat16'")

    monkeypatch.setattr(precision, "_computes_bf16", lambda device: False)
    monkeypatch.setattr(precision, "matrix_rate", no_bf16)
    assert resolve_precision("auto", CPU) == "float32"
    with pytest.raises(UnavailableError, match=r"expected a device that computes in it.* use float32"):
        resolve_precision("bf16", CPU)


def test_a_rate_is_of_the_hardwares_order() -> None:
    assert 1e8 < precision.matrix_rate(CPU, "float32", size=64) < 1e14
