"""train, recipes. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import leave_job, open_console, print_line, quiet_libraries
from ccf_plugin.cli.places import endings_of
from ccf_plugin.errors import InputError
from ccf_plugin.files import expanded_path


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (see `ccf recipes`).")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe: optim.epochs=20."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<recipe's name>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    allow_change: options.AllowChange = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in the folder.")] = False,
    formats: options.Formats = None,
    track: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Log to a tracker of accelerate's too: tensorboard, …")
    ] = None,
    download: options.Download = False,
    allow_code: options.AllowCode = False,
) -> None:
    """Train by RECIPE, measuring RA and CAS as it goes."""
    quiet_libraries()

    from ccf_plugin.runs.layout import LOG, PROBE, checkpoint_of
    from ccf_plugin.training.loop import train as run_training
    from ccf_plugin.training.progress import ProgressReporter, closing_table
    from ccf_plugin.training.recipe_files import load_recipe

    if resume and force:
        raise InputError("expected --resume or --force, found both; --force starts anew")
    if allow_change and not resume:
        raise InputError("expected --allow-change with --resume, found it alone; a new run may have any recipe")
    console = open_console()
    pictures = [] if formats is None else [f"probe.pictures={[ending[1:] for ending in endings_of(formats)]}"]
    loaded = load_recipe(recipe, [*(overrides or []), *pictures], allow_code=allow_code)
    with ProgressReporter(console) as reporter:
        run = run_training(
            loaded,
            expanded_path(out or Path("runs") / Path(recipe).stem),
            reporter,
            resume=resume,
            allow_change=allow_change or [],
            force=force,
            download=download,
            trackers=track or [],
        )
    console.print(closing_table(run))
    console.print(
        f"Log {run.folder / LOG}, matrices {run.folder / PROBE}, weights {checkpoint_of(run.folder, 'best')}",
        soft_wrap=True,
    )
    leave_job()


def recipes() -> None:
    """List the shipped recipes, one a line: name, data, epochs × passes of each image, what it is, source."""
    from ccf_plugin.training.recipe_files import describe_recipe, load_recipe, shipped_recipes
    from ccf_plugin.training.study import shipped_studies

    lines = []
    for name, path in shipped_recipes().items():
        recipe = load_recipe(name)
        title, source = describe_recipe(path)
        lines.append((name, recipe.data.name, f"{recipe.optim.epochs} × {recipe.passes}", f"{title} (from {source})"))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    console = open_console()
    for *cells, what in lines:
        cells = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        print_line(console, "  ".join([*cells, what]))
    print_line(
        console,
        "\nAfter the data: epochs × forward and backward passes of each image, the attack's steps among them."
        "\nThe paper: Wei, Guo, Wang, ICML 2025 (arXiv 2506.05032). Run one: ccf train NAME",
    )
    print_line(console, f"Studies, for ccf study NAME: {', '.join(shipped_studies())}")
