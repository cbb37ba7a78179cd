"""The options that several commands share, each worded once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ccf_plugin.files import given_path
from ccf_plugin.measure.settings import Settings
from ccf_plugin.zoo.readers import READERS
from ccf_plugin.zoo.sources import loadable
from ccf_plugin.zoo.specs import forms


def _index_or_key(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


Model = Annotated[
    str,
    typer.Argument(help=f"{forms(loadable())}."),
]
Data = Annotated[
    str | None,
    typer.Option(help=f"{forms(READERS)}. Default: the model's own."),
]
Clean = Annotated[bool, typer.Option("--clean", help="Clean images; no attack.")]
Attack = Annotated[
    str | None, typer.Option(help="A torchattacks class, or python:package.module:Class. Default: PGD or PGDL2.")
]
Norm = Annotated[str | None, typer.Option(help="Linf or L2. Default: the benchmark's or run's, else Linf.")]
Eps = Annotated[str | None, typer.Option(help="Radius in [0, 1] pixel units, as in 8/255. Default: as for the norm.")]
StepSize = Annotated[str | None, typer.Option(help="Default: eps/4 (Linf), eps/8 (L2).")]
Steps = Annotated[int | None, typer.Option(help="Steps of the attack. Default: 20, or the run's own.")]
Limit = Annotated[int | None, typer.Option(help="Only so many test images, evenly over the classes.")]
Head = Annotated[str | None, typer.Option(help="The layer to measure, where it cannot be found; or gradient.")]
Output = Annotated[
    str | None,
    typer.Option(
        parser=_index_or_key,
        metavar="ENTRY",
        help="Which entry of the model's output the logits are: an index or a key.",
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images per pass.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights for a python: model.")]
Pretrained = Annotated[bool, typer.Option(help="Published weights, or random ones.")]
Precision = Annotated[str, typer.Option(help="Of the attack's passes: float32, bf16 or auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(help="Of the attack's random start.")]
ModelDir = Annotated[
    Path | None, typer.Option(help="Where RobustBench's weights lie. Default: the variable CCF_MODELS, else models.")
]
Classes = Annotated[
    Path | None,
    typer.Option(help="A file of class names, one a line, in the order of the labels. Default: the data's."),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where the data sets lie. Default: the variable CCF_DATA, else data.")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set where it is missing.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run the code that the recipe file names (python:…).")]
VMin = Annotated[float | None, typer.Option(help="The value of C's lightest colour. Default: 0 (100 classes: -0.75).")]
VMax = Annotated[float | None, typer.Option(help="The value of C's darkest colour. Default: 1 (100 classes: 0.75).")]

_OF_SETTINGS: dict[str, Any] = {
    "data": Data,
    "classes": Classes,
    "clean": Clean,
    "attack": Attack,
    "norm": Norm,
    "eps": Eps,
    "step_size": StepSize,
    "steps": Steps,
    "limit": Limit,
    "head": Head,
    "output": Output,
    "batch_size": BatchSize,
    "seed": Seed,
    "precision": Precision,
    "device": Device,
    "checkpoint": Checkpoint,
    "pretrained": Pretrained,
    "model_dir": ModelDir,
    "data_root": DataRoot,
    "download": Download,
}


def with_settings(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in place of its parameter ``settings``, an option for each of ``measure.settings.Settings``.

    The command gets the one ``Settings`` that is made of them; what is ``left_out`` keeps its default. typer makes a
    command's options of its signature alone, so that this is written here; the other ways repeat the 20 parameters in
    each of five commands, or lean on the click that a typer keeps to itself.
    """
    defaults = Settings().flat()
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=option)
        for name, option in _OF_SETTINGS.items()
        if name not in left_out
    ]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            settings = Settings.of(**{option.name: given.pop(option.name) for option in options})
            command(settings=settings, **given)

        parameters = inspect.signature(command, eval_str=True).parameters.values()
        expanded = [new for old in parameters for new in (options if old.name == "settings" else [old])]
        run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]  # what typer reads
        return run

    return give


def stem(out: Path | None, name: str) -> Path:
    """The path that a command's files begin with: ``out`` without its suffix, or a name in ``results``."""
    stem = given_path(out) if out else Path("results") / name
    return stem.with_suffix("") if stem.suffix in (".npz", ".json", ".png", ".csv") else stem
