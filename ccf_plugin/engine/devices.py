"""Devices by name, and the one that a process of a job has."""

from __future__ import annotations

import torch

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.job import job_size


def resolve_device(name: str) -> torch.device:
    """``"auto"`` (CUDA where there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Raises UnavailableError where this machine lacks the device and InputError for another name. MPS is never chosen by
    itself: it lacks float64.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device: expected auto, cpu, cuda, cuda:N or mps, found {name!r}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device: expected auto, cpu, cuda, cuda:N or mps, found {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UnavailableError(f"device {name!r}: torch sees {count} CUDA devices here; use 'cpu' or 'auto'")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # torch's default is True; float32 is to be float32, to the last digit
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UnavailableError(f"device {name!r}: torch sees no MPS device here; use 'cpu' or 'auto'")
    return device


def job_device(name: str) -> torch.device:
    """As ``resolve_device``; in a job of several processes (accelerate, torchrun) this process's, the group being made.

    Raises as ``resolve_device`` does.
    """
    device = resolve_device(name)
    if job_size() == 1:
        return device
    from accelerate import PartialState

    return torch.device(PartialState(cpu=device.type == "cpu").device)
