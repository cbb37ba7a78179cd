"""log.csv of a run: one row per epoch, and which of them is the best."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from ccf_plugin.errors import InputError


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


AVERAGE = "_average"  # marks what belongs to the averaged weights, in the log's columns and in file names


def checkpoint_of(run: Path, which: Literal["best", "last"]) -> Path:
    """The file of the weights that a run's folder stands for: the averaged ones where it has them, else the raw ones.

    The averaged model is the output of the methods that average (WAKE's Algorithm 2; KDSWA).
    """
    has_averaged = (run / f"best{AVERAGE}.safetensors").is_file()  # once an average was evaluated
    return run / f"{which}{AVERAGE if has_averaged else ''}.safetensors"


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


def alarms_by_kind(rows: Iterable[EpochRow]) -> dict[str, list[int]]:
    """The epochs at which the log has each alarm."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for alarm in filter(None, row.alarm.split("; ")):
            found.setdefault(alarm, []).append(row.epoch)
    return found


def alarms_in_words(rows: Sequence[EpochRow]) -> list[str]:
    """Each alarm with its epochs, neighbours among the evaluated ones joined: "CAS falling at epochs 40, 88 to 120"."""
    evaluated = [row.epoch for row in rows if row.test_clean_accuracy is not None]
    found = []
    for alarm, epochs in alarms_by_kind(rows).items():
        places = [evaluated.index(epoch) for epoch in epochs if epoch in evaluated]
        spans = []
        for _, group in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
            members = [evaluated[place] for _, place in group]
            spans.append(str(members[0]) if len(members) == 1 else f"{members[0]} to {members[-1]}")
        found.append(f"{alarm} at {'epochs' if len(epochs) > 1 else 'epoch'} {', '.join(spans)}")
    return found


def read_environment(folder: Path, *, listed: str, remedy: str = "") -> dict[str, Any]:
    """What a run ran on, as its folder's ``environment.json`` says.

    Args:
        listed: the key that the caller takes a list from.
        remedy: what the error ends with.

    Raises:
        InputError: there is none, or it is not one that training wrote.
    """
    path = folder / "environment.json"
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("no file")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get(listed, []), list):
            raise ValueError(f"a {type(found).__name__}, or a {listed} that is no list")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected the environment of a run in {path}, found none that can be read ({error}){remedy}"
        ) from None
    return found


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
