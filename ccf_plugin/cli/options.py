"""The options that several commands share, each worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccf_plugin.files import given_path

Model = Annotated[
    str,
    typer.Argument(
        help="robustbench:[dataset/threat/]Name, timm:name, a run folder, a checkpoint of one, "
        "or python:package.module:factory with --checkpoint."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, cifar10, cifar100, tinyimagenet, imagenet, folder:PATH or npz:PATH. Default: the model's own."
    ),
]
Attack = Annotated[
    str | None, typer.Option(help="A torchattacks class, or python:package.module:Class. Default: PGD or PGDL2.")
]
Norm = Annotated[str | None, typer.Option(help="Linf or L2. Default: the benchmark's or run's, else Linf.")]
Eps = Annotated[str | None, typer.Option(help="Radius in [0, 1] pixel units, as in 8/255. Default: as for the norm.")]
StepSize = Annotated[str | None, typer.Option(help="Default: eps/4 (Linf), eps/8 (L2).")]
Steps = Annotated[int | None, typer.Option(help="Steps of the attack. Default: 20, or the run's own.")]
Limit = Annotated[int | None, typer.Option(help="Only so many test images, evenly over the classes.")]
BatchSize = Annotated[int, typer.Option(help="Images per pass.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights for a python: model.")]
Pretrained = Annotated[bool, typer.Option(help="Published weights, or random ones.")]
Precision = Annotated[str, typer.Option(help="Of the attack's passes: float32, bf16 or auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(help="Of the attack's random start.")]
ModelDir = Annotated[Path, typer.Option(help="Where RobustBench's weights lie.")]
DataRoot = Annotated[Path, typer.Option(help="Where the data sets lie.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set where it is missing.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run the code that the recipe file names (python:…).")]
VMin = Annotated[float | None, typer.Option(help="The value of C's lightest colour. Default: 0 (100 classes: -0.75).")]
VMax = Annotated[float | None, typer.Option(help="The value of C's darkest colour. Default: 1 (100 classes: 0.75).")]


def stem(out: Path | None, name: str) -> Path:
    """The path that a command's files begin with: ``out`` without its suffix, or a name in ``results``."""
    stem = given_path(out) if out else Path("results") / name
    return stem.with_suffix("") if stem.suffix in (".npz", ".json", ".png", ".csv") else stem
