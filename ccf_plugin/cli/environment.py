"""env: what a bug report needs. Heavy imports happen inside the command, so that --help is instant."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ccf_plugin.cli.console import open_console, print_json, quiet_libraries

_LIBRARIES = (
    *("torch", "torchvision", "torchattacks", "robustbench", "timm", "accelerate", "numpy", "scipy", "scikit-learn"),
    *("safetensors", "matplotlib", "plotly", "pydantic", "rich", "typer"),
)
_EXTRAS = {
    "hf": "datasets",
    "saliency": "captum",
    "metrics": "torchmetrics",
    "tensorboard": "tensorboard",
    **{name: name for name in ("lightning", "transformers", "wandb", "pandas")},
}


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON and nothing else.")] = False,
) -> None:
    """Show versions, device and extras: what a bug report needs."""
    quiet_libraries()
    described = describe()
    if as_json:
        print_json(described)
        return
    from rich.table import Table

    table = Table.grid("name", "value", padding=(0, 2))
    for name, value in described.items():
        for key, text in value.items() if isinstance(value, dict) else [(name, value)]:
            table.add_row(f"{name}: {key}" if isinstance(value, dict) else name, "no" if text is None else str(text))
    open_console().print(table)


def describe() -> dict[str, Any]:
    """Versions, the machine, its devices, and the extras: each one's version, None where it is not installed."""
    import torch

    from ccf_plugin.engine.versions import installed_version
    from ccf_plugin.runs.environment import describe_environment

    ran = describe_environment(torch.device("cpu"), "float32")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "ccf_plugin": installed_version("ccf_plugin"),
        **{name: ran[name] for name in ("python", "platform")},
        "processor": ran["device"],
        "threads": ran["threads"],
        "gpus": ", ".join(gpus) or None,
        "cuda": torch.version.cuda,
        "libraries": {name: installed_version(name) for name in _LIBRARIES},
        "extras": {extra: installed_version(library) for extra, library in _EXTRAS.items()},
        "variables": ran["variables"],
    }
