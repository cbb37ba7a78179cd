"""pack and unpack: runs and studies in pieces. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ccf_plugin.cli.console import open_console, print_line, quiet_libraries
from ccf_plugin.errors import counted
from ccf_plugin.files import expanded_path


class Weights(Enum):
    """As numbers travel."""

    float32 = "float32"
    float16 = "float16"


class Momentum(Enum):
    """As numbers travel."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    none = "none"


def pack(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run's folder, or a study's.")],
    into: Annotated[Path, typer.Argument(metavar="DIR", help="Where the pieces go: an empty folder, or a new one.")],
    megabytes: Annotated[float, typer.Option(help="The largest piece.")] = 16,
    weights: Annotated[Weights, typer.Option(help="Of the state; float16: half as long, not exact.")] = Weights.float32,
    momentum: Annotated[
        Momentum, typer.Option(help="Of the state; bfloat16 halves it, none leaves it behind; neither is exact.")
    ] = Momentum.float32,
    state_only: Annotated[bool, typer.Option("--state-only", help="Leave best and last weights behind.")] = False,
) -> None:
    """Write a run or a study in pieces, with which it goes on on another machine (ccf unpack)."""
    quiet_libraries()

    from ccf_plugin.runs.pieces import Precision, pack

    precision = Precision(weights.value, momentum.value)
    source, place = expanded_path(folder), expanded_path(into)
    pieces = pack(source, place, precision=precision, megabytes=megabytes, state_only=state_only)
    size = sum(path.stat().st_size for path in pieces)
    exact = "exact" if precision == Precision() else "not exact"
    said = f"Wrote {counted(len(pieces), 'piece')} to {into}, {size / 2**20:.1f} MB; {exact}"
    print_line(open_console(), said)


def unpack(
    pieces: Annotated[Path, typer.Argument(metavar="DIR", help="Where the pieces are.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New, or the same run's or study's before.")],
) -> None:
    """Join the pieces of ccf pack; ccf train --resume, or ccf study, goes on from there."""
    quiet_libraries()

    from ccf_plugin.runs.pieces import unpack

    stand = unpack(expanded_path(pieces), expanded_path(folder))
    runs = ", ".join(f"{name or folder.name} at epoch {epoch}" for name, (epoch, _) in stand.items())
    print_line(open_console(), f"{folder}: {runs}")
