"""report. Heavy imports happen inside the command, so that --help is instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import open_console, quiet_libraries
from ccf_plugin.errors import InputError, UnavailableError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders; several are shown side by side.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file. Default: results/report-<runs>.html.")] = None,
    vmin: options.VMin = None,
    vmax: options.VMax = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one HTML page of RUN, or of several: curves, matrices along the epochs, recipe. It needs no network."""
    quiet_libraries()

    from ccf_plugin.files import given_path, made_folder, write_atomically
    from ccf_plugin.report.page import build_report

    named = "-".join(Path(os.path.realpath(run)).name for run in runs[:3])
    path = given_path(out) if out else Path("results") / f"report-{named}.html"
    if path.is_dir():
        raise InputError(f"expected a file for the page, found the folder {path}; choose another --out")
    page = build_report(runs, vmin=vmin, vmax=vmax).encode()
    with made_folder(path.parent):
        write_atomically(path, page)
    open_console().print(f"Wrote {path} ({len(page) / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
    if open_it:
        _open(path)


def _open(path: Path) -> None:
    import webbrowser

    try:
        opened = webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        raise UnavailableError(f"expected a browser for --open, found none; the page is in {path}: open it by hand")
