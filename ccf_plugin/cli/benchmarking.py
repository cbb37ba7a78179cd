"""bench. Heavy imports happen inside the command, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import open_console, print_written, quiet_libraries
from ccf_plugin.cli.places import Place
from ccf_plugin.errors import counted

if TYPE_CHECKING:
    from rich.table import Table


def bench(
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of a shipped one.")] = "preact_linf",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    device: options.Device = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Four steps an epoch, 50 test images, two epochs.")] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Timed epochs, after one to warm up. Default: 10, or 2 with --quick.")
    ] = None,
    reference_steps: Annotated[
        int, typer.Option(min=0, help="Steps of the plain loop after each epoch, to compare with; 0 for none.")
    ] = 2,
    download: options.Download = False,
    allow_code: options.AllowCode = False,
    out: Annotated[
        Path | None, options.out_option("The JSON file. Default: results/bench-<recipe>-<device>.json")
    ] = None,
    force: options.Force = False,
) -> None:
    """Measure how fast a recipe trains here, beside a plain loop. A whole epoch of preact_linf takes hours on a CPU."""
    quiet_libraries()
    from ccf_plugin.bench.speed import bench as run_bench
    from ccf_plugin.engine.devices import resolve_device
    from ccf_plugin.files import json_bytes, made_folder
    from ccf_plugin.measuring.provenance import with_command
    from ccf_plugin.runs.environment import describe_environment
    from ccf_plugin.training.progress import ProgressReporter
    from ccf_plugin.training.recipe_files import load_recipe

    console = open_console()
    chosen = resolve_device(device)
    settings = [*(overrides or []), *([] if device == "auto" else [f"device={device}"])]
    loaded = load_recipe(recipe, settings, allow_code=allow_code)
    epochs = epochs or (2 if quick else 10)
    provenance = with_command(
        {
            "recipe": loaded.model_dump(mode="json", exclude_none=True),
            "processor": describe_environment(chosen, "")["device"],
            "epochs": epochs,
            "reference_steps": reference_steps,
            "quick": quick,
        }
    )
    name, suffix = f"bench-{Path(recipe).stem}-{chosen.type}", ".json" if out is None else ""
    place = Place(out, name, provenance, (suffix,), force=force)
    with made_folder(place.file().parent):  # what it cannot be is said before anything is measured
        with ProgressReporter(console) as reporter:
            figures = run_bench(
                loaded,
                reporter,
                epochs=epochs,
                reference_steps=reference_steps,
                quick=quick,
                download=download,
            )
        written = place.write({suffix: json_bytes({**figures, "provenance": provenance})})
    console.print(_table(figures))
    print_written(console, written)


def _table(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    plain, shares, flops = figures["reference"], figures["shares"], figures["flops_per_image"]
    is_measured = "step_ratio" in plain
    table = Table("", "this", "plain loop", "ratio")
    table.add_row("device", f"{figures['device']}, {figures['threads']} threads")
    table.add_row("precision", figures["precision"], "float32")
    table.add_row("images per second", f"{figures['images_per_second']:.1f}")
    for name in ("step", "epoch"):
        row = [f"seconds per {name}", f"{figures[f'seconds_per_{name}']:.4g}"]
        if is_measured:
            row += [f"{plain[f'seconds_per_{name}']:.4g}", f"{plain[f'{name}_ratio']:.2f}"]
        table.add_row(*row)
    table.add_row("  of it", ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    table.add_row("warm-up epoch", f"{figures['warm_up_epoch_seconds']:.4g} s, compilation included")
    table.add_row("probe, each step", f"{figures['probe']['share_of_step']:.2%} of the step")
    table.add_row(
        "FLOP of an image", f"{flops['training'] / 1e9:.3g} G in training, {flops['evaluation'] / 1e9:.3g} G evaluated"
    )
    table.add_row(
        "FLOP utilisation",
        f"{figures['utilisation']:.0%} of {figures['matrix_product_flops_per_second'] / 1e12:.3g} TFLOP/s",
    )
    if figures["run"] is not None:
        run = figures["run"]
        table.add_row(counted(run["epochs"], "epoch"), f"{run['seconds'] / 60:.3g} minutes, extrapolated")
    return table
