"""probe. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ccf_plugin.cli import options
from ccf_plugin.cli.console import (
    check_names,
    leave_job,
    open_console,
    print_json,
    print_written,
    progress_on,
    quiet_libraries,
    with_interval,
)
from ccf_plugin.cli.help import PROBE
from ccf_plugin.cli.places import Place, endings_of
from ccf_plugin.job import is_first_process
from ccf_plugin.measuring.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from ccf_plugin.measuring.groups import GroupEvidence
    from ccf_plugin.probe.result import CrossClassResult


@options.with_settings()
def probe(
    model: options.Model,
    *,
    settings: Settings,
    instances: Annotated[bool, options.option(PROBE, "Measure I-CAS too.", "--instances")] = False,
    seeds: Annotated[
        int,
        options.option(
            PROBE,
            "Attack with N seeds, from --seed on, and print mean and standard deviation; all else is the first's.",
            min=1,
            metavar="N",
        ),
    ] = 1,
    groups: Annotated[
        str | None,
        options.option(
            PROBE,
            "Whether C is larger within groups of classes than between: 'cat,dog;ship,truck' (all classes), a "
            "file, cifar10, cifar100, or cluster (found from C). Also whether C goes with confusions.",
            metavar="GROUPS",
        ),
    ] = None,
    vmin: options.VMin = None,
    vmax: options.VMax = None,
    out: Annotated[
        Path | None,
        options.out_option("Where <out>.npz, .json and the picture go. Default: results/<model>-<attack or clean>"),
    ] = None,
    formats: options.Formats = None,
    width: options.Width = 6.4,
    force: options.Force = False,
    as_json: Annotated[bool, options.json_option("Print the result's JSON and nothing else.")] = False,
) -> None:
    """Measure the cross-class features of MODEL on adversarial examples of the data's test split."""
    quiet_libraries()
    check_names(model, checkpoint=settings.weights.checkpoint)

    from ccf_plugin.drawing import colour_scale, figure_bytes, figure_of, square_axes
    from ccf_plugin.files import json_bytes
    from ccf_plugin.measuring.groups import check_groups, group_evidence
    from ccf_plugin.measuring.subject import load_subject, measure_with_seeds
    from ccf_plugin.threat import threat_file_part

    endings = endings_of(formats, out)
    subject = load_subject(model, settings)
    colour_scale(len(subject.data.classes), vmin, vmax)  # says what is wrong with it before anything is measured
    if groups is not None:
        check_groups(groups, subject.data.classes)  # likewise
    conditions = subject.provenance(instances=instances)
    conditions |= {name: value for name, value in {"seeds": seeds, "groups": groups}.items() if value not in (1, None)}
    name, suffixes = f"{subject.loaded.name}-{threat_file_part(subject.describe_attack())}", (".json", ".npz", *endings)
    place = None if as_json and out is None else Place(out, name, conditions, suffixes, force=force)
    console = open_console(stderr=as_json)
    result = measure_with_seeds(
        subject,
        seeds,
        instances=instances,
        progress=lambda seed: progress_on(console, "measuring" if seeds == 1 else f"measuring, seed {seed}"),
    )
    result = replace(result, provenance=conditions)
    if is_first_process():
        evidence = None if groups is None else group_evidence(result, groups)
        described = result.to_json() | ({} if evidence is None else {"groups": evidence.to_json()})
        written: list[Path] = []
        if place is not None:
            figure = figure_of(result.plot(square_axes(width), vmin=vmin, vmax=vmax))
            contents = {ending: figure_bytes(figure, ending) for ending in endings}
            written = place.write({**result.contents(), ".json": json_bytes(described), **contents})
        if as_json:
            print_json(described)
        else:
            _print_result(console, result, evidence)
            print_written(console, written)
    leave_job()


# Mean and standard deviation over seeds, by figure.
_SEED_FIGURES = {"robust_accuracy": ("RA", ".1%"), "cas": ("CAS", ".2f"), "instance_cas": ("I-CAS", ".2f")}


def _print_result(console: Console, result: CrossClassResult, groups: GroupEvidence | None) -> None:
    from rich.table import Table

    from ccf_plugin.errors import counted
    from ccf_plugin.probe.presentation import PERMUTED, described_data
    from ccf_plugin.threat import threat_label, threat_sentence

    head = result.head
    threat = result.threat
    table = Table(show_header=False)
    table.add_row("model", result.model)
    if result.data is not None:
        table.add_row("data", described_data(result.data))
    if head is not None:
        table.add_row(
            "head",
            f"{head.name} ({head.kind}), {head.classes} classes × {counted(head.features, 'feature')}",
        )
        if head.history:
            table.add_row("heads before", "\n".join(head.history))
    passes = "" if threat is None else f", seed {threat['seed']}, {threat['precision']}"
    table.add_row("attack", f"{threat_sentence(threat)}{passes}")
    if result.clean_accuracy is not None:
        table.add_row("clean accuracy", with_interval(result.clean_accuracy, result.interval("clean_accuracy")))
    if result.robust_accuracy is not None:
        table.add_row(f"RA ({threat_label(threat)})", with_interval(result.robust_accuracy, result.interval()))
    present = len(result.matrix) - len(result.missing_classes)
    table.add_row("CAS", f"{with_interval(result.cas, result.interval('cas'), '.2f')} of {present * (present - 1)}")
    null = result.null
    table.add_row(
        "CAS by chance",
        f"{null.cas_mean:.2f} ± {null.cas_sd:.2f}, {PERMUTED}: excess "
        f"{with_interval(result.cas_excess, result.interval('cas_excess'), '+.2f')}, p = {null.cas_p:.2g}",
    )
    if result.gauge_note:
        table.add_row("mean row of W", f"{result.gauge_note} (--centre)")
    if result.instance_cas is not None:
        interval = result.interval("instance_cas")
        table.add_row("I-CAS", with_interval(result.instance_cas, interval, ".2f"))
    if result.average_instance_cas is not None:
        table.add_row("  over all pairs", f"{result.average_instance_cas:.2f}")
    for name, (mean, deviation) in result.spread.items():
        label, form = _SEED_FIGURES[name]
        table.add_row(f"{label}, {len(result.repeats)} seeds", f"{mean:{form}} ± {deviation:{form}}")
    table.add_row("strongest pairs", "\n".join(f"{a} – {b}  {value:.2f}" for a, b, value in result.top_pairs()))
    if result.left_out:
        table.add_row("left out", f"{result.left_out}: NaN in C, not in CAS")
    for row in () if groups is None else groups.rows():
        table.add_row(*row)
    console.print(table)
