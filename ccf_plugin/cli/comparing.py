"""compare, saliency. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import (
    check_names,
    open_console,
    print_result,
    print_written,
    progress_on,
    quiet_libraries,
    refuse_several_processes,
)
from ccf_plugin.cli.help import DATA, MODEL, OUTPUT, PROBE
from ccf_plugin.cli.places import Place, endings_of
from ccf_plugin.errors import counted
from ccf_plugin.measuring.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table as RichTable

    from ccf_plugin.measuring.compare import Comparison, Pair, Side
    from ccf_plugin.measuring.evaluate import MeasuredSplit
    from ccf_plugin.measuring.saliency import Saliency
    from ccf_plugin.tables import Table

First = Annotated[
    str, typer.Argument(metavar="A", help="A model (as for `ccf probe`), a checkpoint, a run, or a saved result.")
]
Second = Annotated[
    str | None,
    typer.Argument(metavar="[B]", help="The same. Left out: A is a run, and its best checkpoint meets its last."),
]
Checkpoints = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        rich_help_panel=MODEL,
        help="Weights of a python: model; once for each, in their order.",
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
        typer.Option(
            metavar="N",
            rich_help_panel=PROBE,
            help="How often to draw the bands that hold for all pairs of classes at once. Default: 1000.",
        ),
    ] = None,
    vmin: options.VMin = None,
    vmax: options.VMax = None,
    difference_vmin: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="The value at the lower end of the difference's colours, which go from red to blue where it is below "
            "0, and are the paper's at 0. Default: minus --difference-vmax.",
        ),
    ] = None,
    difference_vmax: Annotated[
        float, typer.Option(rich_help_panel=OUTPUT, help="The value of the difference's darkest colour.")
    ] = 0.5,
    pairs: Annotated[int, typer.Option(min=1, rich_help_panel=OUTPUT, help="How many pairs of classes to name.")] = 5,
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

    from ccf_plugin.drawing import colour_scale, figure_bytes
    from ccf_plugin.errors import Fault, InputError
    from ccf_plugin.files import PICTURES, json_bytes
    from ccf_plugin.measuring.compare import compare as compare_results
    from ccf_plugin.measuring.compare import comparison_provenance, load_sides, name_sides
    from ccf_plugin.measuring.pictures import draw_comparison
    from ccf_plugin.measuring.subject import Subject
    from ccf_plugin.tables import FORMS

    if bootstrap is not None and bootstrap < 2:
        raise InputError(Fault("bootstrap", "2 or more", str(bootstrap)))
    names = name_sides(a, b)
    sides = load_sides(*names, settings, checkpoint or [])
    difference_scale = (-difference_vmax if difference_vmin is None else difference_vmin, difference_vmax)
    for scale in ((vmin, vmax), difference_scale):
        colour_scale(_number_of_classes(sides[0]), *scale)  # says what is wrong with it before anything is measured
    titles = _titles(sides, names)
    endings = endings_of(formats, out, [*PICTURES, *FORMS])
    place = None
    if out is not None or not as_json:
        suffixes = [".json", *endings]
        for side, letter in zip(sides, "ab", strict=True):
            suffixes += [f"-{letter}.json", f"-{letter}.npz"] if isinstance(side, Subject) else []
        name = f"{titles[0]}-against-{titles[1]}-{_attack_part(sides[0])}"
        place = Place(out, name, comparison_provenance(*sides, bootstrap), suffixes, force=force)
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
        print_result(json.dumps(comparison.to_json(), allow_nan=False))
        return
    console.print(table.rich())
    for heading, moved in (("lost most", comparison.lost(pairs)), ("gained most", comparison.gained(pairs))):
        console.print(_pairs_table(heading, moved, titles, comparison.bands(moved)))
    if comparison.paired is not None:
        bands = comparison.paired.bands
        number = f"{bands.surviving_pairs} of {counted(bands.pairs, 'pair')} of classes"
        verb = "differs" if bands.surviving_pairs == 1 else "differ"
        console.print(
            f"{number} {verb}: their bands, which hold together at {bands.level:.0%}, leave out 0.",
            highlight=False,
            soft_wrap=True,
        )
    print_written(console, written)


def _attack_part(side: Side) -> str:
    """The attack in a file's name."""
    from ccf_plugin.measuring.subject import Subject
    from ccf_plugin.threat import threat_file_part

    return threat_file_part(side.describe_attack() if isinstance(side, Subject) else side.threat)


def _titles(sides: tuple[Side, Side], names: tuple[str, str]) -> tuple[str, str]:
    """What the two are called in tables and pictures."""
    first, second = _title(sides[0], names[0]), _title(sides[1], names[1])
    return (first, second) if first != second else (f"{first}-a", f"{second}-b")


def _title(side: Side, name: str) -> str:
    from ccf_plugin.measuring.subject import Subject

    if isinstance(side, Subject):
        title = side.loaded.name  # a run's best weights have its name alone
        return f"{title}-best" if Path(name).stem.startswith("best") and not title.endswith("-raw") else title
    return Path(name).name.removesuffix(".json").removesuffix(".npz")


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

    robust = "RA" if first.threat is None else f"RA ({threat_label(first.threat)})"
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


@options.with_settings("checkpoint", "centre")
def saliency(
    best: Annotated[str, typer.Argument(metavar="BEST", help="A model (as for `ccf probe`), a checkpoint or a run.")],
    last: Annotated[
        str | None,
        typer.Argument(metavar="[LAST]", help="The same. Left out: BEST is a run, and LAST its last checkpoint."),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="CLASS", rich_help_panel=DATA, help="Only images of this class, by name or number."
        ),
    ] = None,
    indices: Annotated[
        str | None,
        typer.Option(
            metavar="I,J,…", rich_help_panel=DATA, help="These test images, whatever the models make of them."
        ),
    ] = None,
    count: Annotated[int, typer.Option(rich_help_panel=DATA, help="How many images.")] = 6,
    pair: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS,CLASS",
            rich_help_panel=PROBE,
            help="Also the features of BEST that carry most of these classes' C[i, j].",
        ),
    ] = None,
    features: Annotated[int, typer.Option(min=1, rich_help_panel=PROBE, help="With --pair: how many features.")] = 5,
    layer: Annotated[
        str | None,
        typer.Option(rich_help_panel=MODEL, help="The layer to explain. Default: the last map or grid of tokens."),
    ] = None,
    *,
    settings: Settings,
    checkpoint: Checkpoints = None,
    out: Annotated[
        Path | None,
        options.out_option("Where <out>.json and the picture go. Default: results/<BEST>-<LAST>-saliency-<attack>"),
    ] = None,
    formats: options.Formats = None,
    force: options.Force = False,
) -> None:
    """Show where BEST and LAST look (Grad-CAM) on adversarial examples that BEST classifies right and LAST wrong."""
    quiet_libraries()
    refuse_several_processes("saliency", "start it with python or ccf alone")
    if last is not None:
        check_names(best, last)

    from ccf_plugin.drawing import figure_bytes
    from ccf_plugin.errors import Fault, InputError
    from ccf_plugin.files import json_bytes
    from ccf_plugin.measuring.compare import load_sides, name_sides
    from ccf_plugin.measuring.evaluate import versions
    from ccf_plugin.measuring.names import is_result
    from ccf_plugin.measuring.pictures import draw_saliency, draw_shared_features
    from ccf_plugin.measuring.provenance import with_command
    from ccf_plugin.measuring.saliency import saliency as find_saliency
    from ccf_plugin.measuring.subject import Subject

    if settings.probe.head is not None and pair is None:
        expected = "{head} beside {pair}, whose features are its"
        raise InputError(Fault("", expected, "it alone", "name a {pair}"))
    chosen, chosen_pair = None if indices is None else _numbers(indices), None if pair is None else pair_of(pair)
    names = name_sides(best, last)
    results = [name for name in names if is_result(name)]
    if results:
        raise InputError(f"expected two models, found {results[0]!r}, a saved result, which has no weights")
    first, second = load_sides(*names, settings, checkpoint or [])
    assert isinstance(first, Subject) and isinstance(second, Subject)  # noqa: PT018, S101  (neither is a result)
    titles = _titles((first, second), names)
    choices = {
        "count": count,
        "class": class_name,
        "indices": chosen,
        "pair": chosen_pair,
        "features": features,
        "layer": layer,
    }
    sides = {"first": first.provenance(), "second": second.provenance()}
    provenance = with_command({**sides, **choices, "features": None if pair is None else features})
    endings = endings_of(formats, out)
    pictures = ["", "-features"] if pair is not None else [""]
    suffixes = [".json", *(name + ending for name in pictures for ending in endings)]
    name = f"{titles[0]}-{titles[1]}-saliency-{_attack_part(first)}"
    place = Place(out, name, provenance, suffixes, force=force)
    console = open_console()
    result = find_saliency(
        first,
        second,
        count=count,
        class_name=class_name,
        indices=chosen,
        pair=chosen_pair,
        features=features,
        layer=layer,
        progress=lambda doing: progress_on(console, doing),
    )
    figures = {"": draw_saliency(result, titles)}
    if result.shared is not None:
        figures["-features"] = draw_shared_features(result.shared, first.data, titles[0])
    for side in {side.loaded.spec: side for side in (first, second)}.values():
        side.warn()
    contents = {".json": json_bytes({**result.to_json(), "provenance": provenance, "versions": versions()})}
    contents |= {name + ending: figure_bytes(figure, ending) for name, figure in figures.items() for ending in endings}
    written = place.write(contents)
    for table in _saliency_tables(result, first.data, titles):
        console.print(table)
    print_written(console, written)


def _saliency_tables(result: Saliency, data: MeasuredSplit, titles: tuple[str, str]) -> list[RichTable]:
    from rich.table import Table as RichTable

    table = RichTable("image", "class", *(f"{title} says" for title in titles), title=result.attack)
    for example in result.examples:
        labels = (example.label, example.best.predicted, example.last.predicted)
        table.add_row(str(example.index), *(data.classes[label] for label in labels))
    if result.shared is None:
        return [table]
    share = f"share of C = {result.shared.correlation:.2f}"
    features = RichTable(
        "feature", share, "images that excite it most (class, number)", title=result.shared.heading(data.classes)
    )
    for feature in result.shared.features:
        images = (f"{data.classes[int(data.split.labels[index])]} {index}" for index in feature.images[:5])
        features.add_row(str(feature.feature), f"{feature.share:+.3f}", ", ".join(images))
    return [table, features]


def _numbers(text: str) -> list[int]:
    from ccf_plugin.errors import Fault, InputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(Fault("indices", "numbers such as 3,17,20", repr(text))) from None


def pair_of(text: str, *, key: str = "pair") -> tuple[str, str]:
    """The two classes that an option names; its parameter is ``key``."""
    from ccf_plugin.errors import Fault, InputError

    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise InputError(Fault(key, "two classes such as cat,dog (or their numbers)", repr(text)))
    return parts[0], parts[1]
