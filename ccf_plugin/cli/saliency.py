"""saliency. Heavy imports happen inside the command, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.comparing import Checkpoints, attack_part, titles_of
from ccf_plugin.cli.console import (
    check_names,
    open_console,
    print_written,
    progress_on,
    quiet_libraries,
    refuse_several_processes,
)
from ccf_plugin.cli.help import DATA, MODEL, PROBE
from ccf_plugin.cli.places import Place, endings_of
from ccf_plugin.measuring.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

    from ccf_plugin.measuring.evaluate import MeasuredSplit
    from ccf_plugin.measuring.saliency import Saliency


@options.with_settings("checkpoint", "centre")
def saliency(
    best: Annotated[str, typer.Argument(metavar="BEST", help="A model, a run too, as for `ccf probe`.")],
    last: Annotated[
        str | None,
        typer.Argument(metavar="[LAST]", help="The same. Left out: BEST is a run, and LAST its last checkpoint."),
    ] = None,
    class_name: Annotated[
        str | None, options.option(DATA, "Only images of this class, by name or number.", "--class", metavar="CLASS")
    ] = None,
    indices: Annotated[
        str | None, options.option(DATA, "These test images, whatever the models make of them.", metavar="I,J,…")
    ] = None,
    count: Annotated[int, options.option(DATA, "How many images.")] = 6,
    pair: Annotated[
        str | None,
        options.option(
            PROBE, "Also the features of BEST that carry most of these classes' C[i, j].", metavar="CLASS,CLASS"
        ),
    ] = None,
    features: Annotated[int, options.option(PROBE, "With --pair: how many features.", min=1)] = 5,
    layer: Annotated[
        str | None, options.option(MODEL, "The layer to explain. Default: the last map or grid of tokens.")
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
    chosen = None if indices is None else _numbers(indices)
    chosen_pair = None if pair is None else options.pair_of(pair)
    names = name_sides(best, last)
    results = [name for name in names if is_result(name)]
    if results:
        raise InputError(f"expected two models, found {results[0]!r}, a saved result, which has no weights")
    first, second = load_sides(*names, settings, checkpoint or [])
    assert isinstance(first, Subject) and isinstance(second, Subject)  # noqa: PT018, S101  (neither is a result)
    titles = titles_of((first, second), names)
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
    name = f"{titles[0]}-{titles[1]}-saliency-{attack_part(first)}"
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


def _saliency_tables(result: Saliency, data: MeasuredSplit, titles: tuple[str, str]) -> list[Table]:
    from rich.table import Table

    table = Table("image", "class", *(f"{title} says" for title in titles), title=result.attack)
    for example in result.examples:
        labels = (example.label, example.best.predicted, example.last.predicted)
        table.add_row(str(example.index), *(data.classes[label] for label in labels))
    if result.shared is None:
        return [table]
    share = f"share of C = {result.shared.correlation:.2f}"
    features = Table(
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
