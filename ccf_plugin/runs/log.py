"""log.csv of a run: one row per epoch, and which of them is the best."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

from ccf_plugin.errors import InputError
from ccf_plugin.runs.layout import AVERAGE


@dataclass(frozen=True)
class EpochRow:
    """One row of log.csv. Accuracies are fractions; None (an empty cell) is what was not measured that epoch."""

    epoch: int
    lr: float
    train_loss: float
    train_robust_accuracy: float | None
    test_clean_accuracy: float | None
    test_robust_accuracy: float | None
    cas: float | None
    instance_cas: float | None
    seconds: float
    images_per_second: float
    alarm: str = ""
    selected_by: str = ""  # at an epoch that became the best so far: the figure that says so
    validation_clean_accuracy: float | None = None
    validation_robust_accuracy: float | None = None
    test_clean_accuracy_average: float | None = None
    test_robust_accuracy_average: float | None = None
    cas_average: float | None = None
    validation_clean_accuracy_average: float | None = None
    validation_robust_accuracy_average: float | None = None


def log_text(rows: Sequence[EpochRow], *, averaged: bool, validated: bool) -> str:
    """The rows as CSV, the columns of averaged weights and of a validation split only where there are such."""
    columns = [field.name for field in fields(EpochRow)]
    columns = [name for name in columns if averaged or not name.endswith(AVERAGE)]
    columns = [name for name in columns if validated or not name.startswith("validation_")]
    buffer = StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        figures = asdict(row)
        writer.writerow({key: _cell(figures[key]) for key in columns})
    return buffer.getvalue()


def read_log(folder: Path) -> list[EpochRow]:
    """The rows of a run's log.csv.

    Raises:
        InputError: there is none, or it is not one that training wrote.
    """

    path = folder / "log.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [EpochRow(**{key: _value(key, cell) for key, cell in row.items()}) for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"expected the log of a run in {path}, found none that can be read ({error})") from None


def selecting_figure(loss: str, select: str) -> str:
    """The figure that chooses the best epoch: RA of the split ``select``; after standard training, its clean accuracy.

    After standard training RA says nothing.
    """
    return f"{select}_{'clean' if loss == 'standard' else 'robust'}_accuracy"


def best_row(rows: Sequence[EpochRow], figure: str) -> EpochRow | None:
    """The evaluated epoch where a figure of the log is highest (first of equals); None where none was evaluated."""
    evaluated = [(value, row) for row in rows if (value := getattr(row, figure)) is not None]
    return max(evaluated, key=lambda pair: (pair[0], -pair[1].epoch))[1] if evaluated else None


def _value(key: str, cell: str | None) -> Any:
    if cell is None:
        raise ValueError("a row cut short")
    if key in ("alarm", "selected_by"):
        return cell
    if key == "epoch":
        return int(cell)
    if cell and not math.isfinite(float(cell)):
        raise ValueError(f"{key} of {cell}")
    return float(cell) if cell else None


def _cell(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
