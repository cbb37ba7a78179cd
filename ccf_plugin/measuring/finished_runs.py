"""The runs of a study as their folders have them: figures by name, and which test images were right."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import CCFError, InputError
from ccf_plugin.measuring.claims import Figure
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.environment import read_environment
from ccf_plugin.runs.layout import AVERAGE, RECIPE, results_of
from ccf_plugin.runs.log import EpochRow, best_row, read_log, selecting_figure
from ccf_plugin.runs.selection import BIASED, CLEAN, record_of

_LOGGED = 1e-5  # the relative error of a figure of six digits, and of a result's arrays


class NotMeasuredError(CCFError):
    """A run has no such figure."""


@dataclass(frozen=True)
class FinishedRun:
    """A run of a study: ``name`` is what its seeds have in common, ``folder`` where it lies.

    Its figures are those of the averaged weights where it averages, as everywhere else.
    """

    name: str
    seed: int | None
    folder: Path
    rows: Sequence[EpochRow]
    selected_by: str

    @classmethod
    def read(cls, name: str, seed: int | None, folder: Path) -> FinishedRun:
        """Raises InputError where a file of the run is missing or damaged."""
        rows = read_log(folder)
        if not rows:
            raise InputError(f"expected a run with finished epochs in {folder}, found none yet")
        try:
            select = tomllib.loads((folder / RECIPE).read_text("utf-8"))["evaluate"]["select"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(f"expected a run's recipe in {folder / RECIPE}, found none ({error})") from None
        is_adversarial = any(row.train_robust_accuracy is not None for row in rows)
        return cls(name, seed, folder, rows, selecting_figure(select, is_adversarial=is_adversarial))

    @cached_property
    def suffix(self) -> str:
        """Of the weights that the run stands for."""
        return "" if best_row(self.rows, f"{self.selected_by}{AVERAGE}") is None else AVERAGE

    @cached_property
    def best(self) -> EpochRow:
        """The best epoch; the last where none was evaluated."""
        return best_row(self.rows, f"{self.selected_by}{self.suffix}") or self.rows[-1]

    @cached_property
    def images(self) -> object:
        """The hash of the test images, where its environment says it."""
        known: Any = read_environment(self.folder).get("images")
        return known.get("test") if isinstance(known, dict) else None

    def column(self, name: str) -> str:
        """A figure's column: that of the averaged weights where the run stands for them and has it."""
        averaged = f"{name}{self.suffix}"
        return averaged if any(getattr(row, averaged, None) is not None for row in self.rows) else name

    def value(self, figure: Figure) -> float:
        """Raises NotMeasuredError where the run has no such figure."""
        if figure.at == "delta":
            first, second = (self.value(Figure(figure.run, figure.column, at)) for at in ("best", "last"))
            return first - second
        value = getattr(self._row(figure), self.column(figure.column))
        if value is None:
            raise NotMeasuredError(f"{figure} was not measured")
        return float(value)

    def series(self, first: str, second: str) -> tuple[list[float], list[float]]:
        """Two columns along the epochs that have both."""
        names = self.column(first), self.column(second)
        pairs = [(getattr(row, names[0]), getattr(row, names[1])) for row in self.rows]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        return [float(a) for a, _ in known], [float(b) for _, b in known]

    def halved(self, figure: Figure) -> float:
        """The epoch from which on a figure stays below half of its highest.

        Raises NotMeasuredError where it does not end there.
        """
        values, epochs = self.series(figure.column, "epoch")
        kept = [epoch for value, epoch in zip(values, epochs, strict=True) if value >= max(values) / 2]
        if not kept or kept[-1] == epochs[-1]:
            raise NotMeasuredError(f"{figure.run}'s {figure.column} does not end below half of its highest")
        return next(epoch for epoch in epochs if epoch > kept[-1])

    def record(self, column: str, at: str | int) -> NDArray[np.bool_] | None:
        """Which test images were right at an epoch, (N,) bool, for the accuracies that images are recorded for."""
        if column not in (BIASED, CLEAN):
            return None
        row = self._row(Figure(self.name, column, at))
        return record_of(self.folder, row, self.suffix, is_best=row is self.best, column=column)

    def result(self, column: str, at: str | int) -> CrossClassResult | None:
        """The result of an epoch that a figure is of; None where none was kept, or where it has another figure."""
        row = self._row(Figure(self.name, column, at))
        logged = getattr(row, self.column(column))
        for stem in results_of(self.folder, row.epoch, self.suffix, is_best=row is self.best):
            try:
                result = CrossClassResult.load(stem)
            except CCFError:
                continue
            figure = getattr(result, column)
            if figure is not None and math.isclose(figure, logged, rel_tol=_LOGGED):
                return result
        return None

    def _row(self, figure: Figure) -> EpochRow:
        if figure.at == "best":
            return self.best
        if figure.at == "last":
            return self.rows[-1]
        row = next((row for row in self.rows if row.epoch == figure.at), None)
        if row is None:
            raise NotMeasuredError(f"{figure.run} has no epoch {figure.at}")
        return row


def of_seed(runs: Sequence[FinishedRun], seed: int | None) -> FinishedRun:
    """A run's seed; its only one where it has one."""
    return runs[0] if len(runs) == 1 else next(run for run in runs if run.seed == seed)


def by_name(runs: Sequence[FinishedRun]) -> Mapping[str, Sequence[FinishedRun]]:
    """The seeds of each run."""
    named: dict[str, list[FinishedRun]] = {}
    for run in runs:
        named.setdefault(run.name, []).append(run)
    return named
