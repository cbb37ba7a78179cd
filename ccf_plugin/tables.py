"""A table, once, in the forms that people need: for the terminal, a paper (LaTeX), a page (Markdown), and as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ccf_plugin.files import csv_bytes

if TYPE_CHECKING:
    import rich.table

_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "|": r"\textbar{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "→": r"$\to$",
    "∞": r"$\infty$",
    "<": "$<$",
    ">": "$>$",
    "Δ": r"$\Delta$",
    "ε": r"$\varepsilon$",
    "ρ": r"$\rho$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "₀": "$_0$",
    "₁": "$_1$",
    "₂": "$_2$",
    "²": "$^2$",
    "ᵀ": "$^\\top$",
}


@dataclass(frozen=True)
class Value:
    """A number in a cell, and how people read it.

    Attributes:
        value: what ``records`` and CSV hold; None or NaN where there is none, which is an empty cell.
        form: a format such as ".2f" or ".1%", or a function from the number to its text.
        sd: its standard deviation, read as "± …", in the same form; a column of its own in CSV.
    """

    value: float | None
    form: str | Callable[[float], str] = ""
    sd: float | None = None

    def __str__(self) -> str:
        return " ± ".join(self._shown(number) for number in (self.value, self.sd) if _is_number(number))

    def _shown(self, number: Any) -> str:
        return self.form(number) if callable(self.form) else format(number, self.form)


Cell = str | int | Value | None


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under named columns.

    Attributes:
        columns: their headings, which are the names in ``records`` and CSV too.
        rows: a cell for each column; None is an empty one.
        title: a sentence above it, or "".
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    def records(self) -> list[dict[str, Any]]:
        """The rows by column, numbers as they are; a standard deviation is under its column's name and " sd"."""
        return [
            {
                key: value
                for name, cell in zip(self.columns, row, strict=True)
                for key, value in _data(name, cell).items()
            }
            for row in self.rows
        ]

    def csv(self) -> bytes:
        """``records`` as CSV with a header."""
        records = self.records()
        keys = dict.fromkeys(key for record in records for key in record) or self.columns
        return csv_bytes(list(keys), records)

    def rich(self, **options: Any) -> rich.table.Table:
        """For the terminal; the options are rich's."""
        from rich.table import Column
        from rich.table import Table as RichTable

        table = RichTable(
            *(Column(name, overflow="fold") for name in self.columns), title=self.title or None, **options
        )
        for row in self.rows:
            table.add_row(*map(_text, row))
        return table

    def latex(self) -> bytes:
        """A ``tabular`` with the rules of the package booktabs, to be read by ``\\input``; UTF-8."""
        above = ["% needs \\usepackage{booktabs}", *([f"% {_one_line(self.title)}"] if self.title else [])]
        sides = ("r" if number else "l" for number in self._are_numbers())
        rows = [*above, rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", _latex_row(self.columns), r"\midrule"]
        rows += [_latex_row(map(_text, row)) for row in self.rows]
        return "\n".join([*rows, r"\bottomrule", r"\end{tabular}", ""]).encode()

    def markdown(self) -> bytes:
        """A table of GitHub's Markdown."""
        sides = ["---:" if number else "---" for number in self._are_numbers()]
        texts = [
            [_one_line(text).replace("|", r"\|") for text in map(_text, row)] for row in (self.columns, *self.rows)
        ]
        lines = ["| " + " | ".join(cells) + " |" for cells in (texts[0], sides, *texts[1:])]
        return "\n".join([*([_one_line(self.title), ""] if self.title else []), *lines, ""]).encode()

    def _are_numbers(self) -> list[bool]:
        """Whether a column has numbers, which stand to the right."""
        return [any(isinstance(row[place], int | Value) for row in self.rows) for place in range(len(self.columns))]


# The forms of a table, by the ending of its file.
FORMS: Mapping[str, Callable[[Table], bytes]] = {
    ".tex": Table.latex,
    ".md": Table.markdown,
    ".csv": Table.csv,
}


def _data(name: str, cell: Cell) -> dict[str, Any]:
    if not isinstance(cell, Value):
        return {name: cell}
    numbers = {name: cell.value} | ({} if cell.sd is None else {f"{name} sd": cell.sd})
    return {key: number if _is_number(number) else None for key, number in numbers.items()}


def _is_number(value: float | None) -> bool:
    return value is not None and value == value  # NaN is none


def _text(cell: Cell) -> str:
    return "" if cell is None else str(cell)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _latex_row(texts: Any) -> str:
    row = " & ".join(map(_latex_text, texts)) + r" \\"
    return "{}" * row.startswith(("[", "*")) + row  # which the end of the line above would take for its option


def _latex_text(text: str) -> str:
    """As LaTeX prints it: a hyphen that begins a number is a minus, a cell that begins with spaces is indented."""
    minus = re.sub(r"(?<![\w.\-])-(?=[\d.])", "−", _one_line(text))
    indent = r"\quad " if text.startswith("  ") else ""
    return indent + "".join(_LATEX.get(letter, letter) for letter in minus)
