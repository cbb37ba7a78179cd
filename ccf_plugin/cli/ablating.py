"""ablate. Heavy imports happen inside the command, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import (
    check_names,
    open_console,
    print_json,
    print_line,
    print_written,
    progress_on,
    quiet_libraries,
    refuse_several_processes,
)
from ccf_plugin.cli.places import Place, endings_of
from ccf_plugin.errors import counted
from ccf_plugin.measuring.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ccf_plugin.measuring.ablation_result import Ablation, Figures, PairAblation

_LISTED = 8


@options.with_settings("centre")
def ablate(
    model: options.Model,
    *,
    settings: Settings,
    count: Annotated[
        int | None, typer.Option("--features", metavar="M", help="How many to remove. Default: a twentieth of them.")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pair", metavar="CLASS,CLASS", help="Measure this pair under attack too; may be repeated."),
    ] = None,
    strongest: Annotated[
        int, typer.Option(min=0, help="Without --pair: how many of the strongest pairs to measure under attack too.")
    ] = 3,
    out: Annotated[
        Path | None, options.out_option("Where <out>.json and the picture go. Default: results/<model>-ablation")
    ] = None,
    formats: options.Formats = None,
    force: options.Force = False,
    as_json: Annotated[bool, options.json_option("Print the ablation's JSON and nothing else.")] = False,
) -> None:
    """Remove the features that classes of MODEL share: does it use them? Clean for all pairs, attacked for a few."""
    quiet_libraries()
    refuse_several_processes("ablate", "start it with python or ccf alone")
    check_names(model, checkpoint=settings.weights.checkpoint)

    from ccf_plugin.drawing import figure_bytes
    from ccf_plugin.errors import Fault, InputError
    from ccf_plugin.files import json_bytes
    from ccf_plugin.measuring.ablate import ablate as run_ablation
    from ccf_plugin.measuring.pictures import draw_ablation
    from ccf_plugin.measuring.subject import load_subject

    named = [options.pair_of(pair, key="pairs") for pair in pairs or ()]
    if named and settings.attack.clean:
        raise InputError(Fault("", "{clean} or {pairs}", "both", "all pairs are measured on clean images anyway"))
    endings = endings_of(formats, out)
    subject = load_subject(model, settings)
    chosen = {"features": count, "pairs": [list(pair) for pair in named], "strongest": strongest}
    conditions = {**subject.provenance(), **chosen}
    name = f"{subject.loaded.name}-ablation"
    place = None if as_json and out is None else Place(out, name, conditions, (".json", *endings), force=force)
    console = open_console(stderr=as_json)
    ablation = run_ablation(
        subject,
        count=count,
        pairs=named,
        strongest=strongest,
        seed=settings.attack.seed,
        progress=lambda doing: progress_on(console, doing),
    )
    described = {**ablation.to_json(), "provenance": conditions}
    title = f"{subject.loaded.name}: margins of pairs of classes without some features"
    written: list[Path] = []
    if place is not None:
        figure = draw_ablation(ablation, title)
        contents = {ending: figure_bytes(figure, ending) for ending in endings}
        written = place.write({".json": json_bytes(described), **contents})
    if as_json:
        print_json(described)
        return
    _print(console, ablation)
    print_written(console, written)


def _print(console: Console, ablation: Ablation) -> None:
    from ccf_plugin.measuring.ablation_result import REMOVED
    from ccf_plugin.threat import threat_sentence

    data, most = ablation.data, f"{ablation.count} of {counted(ablation.features, 'feature')} removed"
    pairs = counted(len(ablation.pairs), "pair")
    if ablation.left_out:
        pairs += f" (of {len(ablation.pairs) + ablation.left_out})"
    images = counted(data["count"], "clean image")
    table = _table(f"{most} before {ablation.head}, {pairs}, {images} of {data['name']}", "p over pairs")
    for kind in REMOVED:
        tests = "" if kind == "shared" else _p(ablation.over_pairs[kind])
        table.add_row(REMOVED[kind], *_changes(ablation.mean_change(kind)), tests)
    console.print(table)
    ranks = {name: "none" if value != value else f"{value:.2f}" for name, value in ablation.spearman.items()}  # NaN
    print_line(
        console,
        f"Spearman's ρ of C with the margin that goes with the shared features: {ranks['rest']} against the rest, "
        f"{ranks['between']} between the two.",
    )
    console.print(_pairs_table(ablation))
    for pair in ablation.attacked:
        console.print(_attacked_table(ablation, pair, threat_sentence(ablation.threat)))
    print_line(
        console,
        "p: do the shared features change the margin (against the rest; between the two) as much as these? Wilcoxon's "
        "signed-rank test, two-sided, with Holm's correction.",
    )


def _table(title: str, tests: str) -> Table:
    from rich.table import Table

    margins = "margin against the rest", "between the two"
    accuracies = "pair found among all", "right of the two", "accuracy"
    return Table("removed", *margins, *accuracies, tests, title=title)


def _changes(change: Figures) -> list[str]:
    points = (change.rest_accuracy, change.between_accuracy, change.accuracy)
    return [f"{change.rest:+.2f}", f"{change.between:+.2f}", *(f"{value * 100:+.1f} points" for value in points)]


def _p(tests: dict[str, float]) -> str:
    return "; ".join(f"{value:.1g}" for value in tests.values())


def _pairs_table(ablation: Ablation) -> Table:
    from rich.table import Table

    table = Table(
        "strongest pairs", "C", "images", "against the rest", "between the two", "p against matched", box=None
    )
    for pair in ablation.pairs[:_LISTED]:
        change = pair.removals["shared"].change
        names = " – ".join(ablation.classes[index] for index in pair.pair)
        figures = (f"{pair.correlation:.2f}", str(pair.images), f"{change.rest:+.2f}", f"{change.between:+.2f}")
        table.add_row(names, *figures, _p(pair.removals["matched"].p))
    return table


def _attacked_table(ablation: Ablation, pair: PairAblation, threat: str) -> Table:
    from ccf_plugin.measuring.ablation_result import REMOVED

    names = " – ".join(ablation.classes[index] for index in pair.pair)
    table = _table(
        f"{names} under attack ({threat}), {counted(pair.images, 'image')}, C = {pair.correlation:.2f}", "p over images"
    )
    before = pair.intact
    accuracies = (f"{value:.1%}" for value in (before.rest_accuracy, before.between_accuracy, before.accuracy))
    table.add_row("nothing", f"{before.rest:.2f}", f"{before.between:.2f}", *accuracies, "")
    for kind, removal in pair.removals.items():
        table.add_row(REMOVED[kind], *_changes(removal.change), _p(removal.p))
    return table
