"""All runs in one table, the means over seeds, and the differences between methods at the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ccf_plugin.errors import counted
from ccf_plugin.probe.confidence import wilson
from ccf_plugin.runs.alarms import alarms_by_kind
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.runs.metrics import Metric, all_metrics
from ccf_plugin.runs.reading import RunFiles, Track
from ccf_plugin.runs.seeds import Seeds, mean_and_sd
from ccf_plugin.runs.selection import selection_free_accuracy

# What models are compared by; the others stand epoch by epoch under the curves.
_COMPARED = ("test_robust_accuracy", "test_clean_accuracy", "cas", "cas_null", "cas_excess", "instance_cas", "shared")
UNSELECTED = "RA, not selected"  # of the best epoch: on images that did not choose it
_WHERE = ("best", "last")
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Row:
    """A line of the table: the model, the epochs, a cell for each figure; ``kind`` is "run" or "mean"."""

    name: str
    at: str
    cells: Sequence[str]
    kind: str = "run"


@dataclass(frozen=True)
class Overview:
    """The tables as the page writes them; ``paired`` is empty where no two methods share two seeds."""

    columns: Sequence[str]
    rows: Sequence[Row]
    paired: Mapping[str, Any] = field(default_factory=dict)


def interval(track: Track, metric: Metric, value: float | None) -> tuple[float, float] | None:
    """Wilson's 95 % interval of an accuracy over the test images; None for other figures and unknown numbers."""
    total = 0 if track.counts is None else int(track.counts.sum())
    is_of_images = metric.format.endswith("%") and metric.name.startswith("test_") and total > 0
    if value is None or not is_of_images or not 0 <= value <= 1:
        return None
    return wilson(round(value * total), total)


def _without_interval(_: Track, metric: Metric, value: float | None) -> str:
    return metric.in_report(value).replace("-", _MINUS)


def in_words(track: Track, metric: Metric, value: float | None) -> str:
    """A figure with its interval: "86.4 % (82.5 to 89.6)"."""
    written = _without_interval(track, metric, value)
    bounds = interval(track, metric, value)
    if bounds is None:
        return written
    low, high = (metric.in_report(bound).removesuffix(" %") for bound in bounds)
    return f"{written} ({low} to {high})"


@dataclass(frozen=True)
class _Figure:
    """A column: what is written above it, and how; its values by a track's ``id`` and "best" or "last"."""

    heading: str
    metric: Metric
    values: Mapping[tuple[int, str], float]
    has_interval: bool = True

    def spread(self, group: Seeds, where: str) -> str:
        known = [value for track in group.tracks.values() if (value := self.values.get((id(track), where))) is not None]
        if len(known) < 2:
            return "–"
        mean, sd = mean_and_sd(known)
        return f"{self.metric.in_report(mean).removesuffix(' %')} ± {self.metric.in_report(sd)}".replace("-", _MINUS)

    def difference(self, group: Seeds, first: Seeds, seeds: Sequence[object], where: str) -> str:
        """Mean ± sd over the seeds of this figure of ``group`` less that of ``first``."""
        pairs = [[self.values.get((id(side.tracks[seed]), where)) for side in (group, first)] for seed in seeds]
        steps = [mine - its for mine, its in pairs if mine is not None and its is not None]
        if len(steps) < 2:
            return "–"
        mean, sd = mean_and_sd(steps)
        form = self.metric.rounded or self.metric.format
        written = f"{format(mean, f'+{form}')} ± {format(sd, form)}".replace("-", _MINUS)
        return f"{written.replace('%', '')} points" if "%" in written else written


def overview(runs: Sequence[RunFiles], groups: Sequence[Seeds], baseline: str | None = None) -> Overview:
    """Every model at its best and its last epoch; where a method has several seeds, their mean ± sd.

    Args:
        runs, groups: the same models, by run and by method.
        baseline: the method that others are compared with at equal seeds; the first with two seeds where None.
    """
    figures = [figure for figure in _figures(runs) if figure.values]
    planned = {id(track): run.recipe["optim"]["epochs"] for run in runs for track in run.tracks}
    rows: list[Row] = []
    for group in groups:
        for track in group.tracks.values():
            rows += _of_run(track, figures, planned[id(track)])
        if len(group.tracks) > 1:
            rows += [_over_seeds(group, where, figures) for where in _WHERE]
    columns = ["model", "epoch", *(figure.heading for figure in figures), "alarms"]
    return Overview(columns, rows, _paired(groups, baseline, figures))


def _figures(runs: Sequence[RunFiles]) -> list[_Figure]:
    known = {metric.name: metric for metric in all_metrics()}
    tracks = [(run, track) for run in runs for track in run.tracks]
    figures = [
        _Figure(
            known[name].heading,
            known[name],
            {
                (id(track), where): value
                for _, track in tracks
                for where in _WHERE
                if (value := track.figure(_row_at(track, where), name)) is not None
            },
        )
        for name in _COMPARED
    ]
    unselected = {
        (id(track), "best"): accuracy
        for run, track in tracks
        if (accuracy := selection_free_accuracy(run.folder, run.rows, run.selected_by, track.suffix)) is not None
    }
    figures.insert(1, _Figure(UNSELECTED, known["test_robust_accuracy"], unselected, has_interval=False))
    return figures


def _row_at(track: Track, where: str) -> EpochRow | None:
    return track.best if where == "best" else track.last


def _of_run(track: Track, figures: Sequence[_Figure], planned: int) -> list[Row]:
    rows = []
    for where in _WHERE:
        row = _row_at(track, where)
        if row is None:
            return [Row(track.name, "none evaluated", ["–"] * (len(figures) + 1))]
        cells = []
        for figure in figures:
            value = figure.values.get((id(track), where))
            write = in_words if figure.has_interval else _without_interval
            cells.append(write(track, figure.metric, value))
        of = f" of {planned}" if where == "last" else ""
        rows.append(Row(track.name, f"{where} ({row.epoch}{of})", [*cells, "" if track.suffix else row.alarm]))
    return rows


def _over_seeds(group: Seeds, where: str, figures: Sequence[_Figure]) -> Row:
    tracks = list(group.tracks.values())
    alarmed = sum(bool(alarms_by_kind(track.rows)) for track in tracks if not track.suffix)
    raised = f"in {alarmed} of {counted(len(tracks), 'run')}" if where == "last" and alarmed else ""
    cells = [figure.spread(group, where) for figure in figures]
    return Row(f"{group.name}, mean ± sd of {len(tracks)} seeds", where, [*cells, raised], "mean")


def _paired(groups: Sequence[Seeds], baseline: str | None, figures: Sequence[_Figure]) -> dict[str, Any]:
    """Each method less the baseline, seed by seed, for those that share two seeds."""
    several = [group for group in groups if len(group.tracks) > 1]
    first = next((group for group in several if group.method == baseline), next(iter(several), None))
    if first is None:
        return {}
    rows = []
    for group in several:
        shared = [seed for seed in first.tracks if seed in group.tracks]
        if group is first or len(shared) < 2:
            continue
        for where in _WHERE:
            differences = [figure.difference(group, first, shared, where) for figure in figures]
            rows.append([group.name, where, str(len(shared)), *differences])
    columns = ["method", "epoch", "seeds", *(f"Δ {figure.heading}" for figure in figures)]
    return {"baseline": first.name, "columns": columns, "rows": rows} if rows else {}
