"""compare. Heavy imports happen inside the command, so that --help is instant."""

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
from ccf_plugin.cli.help import MODEL, OUTPUT, PROBE
from ccf_plugin.cli.places import Place, endings_of
from ccf_plugin.errors import counted
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.runs import layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table as RichTable

    from ccf_plugin.measuring.compare import Comparison, Pair, Side
    from ccf_plugin.tables import Table

First = Annotated[str, typer.Argument(metavar="A", help="A model, a run too, as for `ccf probe`; or a saved result.")]
Second = Annotated[
    str | None,
    typer.Argument(metavar="[B]", help="The same. Left out: A is a run, and its best checkpoint meets its last."),
]
Checkpoints = Annotated[
    list[Path] | None,
    options.option(
        MODEL,
        "Weights of your own, as for ccf probe; once for each model that takes them, in their order.",
        "--checkpoint",
        metavar="FILE",
    ),
]


@options.with_settings("checkpoint")
def compare(
    a: First,
    b: Second = None,
    *,
    settings: Settings,
    bootstrap: Annotated[
        int | None,
        options.option(
            PROBE, "How often to draw the bands that hold for all pairs of classes at once. Default: 1000.", metavar="N"
        ),
    ] = None,
    vmin: options.VMin = None,
    vmax: options.VMax = None,
    difference_vmin: Annotated[
        float | None,
        options.option(
            OUTPUT,
            "The value at the lower end of the difference's colours, which go from red to blue where it is below "
            "0, and are the paper's at 0. Default: minus --difference-vmax.",
        ),
    ] = None,
    difference_vmax: Annotated[float, options.option(OUTPUT, "The value of the difference's darkest colour.")] = 0.5,
    pairs: Annotated[int, options.option(OUTPUT, "How many pairs of classes to name.", min=1)] = 5,
    checkpoint: Checkpoints = None,
    out: Annotated[
        Path | None,
        options.out_option("Where <out>.json and the picture go. Default: results/<A>-against-<B>-<attack or clean>"),
    ] = None,
    formats: options.FormatsWithTable = None,
    width: options.Width = 18.0,
    force: options.Force = False,
    as_json: Annotated[bool, options.json_option("Print the comparison's JSON and nothing else.")] = False,
) -> None:
    """Compare the cross-class features of A and B under one attack on the same images: what B has lost."""
    quiet_libraries()
    refuse_several_processes("compare", "measure each model with ccf probe, and compare the results")
    if b is not None:
        check_names(a, b)

    import numpy as np

    from ccf_plugin.drawing import colour_scale, figure_bytes
    from ccf_plugin.errors import Fault, InputError
    from ccf_plugin.files import PICTURES, json_bytes
    from ccf_plugin.measuring.compare import compare as compare_results
    from ccf_plugin.measuring.compare import comparison_provenance, load_sides, name_sides
    from ccf_plugin.measuring.pictures import draw_comparison
    from ccf_plugin.measuring.subject import Subject
    from ccf_plugin.probe.presentation import PERMUTED
    from ccf_plugin.tables import FORMS

    if bootstrap is not None and bootstrap < 2:
        raise InputError(Fault("bootstrap", "2 or more", str(bootstrap)))
    names = name_sides(a, b)
    sides = load_sides(*names, settings, checkpoint or [])
    difference_scale = (-difference_vmax if difference_vmin is None else difference_vmin, difference_vmax)
    for scale in ((vmin, vmax), difference_scale):
        colour_scale(_number_of_classes(sides[0]), *scale)  # says what is wrong with it before anything is measured
    titles = titles_of(sides, names)
    endings = endings_of(formats, out, [*PICTURES, *FORMS])
    suffixes = [".json", *endings]
    for side, letter in zip(sides, "ab", strict=True):
        suffixes += [f"-{letter}.json", f"-{letter}.npz"] if isinstance(side, Subject) else []
    name = f"{titles[0]}-against-{titles[1]}-{attack_part(sides[0])}"
    conditions = comparison_provenance(*sides, bootstrap)
    place = None if as_json and out is None else Place(out, name, conditions, suffixes, force=force)
    console = open_console(stderr=as_json)
    results = [
        side.measure(instances=True, progress=progress_on(console, f"measuring {title}"))
        if isinstance(side, Subject)
        else side
        for side, title in zip(sides, titles, strict=True)
    ]
    comparison = compare_results(results[0], results[1], bootstrap=bootstrap)
    table = _table(comparison, titles)
    written: list[Path] = []
    if place is not None:
        figure = draw_comparison(
            comparison, titles=titles, vmin=vmin, vmax=vmax, difference_scale=difference_scale, width=width
        )
        contents = {".json": json_bytes(comparison.to_json())}
        contents |= {
            ending: FORMS[ending](table) if ending in FORMS else figure_bytes(figure, ending) for ending in endings
        }
        for side, result, letter in zip(sides, results, "ab", strict=True):
            if isinstance(side, Subject):
                contents |= {f"-{letter}{ending}": content for ending, content in result.contents().items()}
        written = place.write(contents)
    if as_json:
        print_json(comparison.to_json())
        return
    console.print(table.rich())
    if comparison.differences["cas_excess"] is not None:
        print_line(console, f"By chance: {PERMUTED}.")
    for heading, moved in (("lost most", comparison.lost(pairs)), ("gained most", comparison.gained(pairs))):
        console.print(_pairs_table(heading, moved, titles, comparison.bands(moved)))
    if uncounted := comparison.uncounted_pairs:
        print_line(console, f"C of {uncounted} is negative in both: CAS and these tables leave them out.")
    if comparison.paired is not None:
        bands = comparison.paired.bands
        number = f"{bands.surviving_pairs} of {counted(bands.pairs, 'pair')} of classes"
        verb = "differs" if bands.surviving_pairs == 1 else "differ"
        negative = int(np.triu(bands.survives & comparison.uncounted, 1).sum())
        verb += f" ({negative} of them negative in both)" if negative else ""
        print_line(console, f"{number} {verb}: their bands, which hold together at {bands.level:.0%}, leave out 0.")
    print_written(console, written)


def attack_part(side: Side) -> str:
    """The attack in a file's name."""
    from ccf_plugin.measuring.subject import Subject
    from ccf_plugin.threat import threat_file_part

    return threat_file_part(side.describe_attack() if isinstance(side, Subject) else side.threat)


def titles_of(sides: tuple[Side, Side], names: tuple[str, str]) -> tuple[str, str]:
    """What the two are called in tables and pictures."""
    first, second = _title(sides[0], names[0]), _title(sides[1], names[1])
    return (first, second) if first != second else (f"{first}-a", f"{second}-b")


def _title(side: Side, name: str) -> str:
    from ccf_plugin.measuring.subject import Subject

    if isinstance(side, Subject):
        title = side.loaded.name  # a run's best weights have its name alone
        return f"{title}-best" if Path(name).stem.startswith("best") and not title.endswith("-raw") else title
    path = Path(name).absolute()
    stem = path.name.removesuffix(".json").removesuffix(".npz")
    return f"{path.parent.parent.name}-{stem}" if path.parent.name == layout.PROBE else stem  # every run has a "best"


def _number_of_classes(side: Side) -> int:
    from ccf_plugin.measuring.subject import Subject

    return len(side.data.classes) if isinstance(side, Subject) else len(side.matrix)


def _table(comparison: Comparison, titles: tuple[str, str]) -> Table:
    from ccf_plugin.tables import Cell, Table, Value
    from ccf_plugin.threat import threat_label

    first, second, paired = comparison.first, comparison.second, comparison.paired
    rows: list[list[Cell]] = []

    def add(label: str, name: str, form: str, difference_form: str | Callable[[float], str]) -> None:
        difference = comparison.differences[name]
        if difference is not None:
            figures = (Value(getattr(side, name), form) for side in (first, second))
            rows.append([label, *figures, Value(difference, difference_form)])

    robust = f"RA ({threat_label(first.robust_threat)})" if first.robust_threat else "RA"
    accuracies = {"clean_accuracy": "clean accuracy", "robust_accuracy": robust, "accuracy": "accuracy"}
    for name, label in accuracies.items():
        add(label, name, ".1%", lambda difference: f"{difference * 100:+.1f} points")
        if comparison.differences[name] is not None:
            rows.append(["  95% interval", *_accuracy_intervals(comparison, name)])
    for label, name, intervals in (
        ("CAS", "cas", None if paired is None else paired.cas),
        ("CAS beyond chance", "cas_excess", None if paired is None else paired.excess),
        ("I-CAS", "instance_cas", None if paired is None else paired.instance_cas),
    ):
        add(label, name, ".2f", "+.2f")
        if intervals is not None:
            rows.append(["  95% interval", *_spans(*intervals)])
    return Table(("", *titles, "first − second"), rows)


def _accuracy_intervals(comparison: Comparison, name: str) -> list[str]:
    """Each model's interval of an accuracy, and that of the difference where both have records of the images."""
    sides = (comparison.first.interval(name), comparison.second.interval(name))
    test = comparison.accuracy_tests.get(name)
    paired = ""
    if test is not None:
        low, high = (100 * bound for bound in test.interval)
        paired = f"{low:+.1f} to {high:+.1f}, p = {test.p:.2g} (McNemar)"
    return [*("" if side is None else f"{side[0]:.1%} to {side[1]:.1%}" for side in sides), paired]


def _spans(*intervals: tuple[float, float]) -> list[str]:
    return [f"{low:.2f} to {high:.2f}" for low, high in intervals]


def _pairs_table(
    heading: str, pairs: list[Pair], titles: tuple[str, str], bands: list[tuple[float, float]] | None
) -> RichTable:
    """By what CAS loses or gains, which is the difference of positive parts; a band is of C itself."""
    from rich.table import Table as RichTable

    columns = [f"pairs that {heading}", *titles, "of CAS, first − second"]
    table = RichTable(*columns, *([] if bands is None else ["95% band of C, first − second", "differs"]), box=None)
    for place, (name, other_name, first, second) in enumerate(pairs):
        cells = [f"{name} – {other_name}", f"{first:.2f}", f"{second:.2f}", f"{max(first, 0) - max(second, 0):+.2f}"]
        if bands is not None:
            low, high = bands[place]
            cells += [f"{low:+.2f} to {high:+.2f}", "no" if low <= 0 <= high else "yes"]
        table.add_row(*cells)
    if not pairs:
        table.add_row("none", *[""] * (len(table.columns) - 1))
    return table
