"""study, and sweep, a study in one line. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import leave_job, open_console, print_line, print_result, print_written, quiet_libraries
from ccf_plugin.cli.places import endings_of
from ccf_plugin.errors import CCFError, Fault, InputError, counted
from ccf_plugin.files import expanded_path

if TYPE_CHECKING:
    from ccf_plugin.training.study import Study

Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key in all runs.")]
Minutes = Annotated[
    float | None, typer.Option(help="End after so many, the state saved; the same command goes on. 0: tables alone.")
]


def study(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A study's TOML file, or the name of a shipped one.")],
    minutes: Minutes = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Where the runs' folders go. Default: runs/<study's name>.")] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write DIR/<name>.md and .png, and what to keep: DIR/<name>/.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print runs, epochs and time instead.")] = False,
    allow_change: options.AllowChange = None,
    download: options.Download = False,
    allow_code: options.AllowCode = False,
) -> None:
    """Do the runs of a study that are not finished, and judge what it claims of them."""
    quiet_libraries()

    from ccf_plugin.training.study import load_study

    until = _until(minutes)
    planned = load_study(file, overrides or [], out, allow_code=allow_code, allow_change=allow_change or [])
    if dry_run:
        from ccf_plugin.training.progress import plan_table

        open_console().print(plan_table(planned).rich())
        return
    command = ["ccf", "study", file, *(word for one in overrides or () for word in ("--set", one))]
    _do(replace(planned, command=command), until, download, "ccf study", page=page)


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE,VALUE…", help="As in attack.eps=2/255,4/255.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the runs' folders go. Default: runs/<recipe's name>-sweep.")
    ] = None,
    minutes: Minutes = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMATS", help="Write the closing table, <out>/sweep.tex, .md or .csv."),
    ] = None,
    allow_change: options.AllowChange = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the runs' commands instead, one a line.")] = False,
    download: options.Download = False,
    allow_code: options.AllowCode = False,
) -> None:
    """Train by RECIPE once for each combination of values: a study in one line, which goes on where it was ended."""
    quiet_libraries()

    from ccf_plugin.tables import FORMS
    from ccf_plugin.training.study import sweep_study

    until, common = _until(minutes), overrides or []
    endings = [] if formats is None else endings_of(formats, known=tuple(FORMS))
    folder = expanded_path(out or Path("runs") / f"{Path(recipe).stem}-sweep")
    planned = sweep_study(recipe, settings, common, folder, allow_code=allow_code, allow_change=allow_change or [])
    if print_only:
        flags = [flag for flag, given in (("--download", download), ("--allow-code", allow_code)) if given]
        for member in planned.members:
            sets = [word for override in (*common, *member.overrides) for word in ("--set", override)]
            print_result(shlex.join(["ccf", "train", recipe, *sets, *flags, "--out", str(member.folder)]))
        return
    command = ["ccf", "sweep", recipe, *settings, *(word for one in common for word in ("--set", one))]
    _do(
        replace(planned, command=command),
        until,
        download,
        "ccf sweep",
        tables=[folder / f"sweep{ending}" for ending in endings],
    )


def _until(minutes: float | None) -> float | None:
    if minutes is not None and not 0 <= minutes < 1e6:
        raise InputError(Fault("minutes", "0 or more", f"{minutes:g}"))
    return None if minutes is None else time.monotonic() + 60 * minutes if minutes else -math.inf


def _do(
    planned: Study,
    until: float | None,
    download: bool,
    command: str,
    *,
    page: Path | None = None,
    tables: Sequence[Path] = (),
) -> None:
    from ccf_plugin.files import write_together
    from ccf_plugin.measuring.study_results import claims_table, study_table
    from ccf_plugin.tables import FORMS
    from ccf_plugin.training.interruption import Interrupted
    from ccf_plugin.training.progress import ProgressReporter
    from ccf_plugin.training.study_run import run_study

    console = open_console()
    say = partial(print_line, console)
    try:
        results = run_study(planned, lambda _: ProgressReporter(console), until=until, download=download, say=say)
    except Interrupted as error:
        raise Interrupted(error.where, error.signal_number, f"continue with the same {command}") from None
    table = study_table(results)
    console.print(table.rich())
    if results["claims"]:
        console.print(claims_table(results).rich())
    if tables:
        write_together({path: FORMS[path.suffix](table) for path in tables})
        print_written(console, tables)
    if page is not None:
        from ccf_plugin.report.study_page import write_page

        print_written(console, write_page(planned.folder, expanded_path(page)))
    _end(results, command)


def _end(results: dict[str, Any], command: str) -> None:
    """Say what is left to do; raise CCFError where runs diverged."""
    diverged = [run["label"] for run in results["runs"] if run["status"] == "diverged"]
    if diverged:
        runs = counted(len(results["runs"]), "run")
        raise CCFError(f"expected {runs} to the end, found that these diverged: {'; '.join(diverged)}")
    if left := sum(run["status"] != "finished" for run in results["runs"]):
        done = len(results["runs"]) - left
        console = open_console()
        console.print(
            f"{done} of {len(results['runs'])} runs are finished; the same {command} goes on", highlight=False
        )
    leave_job()
