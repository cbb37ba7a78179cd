"""Figures along the epochs, as the page's script draws them: each model's, and the means over the seeds of a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ccf_plugin.report.overview import interval
from ccf_plugin.runs.alarms import alarms_by_kind
from ccf_plugin.runs.metrics import Metric, all_metrics, metric_of
from ccf_plugin.runs.reading import RunFiles, Track
from ccf_plugin.runs.seeds import Seeds, mean_and_sd

# Of an alarm: the curve that it is marked on, and plotly's name of the mark; else as robust overfitting.
_MARKS = {
    "robust overfitting": ("test_robust_accuracy", "x"),
    "catastrophic overfitting": ("test_robust_accuracy", "square-x-open"),
    "CAS falling": ("cas", "triangle-down"),
}


def drawn_metrics(tracks: Sequence[Track]) -> list[Metric]:
    """What was measured of any track and is drawn along the epochs, in the order of the legend."""
    drawn = [
        metric
        for metric in all_metrics()
        if metric.axis is not None
        and any(track.figure(row, metric.name) is not None for track in tracks for row in track.rows)
    ]
    return sorted(drawn, key=lambda metric: len(drawn) if metric.place is None else metric.place)


def metric_data(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """What the script knows of each; its formats are d3's too. ``first`` is shown where many models are drawn."""
    firsts: dict[str | None, str] = {}
    for metric in sorted(metrics, key=lambda metric: metric.dash != "solid"):
        firsts.setdefault(metric.axis, metric.name)
    return [
        {
            "name": metric.name,
            "label": metric.label,
            "axis": metric.axis,
            "dash": metric.dash,
            "format": metric.format,
            "rounded": metric.rounded or metric.format,
            "published": metric.published,
            "first": metric.name in firsts.values(),
        }
        for metric in metrics
    ]


def lines(runs: Sequence[RunFiles], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Each track's curves; the band of an accuracy on test images is Wilson's 95 % interval."""
    return [_line(run, track, metrics) for run in runs for track in run.tracks]


def means(groups: Sequence[Seeds], metrics: Sequence[Metric], tracks: Sequence[Track]) -> list[Any]:
    """For each method its means ± sd at the epochs that all seeds have, or its only track's place among ``lines``."""
    places = {id(track): place for place, track in enumerate(tracks)}
    return [
        places[id(next(iter(group.tracks.values())))] if len(group.tracks) == 1 else _mean_line(group, metrics)
        for group in groups
    ]


def _line(run: RunFiles, track: Track, metrics: Sequence[Metric]) -> dict[str, Any]:
    published = run.recipe.get("published", {}).get("figures", ())
    robust = metric_of("test_robust_accuracy")
    bounds = [interval(track, robust, track.figure(row, robust.name)) for row in track.rows]
    return {
        "name": track.name,
        "epoch": [row.epoch for row in track.rows],
        "curves": {metric.name: [track.figure(row, metric.name) for row in track.rows] for metric in metrics},
        "bands": {robust.name: [None if bound is None else [round(end, 4) for end in bound] for bound in bounds]}
        if any(bounds)
        else {},
        "best": [] if track.best is None else [track.best.epoch],
        "alarms": [] if track.suffix else _alarms([track]),
        "published": [entry for entry in published if isinstance(entry["at"], int)],
    }


def _mean_line(group: Seeds, metrics: Sequence[Metric]) -> dict[str, Any]:
    tracks = list(group.tracks.values())
    rows = [{row.epoch: row for row in track.rows} for track in tracks]
    epochs = sorted(set.intersection(*(set(of_track) for of_track in rows)))
    curves: dict[str, list[float | None]] = {metric.name: [] for metric in metrics}
    bands: dict[str, list[list[float] | None]] = {metric.name: [] for metric in metrics}
    for metric in metrics:
        for epoch in epochs:
            values = [
                value
                for track, of_track in zip(tracks, rows, strict=True)
                if (value := track.figure(of_track[epoch], metric.name)) is not None
            ]
            if len(values) < len(tracks):
                curves[metric.name].append(None)
                bands[metric.name].append(None)
                continue
            mean, sd = mean_and_sd(values)
            curves[metric.name].append(_rounded(mean))
            bands[metric.name].append([_rounded(mean - sd), _rounded(mean + sd)])
    return {
        "name": f"{group.name} ({len(tracks)} seeds)",
        "epoch": epochs,
        "curves": curves,
        "bands": bands,
        "best": [track.best.epoch for track in tracks if track.best is not None],
        "alarms": [] if group.suffix else _alarms(tracks),
        "published": [],
    }


def _alarms(tracks: Sequence[Track]) -> list[dict[str, Any]]:
    found: dict[str, set[int]] = {}
    for track in tracks:
        for alarm, epochs in alarms_by_kind(track.rows).items():
            found.setdefault(alarm, set()).update(epochs)
    marks = {alarm: _MARKS.get(alarm, _MARKS["robust overfitting"]) for alarm in found}
    return [
        {"name": alarm, "epochs": sorted(epochs), "metric": marks[alarm][0], "symbol": marks[alarm][1]}
        for alarm, epochs in found.items()
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
