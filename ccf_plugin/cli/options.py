"""The options that several commands share, each worded once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ccf_plugin.cli.help import ATTACK, DATA, MODEL, OUTPUT, PROBE
from ccf_plugin.errors import Fault, InputError
from ccf_plugin.files import toml_or_text
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
    return key.strip(), toml_or_text(value)


def _parse_numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers such as 0.5,0.5,0.5, found {text!r}") from error


def pair_of(text: str, *, key: str = "pair") -> tuple[str, str]:
    """The two classes that an option names; its parameter is ``key``."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise InputError(Fault(key, "two classes such as cat,dog (or their numbers)", repr(text)))
    return parts[0], parts[1]


def option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """An option that help shows in a panel."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


AllowChange = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", help="For runs that are resumed: a key that may differ from theirs: optim.epochs."),
]
Model = Annotated[str, typer.Argument(help=f"{forms(loadable())}.")]
DataRoot = Annotated[Path | None, option(DATA, "Where the data sets lie. Default: the variable CCF_DATA, else data.")]
Download = Annotated[bool, option(DATA, "Fetch the data set where it is missing.", "--download")]
Device = Annotated[str, option(OUTPUT, "auto, cpu, cuda or cuda:N.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run the code that the recipe file names (python:…).")]
VMin = Annotated[
    float | None, option(OUTPUT, "The value of C's lightest colour. Default: 0; -0.75 from 100 classes on.")
]
VMax = Annotated[float | None, option(OUTPUT, "The value of C's darkest colour. Default: 1; 0.75 from 100 classes on.")]
Force = Annotated[bool, option(OUTPUT, "Replace what lies there, whatever its conditions.", "--force")]


def json_option(text: str) -> Any:
    """``--json`` of a command that writes files beside."""
    return option(OUTPUT, f"{text} Files are written with --out alone.", "--json")


_FORMATS = "Of the picture: png, pdf, svg, with commas between{}. Default: --out's ending, else png."
Formats = Annotated[str | None, option(OUTPUT, _FORMATS.format(""), "--format", metavar="FORMATS")]
FormatsWithTable = Annotated[
    str | None,
    option(OUTPUT, _FORMATS.format("; and tex, md, csv of the table"), "--format", metavar="FORMATS"),
]


Width = Annotated[
    float, option(OUTPUT, "Of the picture, in inches: 3.25 is a column of many papers, 6.75 their page.", min=1.0)
]


def out_option(text: str) -> Any:
    """``--out`` of a command whose files ``places.Place`` keeps apart."""
    return option(OUTPUT, f"{text}, and what differs where that name is a result of other conditions.")


# In the order in which help lists them within their panels.
_SETTING_OPTIONS: dict[str, Any] = {
    "checkpoint": Annotated[
        Path | None,
        option(MODEL, "Weights of your own, for python:, timm: or the package's networks.", metavar="FILE"),
    ],
    "checkpoint_key": Annotated[str | None, option(MODEL, "Which of several state dicts in that file.", metavar="KEY")],
    "options": Annotated[
        list[str] | None, option(MODEL, "Of the model's code; repeatable.", "--model-option", metavar="KEY=VALUE")
    ],
    "num_classes": Annotated[int | None, option(MODEL, "Of the model with those weights. Default: the file's.")],
    "mean": Annotated[
        str | None, option(MODEL, "It was trained on (images - mean) / std, in [0, 1].", metavar="R,G,B")
    ],
    "std": Annotated[str | None, option(MODEL, "See --mean.", metavar="R,G,B")],
    "normalize": Annotated[str | None, option(MODEL, f"The usual mean and std of {', '.join(USUAL)}.", metavar="DATA")],
    "pretrained": Annotated[bool, option(MODEL, "Published weights, or random ones.")],
    "model_dir": Annotated[
        Path | None, option(MODEL, "Where RobustBench's weights lie. Default: the variable CCF_MODELS, else models.")
    ],
    "head": Annotated[str | None, option(MODEL, "The layer to measure, where it cannot be found; or gradient.")],
    "output": Annotated[
        str | None,
        option(
            MODEL,
            "Which entry of the model's output the logits are: an index or a key.",
            parser=_index_or_key,
            metavar="ENTRY",
        ),
    ],
    "data": Annotated[str | None, option(DATA, f"{forms(READERS)}. Default: the model's own.")],
    "classes": Annotated[
        Path | None,
        option(DATA, "Class names, one a line, in the order of the labels. Default: the data's.", metavar="FILE"),
    ],
    "limit": Annotated[int | None, option(DATA, "Only so many test images, evenly over the classes. Default: all.")],
    "downscale": Annotated[
        int | None, option(DATA, "Take means of squares of so many pixels a side. Default: the run's own, else 1.")
    ],
    "data_root": DataRoot,
    "download": Download,
    "batch_size": Annotated[int, option(DATA, "Images per pass.")],
    "clean": Annotated[bool, option(ATTACK, "Clean images; no attack.", "--clean")],
    "attack": Annotated[
        str | None,
        option(ATTACK, "A torchattacks class, or python:package.module:Class. Default: PGD in Linf, PGDL2 in L2."),
    ],
    "norm": Annotated[str | None, option(ATTACK, "Linf or L2. Default: the benchmark's or run's own, else Linf.")],
    "eps": Annotated[
        str | None,
        option(
            ATTACK,
            "Radius in [0, 1] pixel units, as in 8/255. Default: the benchmark's or run's own, else 8/255 in Linf, "
            "128/255 in L2.",
        ),
    ],
    "step_size": Annotated[
        str | None,
        option(ATTACK, "In the same units, or as in eps/4. Default: the run's own, else eps/4 in Linf, eps/8 in L2."),
    ],
    "steps": Annotated[int | None, option(ATTACK, "Steps of the attack. Default: the run's own, else 20.")],
    "seed": Annotated[int, option(ATTACK, "Of the attack's random start.")],
    "precision": Annotated[str, option(ATTACK, "Of the attack's passes: float32, bf16 or auto.")],
    "centre": Annotated[
        bool, option(PROBE, "Measure with the head's rows less their mean, which no prediction depends on.", "--centre")
    ],
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
