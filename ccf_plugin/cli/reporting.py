"""report. Heavy imports happen inside the command, so that --help is instant."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import open_console, print_line, quiet_libraries
from ccf_plugin.cli.places import Place
from ccf_plugin.errors import UnavailableError, counted


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders, or folders of many, such as a study's.")
    ],
    out: Annotated[Path | None, options.out_option("The HTML file. Default: results/report-<runs>.html")] = None,
    ablations: Annotated[
        list[Path] | None,
        typer.Option(
            "--ablation", metavar="FILE", help="JSON of `ccf ablate`, beside those in the runs; may be repeated."
        ),
    ] = None,
    vmin: options.VMin = None,
    vmax: options.VMax = None,
    force: options.Force = False,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one HTML page of RUN, or of several: tables, curves, matrices along the epochs. It needs no network.

    Runs that differ in their seed alone are shown as mean and standard deviation.
    """
    quiet_libraries()

    from ccf_plugin.report.page import build_report
    from ccf_plugin.runs.seeds import list_runs

    folders = [os.path.realpath(run) for run in runs]
    named = "-".join(Path(folder).name for folder in folders[:3])
    # A page is passed on: of the folders, which are private, it holds a hash.
    of = "\n".join([*folders, *(os.path.realpath(file) for file in ablations or ())])
    shown = {"runs": hashlib.sha256(of.encode()).hexdigest()[:16], "vmin": vmin, "vmax": vmax}
    suffix = ".html" if out is None else ""
    place = Place(out, f"report-{named}", shown, (suffix,), force=force, read=_read_mark)
    html = build_report(runs, vmin=vmin, vmax=vmax, ablations=ablations or ())
    page = html.replace("<head>", f"<head>{_mark(shown)}", 1).encode()
    (path,) = place.write({suffix: page})
    listing = list_runs(runs)
    held = f"{counted(len(listing.runs), 'run')}, {len(page) / 1e6:.1f} MB"
    console = open_console()
    print_line(console, f"Wrote {path} ({held}); any browser shows it, without a network")
    if listing.left_out:
        print_line(console, f"Left out, without a finished epoch: {', '.join(listing.left_out)}")
    if open_it:
        _open(path)


def _mark(shown: Mapping[str, Any]) -> str:
    """What a page says of itself, so that it is replaced by one of the same runs alone."""
    return f"<meta name=\"ccf-shown\" content='{json.dumps(shown)}'>"


def _read_mark(file: Path) -> Mapping[str, Any] | None:
    try:
        with file.open(encoding="utf-8") as page:
            match = re.search("<meta name=\"ccf-shown\" content='(.*?)'>", page.read(10_000))
        shown = json.loads(match[1]) if match else None
    except (OSError, ValueError, RecursionError):
        return None
    return shown if isinstance(shown, dict) else None


def _open(path: Path) -> None:
    import webbrowser

    try:
        opened = webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        raise UnavailableError(f"expected a browser for --open, found none; the page is in {path}: open it by hand")
