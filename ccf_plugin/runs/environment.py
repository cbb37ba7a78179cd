"""What a run ran on."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ccf_plugin.engine.versions import installed_version
from ccf_plugin.errors import InputError
from ccf_plugin.files import write_json
from ccf_plugin.runs.layout import ENVIRONMENT

_VERSIONS_OF = ("ccf_plugin", "torch", "torchvision", "torchattacks", "robustbench", "timm", "numpy", "accelerate")
_VARIABLES = ("OMP_", "MKL_", "ONEDNN_", "CUBLAS_", "ACCELERATE_")  # of the environment: what libraries compute by


def running_command() -> list[str]:
    """What this process was started by: the program's name and its arguments."""
    return [_program(), *sys.argv[1:]]


def describe_environment(device: torch.device, precision: str, command: list[str] | None = None) -> dict[str, Any]:
    """What a run ran on: versions, hardware, threads, and the command."""
    return {
        "command": command or running_command(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLES)},
        "versions": {name: installed_version(name) or "unknown" for name in _VERSIONS_OF},
    }


def read_environment(run: Path, *, remedy: str = "") -> dict[str, Any]:
    """What a run ran on, as its folder says.

    Args:
        run: its folder.
        remedy: what the error ends with.

    Raises:
        InputError: there is none, or it is not one that training wrote.
    """
    path = run / ENVIRONMENT
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("no file")
        environment = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(environment, dict):
            raise ValueError(f"a {type(environment).__name__}")
        for name in ("command", "resumed"):
            if not isinstance(environment.get(name, []), list):
                raise ValueError(f"a {name} that is no list")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected the environment of a run in {path}, found none that can be read ({error}){remedy}"
        ) from None
    return environment


def add_resumption(run: Path, environment: Mapping[str, Any], *, epoch: int, step: int) -> None:
    """Record the environment in which a run resumes, after ``epoch`` epochs and ``step`` steps of the next."""
    first = read_environment(run)
    resumed = [*first.get("resumed", []), {"after_epoch": epoch, "after_step": step, **environment}]
    write_json(run / ENVIRONMENT, {**first, "resumed": resumed})


def _program() -> str:
    """The program's name without its folder, which is private where results are shared."""
    name = Path(sys.argv[0]).name
    return "ccf" if name in ("__main__.py", "ccf.exe") else name


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
