"""log.csv of a run: one row per epoch, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ccf_plugin.errors import InputError
from ccf_plugin.files import csv_bytes, read_csv
from ccf_plugin.runs.layout import LOG
from ccf_plugin.runs.metrics import column_names, later_column_names

# What every row has, and its type in a file; a figure is a number or None.
_TYPES: dict[str, Any] = {
    "epoch": int,
    **dict.fromkeys(("lr", "train_loss", "seconds", "images_per_second"), int | float),
    **dict.fromkeys(("alarm", "selected_by"), str),
}


@dataclass(frozen=True, init=False)
class EpochRow:
    """One row of log.csv, whose columns are its attributes: ``row.cas``, ``row.cas_average``.

    Attributes:
        alarm: the alarms of the epoch, joined by "; ".
        selected_by: at an epoch that became the best so far, the figure that says so.
        figures: what was measured, by column; accuracies are fractions. A column of ``METRICS`` that is not in it, or
            is None, was not measured that epoch: an empty cell.
        unknown: what a newer version wrote of the epoch, by column, as it was read. It is kept and else ignored.
    """

    epoch: int
    lr: float
    train_loss: float
    seconds: float
    images_per_second: float
    alarm: str
    selected_by: str
    figures: Mapping[str, float | None]
    unknown: Mapping[str, object]

    def __init__(
        self,
        *,
        epoch: int,
        lr: float,
        train_loss: float,
        seconds: float,
        images_per_second: float,
        alarm: str = "",
        selected_by: str = "",
        figures: Mapping[str, float | None] | None = None,
        unknown: Mapping[str, object] | None = None,
        **measured: float | None,
    ) -> None:
        """``measured`` are figures by column, beside those of ``figures`` and before them."""
        if others := measured.keys() - set(column_names()):
            raise TypeError(f"no columns of log.csv: {', '.join(sorted(others))}")
        self.__dict__.update(  # the class is frozen
            epoch=epoch,
            lr=lr,
            train_loss=train_loss,
            seconds=seconds,
            images_per_second=images_per_second,
            alarm=alarm,
            selected_by=selected_by,
            figures={**(figures or {}), **measured},
            unknown=dict(unknown or {}),
        )

    @classmethod
    def from_file(cls, fields: Mapping[str, Any]) -> EpochRow:
        """A row as a file has it, by column; ValueError or TypeError where that is damaged or no row."""
        known = {name: fields[name] for name in column_names() if name in fields}
        for name, value in known.items():
            if not isinstance(value, _TYPES.get(name, int | float | None)):
                raise TypeError(f"{name} of {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} of {value}")
        return cls(**known, unknown={name: value for name, value in fields.items() if name not in known})

    def as_dict(self) -> dict[str, Any]:
        """The row by column, as a file has it; None where nothing was measured."""
        always = {name: getattr(self, name) for name in _TYPES}
        return dict.fromkeys(column_names()) | always | dict(self.figures) | dict(self.unknown)

    def __getattr__(self, name: str) -> float | None:
        figures = self.__dict__.get("figures", {})
        if name not in figures and name not in column_names():
            raise AttributeError(f"an epoch's row has no {name!r}")
        value: float | None = figures.get(name)
        return value


def log_bytes(rows: Sequence[EpochRow], *, averaged: bool, validated: bool) -> bytes:
    """The rows as CSV, the columns of averaged weights and of a validation split only where there are such.

    What the first logs did not have, which is most of ``METRICS``' later entries, has a column once it was measured.
    """
    unknown = dict.fromkeys(name for row in rows for name in row.unknown)
    names = column_names(averaged=averaged, validated=validated)
    measured = {name for row in rows for name, value in row.figures.items() if value is not None}
    later = set(later_column_names()) - measured
    columns = [*(name for name in names if name not in later), *unknown]
    return csv_bytes(columns, [row.as_dict() for row in rows], digits=6)


def read_log(run: Path) -> list[EpochRow]:
    """The rows of a run's log.csv.

    Raises:
        InputError: there is none, or it is not one that training wrote.
    """
    try:
        known = set(column_names())
        _, rows = read_csv(run / LOG)
        return [
            EpochRow.from_file({name: _value(name, cell) if name in known else cell for name, cell in row.items()})
            for row in rows
        ]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"expected the log of a run in {run / LOG}, found none that can be read ({error})") from None


def with_unknown_columns(rows: Sequence[EpochRow], logged: Sequence[EpochRow]) -> list[EpochRow]:
    """The rows, each with what the log beside them has of its epoch that no version here knows."""
    unknown = {row.epoch: row.unknown for row in logged}
    return [replace(row, unknown={**unknown.get(row.epoch, {}), **row.unknown}) for row in rows]


def selecting_figure(select: str, *, is_adversarial: bool = True) -> str:
    """The figure that chooses the best epoch: RA of the split ``select``; after standard training, its clean accuracy.

    After standard training RA says nothing.
    """
    return f"{select}_{'robust' if is_adversarial else 'clean'}_accuracy"


def best_row(rows: Sequence[EpochRow], figure: str) -> EpochRow | None:
    """The evaluated epoch where a figure of the log is highest (first of equals); None where none was evaluated."""
    evaluated = [(value, row) for row in rows if (value := getattr(row, figure)) is not None]
    return max(evaluated, key=lambda pair: (pair[0], -pair[1].epoch))[1] if evaluated else None


def _value(name: str, cell: str) -> int | float | str | None:
    kind = _TYPES.get(name)
    if kind in (int, str):
        return int(cell) if kind is int else cell
    return float(cell) if cell else None
