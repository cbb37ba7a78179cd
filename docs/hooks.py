"""What pages are made of when the documentation is built: files that stand elsewhere, and the commands' own help.

A page asks by a comment: ``<!-- include: README.md -->`` puts a file of the repository in its place, with its links
turned to where they lead from that page; ``<!-- commands -->`` puts every command and option there.
"""

from __future__ import annotations

import csv
import html
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    markdown = re.sub(
        r"^<!-- include: (\S+) -->$", lambda found: _included(found[1], page.file.src_uri), markdown, flags=re.M
    )
    for asked, made in (("<!-- commands -->", commands), ("<!-- coverage -->", coverage)):
        if asked in markdown:
            markdown = markdown.replace(asked, made())
    return markdown


def _included(name: str, page: str) -> str:
    """The file's text; of a link to a file that is no part of the documentation only the words."""

    def turned(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        place = os.path.normpath(Path(name).parent / target)
        if not place.startswith("docs/"):
            return words
        return f"{picture}[{words}]({os.path.relpath(place, Path('docs', page).parent)})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", turned, (ROOT / name).read_text("utf-8"))


def commands() -> str:
    """Every command with its arguments and options, as ``ccf COMMAND --help`` describes them."""
    sys.path.insert(0, str(ROOT))  # the package as it stands here, without being installed
    import typer

    from ccf_plugin.cli.app import app

    group: Any = typer.main.get_command(app)
    with group.make_context("ccf", ["--version"], resilient_parsing=True) as context:
        parts = [_options("ccf", group, context)]
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            with command.make_context(name, [], parent=context, resilient_parsing=True) as inner:
                text = " ".join((command.help or "").split())
                parts.append(f"## ccf {name}\n\n{text}\n\n{_options(name, command, inner)}")
    return "\n\n".join(parts)


def coverage() -> str:
    """How many models of each library the probe attaches to, and what it says of the others, from the tests' tables."""
    parts = []
    for path in sorted((ROOT / "tests/probe/coverage_tables").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            models = list(csv.DictReader(file))
        others = [model for model in models if model["outcome"] != "attached"]
        counts = f"{len(models) - len(others)} of {len(models)} attached."
        rows = [f"| `{model['model']}` | {model['outcome']} | {_cell(model['reason'])} |" for model in others]
        table = "\n".join(["| the others | outcome | reason |", "|---|---|---|", *rows]) if rows else ""
        parts.append(f"## {path.stem}\n\n{counts}\n\n{table}")
    return "\n\n".join(parts)


def _options(name: str, command: Any, context: Any) -> str:
    """A table for the arguments, and one for the options of each panel."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            is_option = parameter.param_type_name == "option"
            panel = (getattr(parameter, "rich_help_panel", None) or "Options") if is_option else "Arguments"
            names = record[0] if is_option else parameter.name.upper() + ("…" if parameter.nargs == -1 else "")
            panels.setdefault(panel, []).append((names, record[1]))
    tables = []
    for panel, records in panels.items():
        rows = [f"| `{names}` | {_cell(text)} |" for names, text in records]
        tables.append("\n".join([f"| {panel} of `{name}` | |", "|---|---|", *rows]))
    return "\n\n".join(tables)


def _cell(text: str) -> str:
    """Words for a table's cell, in which Markdown and HTML see nothing of their own."""
    return re.sub(r"([*_\[\]`])", r"\\\1", html.escape(" ".join(text.split()), quote=False)).replace("|", "&#124;")
