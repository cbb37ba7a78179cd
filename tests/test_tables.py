"""Tables: each form beside what it must be, and LaTeX as LaTeX's own rules have it."""

from __future__ import annotations

import csv
import re
from io import StringIO

import pytest
from rich.console import Console

from ccf_plugin.tables import FORMS, Table, Value

TABLE = Table(
    ("run", "epochs", "RA", "CAS"),
    [
        ["TRADES_1 & co", 200, Value(0.512, ".1%", 0.004), Value(-1.25, "+.2f")],
        ["  best | last", None, Value(0.5, ".1%"), Value(float("nan"), ".2f")],
        ["PGD-20 of eps 8/255", 3, "40.0% to -1", Value(None)],
    ],
    title="Of 2 runs\nunder attack",
)


def test_latex_is_a_booktabs_tabular_whose_text_is_escaped() -> None:
    assert TABLE.latex().decode().splitlines() == [
        "% needs \\usepackage{booktabs}",
        "% Of 2 runs under attack",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"run & epochs & RA & CAS \\",
        r"\midrule",
        r"TRADES\_1 \& co & 200 & 51.2\% $\pm$ 0.4\% & $-$1.25 \\",
        r"\quad best \textbar{} last &  & 50.0\% &  \\",
        r"PGD-20 of eps 8/255 & 3 & 40.0\% to $-$1 &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize("letter", "&%$#_{}\\|~^<>±×−→εΔρ")
def test_no_letter_that_latex_takes_for_its_own_is_left(letter: str) -> None:
    row = Table((f"a{letter}b",), [["x"]]).latex().decode().splitlines()[3]
    shown = row.removesuffix(r" \\").removeprefix("a").removesuffix("b")
    assert re.fullmatch(r"\\[&%$#_{}]|\\text\w+\{\}|\$[^$&%#]+\$", shown), shown


@pytest.mark.parametrize("name", ["[UNK]", "*star", "[1] [2]"])
def test_a_row_does_not_begin_with_what_the_line_above_takes_for_its_option(name: str) -> None:
    """``\\\\ [UNK]`` is no length and ``\\\\ *`` loses its star, also with a line's end between."""
    lines = Table((name, "CAS"), [[name, 1], [name, 2]]).latex().decode().splitlines()
    assert [lines[number] for number in (3, 5, 6)] == [f"{{}}{name} & {last} \\\\" for last in ("CAS", 1, 2)]


def test_markdown_csv_and_the_terminal_show_the_same_cells() -> None:
    assert TABLE.markdown().decode() == (
        "Of 2 runs under attack\n\n"
        "| run | epochs | RA | CAS |\n| --- | ---: | ---: | ---: |\n"
        "| TRADES_1 & co | 200 | 51.2% ± 0.4% | -1.25 |\n"
        "| best \\| last |  | 50.0% |  |\n"
        "| PGD-20 of eps 8/255 | 3 | 40.0% to -1 |  |\n"
    )
    rows = list(csv.DictReader(StringIO(TABLE.csv().decode())))
    assert rows[0] == {"run": "TRADES_1 & co", "epochs": "200", "RA": "0.512", "RA sd": "0.004", "CAS": "-1.25"}
    assert rows[1] == {"run": "  best | last", "epochs": "", "RA": "0.5", "RA sd": "", "CAS": ""}
    console = Console(file=StringIO(), width=100)
    console.print(TABLE.rich())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "51.2% ± 0.4%" in shown
    assert "nan" not in shown


def test_a_table_without_rows_has_its_header_in_each_form() -> None:
    empty = Table(("a", "b"), [])
    assert {ending: b"a" in form(empty) for ending, form in FORMS.items()} == dict.fromkeys(
        (".tex", ".md", ".csv"), True
    )
