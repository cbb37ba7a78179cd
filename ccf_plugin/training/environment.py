"""What a run ran on."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_VERSIONS_OF = ("ccf_plugin", "torch", "torchvision", "torchattacks", "robustbench", "timm", "numpy", "accelerate")
_VARIABLES = ("OMP_", "MKL_", "ONEDNN_", "CUBLAS_", "ACCELERATE_")  # of the environment: what libraries compute by


def describe_environment(device: torch.device, precision: str, command: list[str] | None = None) -> dict[str, Any]:
    """What a run ran on: versions, hardware, threads, and the command."""
    versions = {}
    for name in _VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return {
        "command": command or [_program(), *sys.argv[1:]],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLES)},
        "versions": versions,
    }


def _program() -> str:
    """Its name without its folder, which is nobody's business where results are shared."""
    name = Path(sys.argv[0]).name
    return "ccf" if name in ("__main__.py", "ccf.exe") else name


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
