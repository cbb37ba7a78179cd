"""train, sweep, recipes. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import leave_job, open_console, print_result, print_written, quiet_libraries
from ccf_plugin.cli.places import endings_of
from ccf_plugin.errors import CCFError, DivergedError, InputError, counted
from ccf_plugin.files import expanded_path, write_together

AllowChange = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", help="For runs that are resumed: a key that may differ from theirs: optim.epochs."),
]


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (see `ccf recipes`).")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe: optim.epochs=20."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<recipe's name>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    allow_change: AllowChange = None,
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


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE,VALUE…", help="As in attack.eps=2/255,4/255.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key in all runs.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the runs' folders go. Default: runs/<recipe's name>-sweep.")
    ] = None,
    allow_change: AllowChange = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMATS", help="Write the closing table, <out>/sweep.tex, .md or .csv."),
    ] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the runs' commands instead, one a line.")] = False,
    download: options.Download = False,
    allow_code: options.AllowCode = False,
) -> None:
    """Train by RECIPE once for each combination of values; what is finished is skipped, what is begun is resumed."""
    quiet_libraries()

    from ccf_plugin.tables import FORMS
    from ccf_plugin.training.sweep import plan_sweep

    common = overrides or []
    endings = [] if formats is None else endings_of(formats, known=tuple(FORMS))
    folder = expanded_path(out or Path("runs") / f"{Path(recipe).stem}-sweep")
    points = plan_sweep(recipe, settings, common, folder, allow_code=allow_code, allow_change=allow_change or [])
    if print_only:
        flags = [flag for flag, given in (("--download", download), ("--allow-code", allow_code)) if given]
        for point in points:
            sets = [word for override in (*common, *point.overrides) for word in ("--set", override)]
            print_result(shlex.join(["ccf", "train", recipe, *sets, *flags, "--out", str(point.folder)]))
        return
    from ccf_plugin.training.interruption import Interrupted
    from ccf_plugin.training.loop import train as run_training
    from ccf_plugin.training.progress import ProgressReporter, sweep_table

    console = open_console()
    finished = [point.is_finished for point in points]  # and whether each folder is of this sweep, before any runs
    diverged: dict[str, DivergedError] = {}
    for point, is_finished in zip(points, finished, strict=True):
        if is_finished:
            console.print(f"{point.name}: finished already in {point.folder}", highlight=False, soft_wrap=True)
            continue
        try:
            with ProgressReporter(console) as reporter:
                run_training(
                    point.recipe,
                    point.folder,
                    reporter,
                    resume=point.has_begun,
                    allow_change=point.allow_change,
                    download=download,
                )
        except Interrupted as error:
            where = f"{point.name}: {error.where}"
            raise Interrupted(where, error.signal_number, "continue with the same ccf sweep") from None
        except DivergedError as error:  # the others are worth having
            diverged[point.name] = error
            console.print(f"{point.name}: {error}", style="red", highlight=False, soft_wrap=True)
    table = sweep_table({point.name: None if point.name in diverged else point.run for point in points})
    console.print(table.rich())
    if endings:
        files = {folder / f"sweep{ending}": FORMS[ending](table) for ending in endings}
        write_together(files)
        print_written(console, list(files))
    if diverged:
        raise CCFError(
            f"expected {counted(len(points), 'run')} to the end, found that these diverged: {'; '.join(diverged)}"
        )
    leave_job()


def recipes() -> None:
    """List the shipped recipes, one a line: name, data, epochs × passes of each image, what it is, source."""
    from ccf_plugin.training.recipe_files import describe_recipe, load_recipe, shipped_recipes

    lines = []
    for name, path in shipped_recipes().items():
        recipe = load_recipe(name)
        title, source = describe_recipe(path)
        lines.append((name, recipe.data.name, f"{recipe.optim.epochs} × {recipe.passes}", f"{title} (from {source})"))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    console = open_console()
    for *cells, what in lines:
        cells = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        console.print("  ".join([*cells, what]), highlight=False, soft_wrap=True)
    console.print(
        "\nAfter the data: epochs × forward and backward passes of each image, the attack's steps among them."
        "\nThe paper: Wei, Guo, Wang, ICML 2025 (arXiv 2506.05032). Run one: ccf train NAME",
        highlight=False,
        soft_wrap=True,
    )
