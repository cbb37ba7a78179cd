"""evaluate, leaderboard. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import open_console, progress_on, quiet_libraries, refuse_several_processes
from ccf_plugin.measure.choices import Choices

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ccf_plugin.measure.leaderboard import Row
    from ccf_plugin.measure.robustness import Evaluation


@options.with_choices("clean", "attack", "steps", "head", "output")
def evaluate(
    model: options.Model,
    *,
    choices: Choices,
    steps: Annotated[list[int] | None, typer.Option(help="Of PGD; may be repeated. Default: 20 and 100.")] = None,
    autoattack: Annotated[bool, typer.Option("--autoattack", help="AutoAttack too: slow, and what to quote.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The JSON to write, and to continue. Default: results/<model>-evaluation-<norm>-<eps>."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew what the JSON holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation's JSON and nothing else.")] = False,
) -> None:
    """Measure how robust MODEL is: clean accuracy, PGD, AutoAttack. Run again, it continues where it was stopped."""
    quiet_libraries()
    refuse_several_processes("evaluate", "start it with python or ccf alone")

    from ccf_plugin.files import made_folder
    from ccf_plugin.measure.robustness import evaluate as run_evaluation
    from ccf_plugin.measure.subject import load_subject

    subject = load_subject(model, choices)
    threat = subject.threat
    assert threat is not None  # noqa: S101  (only clean choices have none)
    stem = options.stem(out, f"{subject.loaded.name}-evaluation-{threat.norm}-{threat.eps:.4g}")
    file = stem.with_name(f"{stem.name}.json")
    console = open_console(stderr=as_json)
    with made_folder(file.parent):
        found = run_evaluation(
            subject,
            file,
            steps=steps or (20, 100),
            autoattack=autoattack,
            restart=restart,
            progress=lambda name: progress_on(console, f"{name}, {len(subject.test)} images"),
        )
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))  # noqa: T201
        return
    _print_evaluation(console, found)
    console.print(f"Wrote {file}", highlight=False, soft_wrap=True)


def _print_evaluation(console: Console, found: Evaluation) -> None:
    from rich.table import Table

    from ccf_plugin.measure.robustness import MASKING_MARGIN
    from ccf_plugin.threat import show_pixels

    threat, data = found.conditions["threat"], found.conditions["data"]
    table = Table(show_header=False)
    table.add_row("model", found.conditions["model"])
    table.add_row("data", f"{found.images} test images of {data['name']}")
    table.add_row("threat", f"{threat['norm']}, eps {show_pixels(threat['eps'])}")
    for name, accuracy in found.accuracies.items():
        table.add_row(f"{name} accuracy", f"{accuracy:.1%}")
    console.print(table)
    margin = f"{MASKING_MARGIN * 100:.0f} points"
    if found.masking_gap is not None:
        gap = f"The strongest PGD leaves {found.masking_gap * 100:.1f} points more than AutoAttack"
        if found.may_mask_gradients:
            console.print(
                f"Possible gradient masking: {gap[0].lower()}{gap[1:]}; over {margin} is far.", highlight=False
            )
        else:
            console.print(f"{gap}; over {margin} would suggest gradient masking.", highlight=False)
    for note in found.notes:
        console.print(f"AutoAttack: {note}", highlight=False, soft_wrap=True)


@options.with_choices("clean", "attack", "norm", "checkpoint", "pretrained")
def leaderboard(
    dataset: Annotated[str, typer.Option(help="RobustBench's: cifar10, cifar100 or imagenet.")] = "cifar10",
    threat: Annotated[str, typer.Option(help="RobustBench's: Linf or L2.")] = "Linf",
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This model; may be repeated.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Only models whose files lie in --model-dir.")] = False,
    *,
    choices: Choices,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write <out>.csv and .png. Default: results/leaderboard-<dataset>-<threat>."),
    ] = None,
) -> None:
    """Probe RobustBench's models: CAS and I-CAS beside robust accuracy. Run again, it goes on with those missing."""
    quiet_libraries()
    refuse_several_processes("leaderboard", "start one for each GPU with --only and its own --out")

    from ccf_plugin.drawing import save_figure
    from ccf_plugin.files import made_folder
    from ccf_plugin.measure.leaderboard import measure_leaderboard, rank_correlation, read_leaderboard
    from ccf_plugin.measure.pictures import draw_leaderboard

    stem = options.stem(out, f"leaderboard-{dataset}-{threat}")
    file = stem.with_name(f"{stem.name}.csv")
    console = open_console()
    measured = measure_leaderboard(
        dataset,
        threat,
        choices,
        file,
        only=only or [],
        local=local,
        progress=lambda name: progress_on(console, name),
    )
    with made_folder(file.parent):
        for row, left in measured:
            found = f"RA {row.robust_accuracy:.1%}, CAS {row.cas:.2f}" if row.cas is not None else row.unavailable
            console.print(f"{row.model}: {found} ({left} to go)", highlight=False, soft_wrap=True)
        rows = read_leaderboard(file) if file.exists() else []
        had = sorted((row for row in rows if row.cas is not None), key=lambda row: -(row.robust_accuracy or 0.0))
        if had:
            console.print(_leaderboard_table(had))
            title = f"{len(had)} models of RobustBench, {dataset} {threat}"
            correlation = rank_correlation(had)
            if correlation == correlation:  # not NaN
                title += f": Spearman's ρ(CAS, RA) = {correlation:.2f}"
            picture = save_figure(draw_leaderboard(had, title), stem.with_name(f"{stem.name}.png"))
            console.print(title, highlight=False, soft_wrap=True)
    if len(rows) > len(had):
        console.print(f"{len(rows) - len(had)} could not be measured; {file} says why, and a second call tries again")
    console.print(f"Wrote {file}{f', {picture}' if had else ''}", highlight=False, soft_wrap=True)


def _leaderboard_table(rows: list[Row]) -> Table:
    from rich.table import Table

    first = rows[0]
    table = Table("model", "clean", f"RA ({first.attack}-{first.steps})", "AutoAttack, published", "CAS", "I-CAS")
    for row in rows:
        accuracies = (row.clean_accuracy, row.robust_accuracy, row.published_autoattack_accuracy)
        shown = ["" if value is None else f"{value:.1%}" for value in accuracies]
        table.add_row(row.model, *shown, f"{row.cas:.2f}", f"{row.instance_cas:.2f}")
    return table
