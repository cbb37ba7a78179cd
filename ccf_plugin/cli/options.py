"""The options that several commands share, each worded once."""

from __future__ import annotations

import functools
import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ccf_plugin.cli.help import ATTACK, DATA, MODEL, OUTPUT, PROBE
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.zoo.normalizations import USUAL
from ccf_plugin.zoo.readers import READERS
from ccf_plugin.zoo.sources import loadable
from ccf_plugin.zoo.specs import forms


def _index_or_key(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _parse_options(texts: list[str] | None) -> dict[str, Any] | None:
    """Values are read as TOML, else as text."""
    return dict(_parse_option(text) for text in texts) if texts else None


def _parse_option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise typer.BadParameter(f"expected KEY=VALUE, found {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return key.strip(), value


def _parse_numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers such as 0.5,0.5,0.5, found {text!r}") from error


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """An option that help shows in a panel."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


AllowChange = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", help="For runs that are resumed: a key that may differ from theirs: optim.epochs."),
]
Model = Annotated[str, typer.Argument(help=f"{forms(loadable())}.")]
Checkpoint = Annotated[
    Path | None,
    _option(MODEL, "Weights of your own, for python:, timm: or the package's networks.", metavar="FILE"),
]
CheckpointKey = Annotated[str | None, _option(MODEL, "Which of several state dicts in that file.", metavar="KEY")]
ModelOptions = Annotated[
    list[str] | None, _option(MODEL, "Of the model's code; repeatable.", "--model-option", metavar="KEY=VALUE")
]
NumClasses = Annotated[int | None, _option(MODEL, "Of the model with those weights. Default: the file's.")]
Mean = Annotated[str | None, _option(MODEL, "It was trained on (images - mean) / std, in [0, 1].", metavar="R,G,B")]
Std = Annotated[str | None, _option(MODEL, "See --mean.", metavar="R,G,B")]
Normalize = Annotated[str | None, _option(MODEL, f"The usual mean and std of {', '.join(USUAL)}.", metavar="DATA")]
Pretrained = Annotated[bool, _option(MODEL, "Published weights, or random ones.")]
ModelDir = Annotated[
    Path | None, _option(MODEL, "Where RobustBench's weights lie. Default: the variable CCF_MODELS, else models.")
]
Head = Annotated[str | None, _option(MODEL, "The layer to measure, where it cannot be found; or gradient.")]
Output = Annotated[
    str | None,
    _option(
        MODEL,
        "Which entry of the model's output the logits are: an index or a key.",
        parser=_index_or_key,
        metavar="ENTRY",
    ),
]
Data = Annotated[str | None, _option(DATA, f"{forms(READERS)}. Default: the model's own.")]
Limit = Annotated[int | None, _option(DATA, "Only so many test images, evenly over the classes. Default: all.")]
Classes = Annotated[
    Path | None,
    _option(DATA, "Class names, one a line, in the order of the labels. Default: the data's.", metavar="FILE"),
]
Downscale = Annotated[
    int | None, _option(DATA, "Take means of squares of so many pixels a side. Default: the run's own, else 1.")
]
DataRoot = Annotated[Path | None, _option(DATA, "Where the data sets lie. Default: the variable CCF_DATA, else data.")]
Download = Annotated[bool, _option(DATA, "Fetch the data set where it is missing.", "--download")]
BatchSize = Annotated[int, _option(DATA, "Images per pass.")]
Clean = Annotated[bool, _option(ATTACK, "Clean images; no attack.", "--clean")]
Attack = Annotated[
    str | None,
    _option(ATTACK, "A torchattacks class, or python:package.module:Class. Default: PGD in Linf, PGDL2 in L2."),
]
Norm = Annotated[str | None, _option(ATTACK, "Linf or L2. Default: the benchmark's or run's own, else Linf.")]
Eps = Annotated[
    str | None,
    _option(
        ATTACK,
        "Radius in [0, 1] pixel units, as in 8/255. Default: the benchmark's or run's own, else 8/255 in Linf, 128/255 "
        "in L2.",
    ),
]
StepSize = Annotated[
    str | None,
    _option(ATTACK, "In the same units, or as in eps/4. Default: the run's own, else eps/4 in Linf, eps/8 in L2."),
]
Steps = Annotated[int | None, _option(ATTACK, "Steps of the attack. Default: the run's own, else 20.")]
Seed = Annotated[int, _option(ATTACK, "Of the attack's random start.")]
Precision = Annotated[str, _option(ATTACK, "Of the attack's passes: float32, bf16 or auto.")]
Centre = Annotated[
    bool, _option(PROBE, "Measure with the head's rows less their mean, which no prediction depends on.", "--centre")
]
Device = Annotated[str, _option(OUTPUT, "auto, cpu, cuda or cuda:N.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run the code that the recipe file names (python:…).")]
VMin = Annotated[
    float | None, _option(OUTPUT, "The value of C's lightest colour. Default: 0; -0.75 from 100 classes on.")
]
VMax = Annotated[
    float | None, _option(OUTPUT, "The value of C's darkest colour. Default: 1; 0.75 from 100 classes on.")
]
Force = Annotated[bool, _option(OUTPUT, "Replace what lies there, whatever its conditions.", "--force")]


def json_option(text: str) -> Any:
    """``--json`` of a command that writes files beside."""
    return _option(OUTPUT, f"{text} Files are written with --out alone.", "--json")


_FORMATS = "Of the picture: png, pdf, svg, with commas between{}. Default: --out's ending, else png."
Formats = Annotated[str | None, _option(OUTPUT, _FORMATS.format(""), "--format", metavar="FORMATS")]
FormatsWithTable = Annotated[
    str | None,
    _option(OUTPUT, _FORMATS.format("; and tex, md, csv of the table"), "--format", metavar="FORMATS"),
]


Width = Annotated[
    float, _option(OUTPUT, "Of the picture, in inches: 3.25 is a column of many papers, 6.75 their page.", min=1.0)
]


def out_option(text: str) -> Any:
    """``--out`` of a command whose files ``places.Place`` keeps apart."""
    return _option(OUTPUT, f"{text}, and what differs where that name is a result of other conditions.")


# In the order in which help lists them within their panels.
_SETTING_OPTIONS: dict[str, Any] = {
    "checkpoint": Checkpoint,
    "checkpoint_key": CheckpointKey,
    "options": ModelOptions,
    "num_classes": NumClasses,
    "mean": Mean,
    "std": Std,
    "normalize": Normalize,
    "pretrained": Pretrained,
    "model_dir": ModelDir,
    "head": Head,
    "output": Output,
    "data": Data,
    "classes": Classes,
    "limit": Limit,
    "downscale": Downscale,
    "data_root": DataRoot,
    "download": Download,
    "batch_size": BatchSize,
    "clean": Clean,
    "attack": Attack,
    "norm": Norm,
    "eps": Eps,
    "step_size": StepSize,
    "steps": Steps,
    "seed": Seed,
    "precision": Precision,
    "centre": Centre,
    "device": Device,
}


# What typer cannot make of a text.
_READ: dict[str, Callable[[Any], Any]] = {"options": _parse_options, "mean": _parse_numbers, "std": _parse_numbers}


def with_settings(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in place of its parameter ``settings``, an option for each of ``measuring.settings.Settings``.

    The command gets the one ``Settings`` that is made of them; what is ``left_out`` keeps its default. typer makes a
    command's options of its signature alone, so that this is written here; the other ways repeat the 28 parameters in
    each of five commands, or lean on the click that a typer keeps to itself.
    """
    defaults = Settings().flat()
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=option)
        for name, option in _SETTING_OPTIONS.items()
        if name not in left_out
    ]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {option.name: given.pop(option.name) for option in options}
            settings = Settings.of(**{name: _READ.get(name, lambda value: value)(values[name]) for name in values})
            command(settings=settings, **given)

        parameters = inspect.signature(command, eval_str=True).parameters.values()
        expanded = [new for old in parameters for new in (options if old.name == "settings" else [old])]
        run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]  # what typer reads
        return run

    return give
