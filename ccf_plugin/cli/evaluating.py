"""evaluate, leaderboard. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    with_interval,
)
from ccf_plugin.cli.help import ATTACK, DATA, MODEL, OUTPUT
from ccf_plugin.cli.places import endings_of, growing_file
from ccf_plugin.errors import counted
from ccf_plugin.measuring.settings import WEIGHT_SETTINGS, Settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ccf_plugin.measuring.leaderboard import Row
    from ccf_plugin.measuring.robustness import Evaluation


@options.with_settings("clean", "attack", "steps", "head", "centre")
def evaluate(
    model: options.Model,
    *,
    settings: Settings,
    steps: Annotated[list[int] | None, options.option(ATTACK, "Of PGD; may be repeated. Default: 20 and 100.")] = None,
    restarts: Annotated[int, options.option(ATTACK, "Of PGD: right is what withstands so many random starts.")] = 1,
    attack: Annotated[
        list[str] | None, options.option(ATTACK, "Further torchattacks classes, such as FGSM or Square; repeatable.")
    ] = None,
    curve: Annotated[
        list[str] | None,
        options.option(ATTACK, "A further eps, such as 2/255, for RA over eps; repeatable.", metavar="EPS"),
    ] = None,
    autoattack: Annotated[
        bool, options.option(ATTACK, "AutoAttack too: slow, and what to quote.", "--autoattack")
    ] = False,
    out: Annotated[
        Path | None,
        options.out_option("The JSON to write, and to continue. Default: results/<model>-evaluation-<norm>-<eps>"),
    ] = None,
    restart: Annotated[
        bool, options.option(OUTPUT, "Begin anew, whatever the JSON holds.", "--restart", "--force")
    ] = False,
    as_json: Annotated[bool, options.json_option("Print the evaluation's JSON and nothing else.")] = False,
) -> None:
    """Measure how robust MODEL is: clean accuracy, PGD, AutoAttack. Run again, it continues where it was stopped."""
    quiet_libraries()
    refuse_several_processes("evaluate", "start it with python or ccf alone")
    check_names(model, checkpoint=settings.weights.checkpoint)

    from ccf_plugin.measuring.robustness import describe_evaluation
    from ccf_plugin.measuring.robustness import evaluate as run_evaluation
    from ccf_plugin.measuring.subject import load_subject
    from ccf_plugin.threat import threat_file_part

    subject = load_subject(model, settings)
    assert subject.attack is not None  # noqa: S101  (only the setting ``clean`` leaves it out)
    threat, images = subject.attack.threat, len(subject.data.split)
    console = open_console(stderr=as_json)
    kept: contextlib.AbstractContextManager[Path | None] = contextlib.nullcontext()
    if out is not None or not as_json:
        name = f"{subject.loaded.name}-evaluation-{threat_file_part(threat.as_dict())}"
        provenance = describe_evaluation(subject, subject.attack)["provenance"]
        kept = growing_file(out, name, provenance, force=restart)
    with kept as file:
        evaluation = run_evaluation(
            subject,
            file,
            steps=steps or (),
            restarts=restarts,
            attacks=attack or (),
            curve=curve or (),
            autoattack=autoattack,
            restart=restart,
            progress=lambda name: progress_on(console, f"{name}, {counted(images, 'image')}"),
        )
    if as_json:
        print_json(evaluation.to_json())
        return
    _print_evaluation(console, evaluation)
    print_written(console, [file] if file is not None else [])


def _print_evaluation(console: Console, evaluation: Evaluation) -> None:
    from rich.table import Table

    from ccf_plugin.measuring.robustness import MASKING_MARGIN
    from ccf_plugin.threat import show_pixels, threat_sentence

    threat, data = evaluation.described["threat"], evaluation.described["data"]
    table = Table(show_header=False)
    table.add_row("model", evaluation.described["model"])
    table.add_row("data", f"{counted(evaluation.images, 'test image')} of {data['name']}")
    table.add_row("threat", threat_sentence(threat))
    for name, accuracy in evaluation.accuracies.items():
        table.add_row(f"{name} accuracy", with_interval(accuracy, evaluation.intervals[name]))
    console.print(table)
    margin = f"{MASKING_MARGIN * 100:.0f} points"
    if evaluation.masking_gap is not None:
        gap = f"The strongest PGD leaves {evaluation.masking_gap * 100:.1f} points more than AutoAttack"
        said = f"{gap}; over {margin} would suggest gradient masking."
        if evaluation.may_mask_gradients:
            said = f"Possible gradient masking: {gap[0].lower()}{gap[1:]}; over {margin} is far."
        console.print(said, highlight=False)
    if evaluation.rises is not None:
        smaller, larger = map(show_pixels, evaluation.rises)
        print_line(
            console,
            f"RA rises from eps {smaller} to {larger}: the attack misses what lies in the smaller ball; "
            "take more --steps or --restarts",
        )
    for note in evaluation.notes:
        print_line(console, f"AutoAttack: {note}")


@options.with_settings("clean", "attack", "norm", *WEIGHT_SETTINGS, "pretrained", "downscale")
def leaderboard(
    dataset: Annotated[str, options.option(DATA, "RobustBench's: cifar10, cifar100 or imagenet.")] = "cifar10",
    threat: Annotated[str, options.option(ATTACK, "RobustBench's: Linf or L2.")] = "Linf",
    only: Annotated[list[str] | None, options.option(MODEL, "This model; may be repeated.", metavar="NAME")] = None,
    local: Annotated[bool, options.option(MODEL, "Only models whose files lie in --model-dir.", "--local")] = False,
    *,
    settings: Settings,
    out: Annotated[
        Path | None,
        options.out_option("Where <out>.csv and the picture go. Default: results/leaderboard-<dataset>-<threat>"),
    ] = None,
    formats: options.Formats = None,
    force: Annotated[bool, options.option(OUTPUT, "Begin anew, whatever lies there.", "--force")] = False,
) -> None:
    """Probe RobustBench's models: CAS and I-CAS beside robust accuracy. Run again, it goes on with those missing."""
    quiet_libraries()
    refuse_several_processes("leaderboard", "start one for each GPU with --only and its own --out")
    check_names(*(f"robustbench:{dataset}/{threat}/{name}" for name in only or ()))

    from ccf_plugin.drawing import save_figure
    from ccf_plugin.measuring.leaderboard import (
        conditions_of,
        leaderboard_conditions,
        measure_leaderboard,
        rank_correlation,
        read_leaderboard,
    )
    from ccf_plugin.measuring.pictures import draw_leaderboard
    from ccf_plugin.probe.presentation import PERMUTED

    endings = endings_of(formats, out)
    console = open_console()
    conditions = leaderboard_conditions(dataset, threat, settings)
    kept = growing_file(
        out,
        f"leaderboard-{dataset}-{threat}",
        conditions,
        ".csv",
        force=force,
        read=lambda path: conditions_of(path, conditions),
    )
    with kept as file:
        measured = measure_leaderboard(
            dataset,
            threat,
            settings,
            file,
            only=only or [],
            local=local,
            restart=force,
            progress=lambda name: progress_on(console, name),
        )
        for row, left in measured:
            outcome = f"RA {row.robust_accuracy:.1%}, CAS {row.cas:.2f}" if row.cas is not None else row.unavailable
            print_line(console, f"{row.model}: {outcome} ({left} to go)")
        rows = read_leaderboard(file) if file.exists() else []
        probed = sorted((row for row in rows if row.cas is not None), key=lambda row: -(row.robust_accuracy or 0.0))
        if probed:
            console.print(_leaderboard_table(probed))
            title = f"{counted(len(probed), 'model')} of RobustBench, {dataset} {threat}"
            correlation = rank_correlation(probed)
            if correlation == correlation:  # not NaN
                title += f": Spearman's ρ(CAS, RA) = {correlation:.2f}"
                beyond = rank_correlation(probed, "cas_excess")
                title += "" if beyond != beyond else f", ρ(CAS beyond chance, RA) = {beyond:.2f}"
            pictures = save_figure(draw_leaderboard(probed, title), *map(file.with_suffix, endings))
            print_line(console, title)
            print_line(console, f"By chance: {PERMUTED}.")
            if len(sizes := {row.input_size for row in probed if row.input_size}) > 1:
                print_line(console, f"Input sizes differ ({', '.join(sorted(sizes))}): the CSV has each model's")
    absent = len(rows) - len(probed)
    if absent:
        console.print(f"{absent} could not be measured; {file} says why, and a second call tries again")
    print_written(console, [file, *(pictures if probed else [])])


def _leaderboard_table(rows: list[Row]) -> Table:
    from rich.table import Table

    from ccf_plugin.threat import threat_label

    table = Table(
        "model",
        "clean",
        f"RA ({threat_label(vars(rows[0]))})",
        "AutoAttack, published",
        "CAS",
        "beyond chance",
        "I-CAS",
    )
    for row in rows:
        excess = "" if row.cas_excess is None else f"{row.cas_excess:+.2f}"
        accuracies = (row.clean_accuracy, row.robust_accuracy, row.published_autoattack_accuracy)
        shown = ["" if value is None else f"{value:.1%}" for value in accuracies]
        table.add_row(row.model, *shown, f"{row.cas:.2f}", excess, f"{row.instance_cas:.2f}")
    return table
