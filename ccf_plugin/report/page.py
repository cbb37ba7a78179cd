"""The page: one HTML file with everything in it, that asks nothing of a network.

The paper's Figure 1 with the trajectory of Figure 10, the matrices of Figure 2, the differences of Figure 4.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccf_plugin.drawing import DIFFERENCE_SCALE, colour_scale
from ccf_plugin.errors import UnavailableError
from ccf_plugin.report.accuracies import class_accuracies, confusions
from ccf_plugin.report.matrices import embedded_epochs, encode, pairs_along_epochs
from ccf_plugin.report.words import (
    against_published,
    along_epochs,
    describe_saliency,
    environment_rows,
    recipe_differences,
    summarise,
)
from ccf_plugin.runs.alarms import alarms_by_kind
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.runs.metrics import Metric, all_metrics, metric_of
from ccf_plugin.runs.reading import RunFiles, Track, describe_data, read_runs
from ccf_plugin.runs.selection import selection_free_accuracy, selection_free_in_words
from ccf_plugin.threat import threat_sentence

_HERE = Path(__file__).parent
_TOP_PAIRS = 8
_LARGEST = 8_000_000
# Of an alarm: the curve that it is marked on, and plotly's name of the mark; else as robust overfitting.
_MARKS = {
    "robust overfitting": ("test_robust_accuracy", "x"),
    "catastrophic overfitting": ("test_robust_accuracy", "square-x-open"),
    "CAS falling": ("cas", "triangle-down"),
}


def build_report(folders: Sequence[Path], *, vmin: float | None = None, vmax: float | None = None) -> str:
    """The page of one run, or of several side by side, as HTML.

    Args:
        folders: run folders.
        vmin, vmax: ends of the matrices' colour scale; the paper's for such runs where None.

    Raises:
        InputError: vmin is not below vmax; else as ``read_runs`` does.
        UnavailableError: plotly or jinja2 is not installed.
    """
    runs = read_runs(folders)
    low, high = colour_scale(len(runs[0].classes), vmin, vmax, clean=runs[0].threat is None)
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from plotly.colors import diverging, sequential
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UnavailableError(
            f"the report needs plotly and jinja2, found no {error.name}; pip install plotly jinja2"
        ) from None
    tracks = [track for run in runs for track in run.tracks]
    data = {
        "classes": runs[0].classes,
        "scale": [low, high],
        "differenceScale": DIFFERENCE_SCALE,
        "blues": sequential.Blues,
        "bothSigns": diverging.RdBu[::-1],  # positive is blue here too
        "metrics": [_metric_data(metric) for metric in _curves(tracks)],
        "tracks": [_track_data(run, track, tracks) for run in runs for track in run.tracks],
        "confusions": confusions(tracks),
    }
    drawn = {metric["name"] for metric in data["metrics"]}
    context: dict[str, Any] = {
        "title": "Cross-class features of " + ", ".join(run.name for run in runs),
        "runs": runs,
        "measured_on": describe_data(runs[0].data),
        "measured_under": " / ".join(dict.fromkeys(threat_sentence(run.threat) for run in runs)),
        "notes": _notes(runs, data["tracks"]),
        "summaries": [summarise(run, track) for run in runs for track in run.tracks],
        "against": [against_published(run, track) for run in runs for track in run.tracks],
        "along": [along_epochs(track) for track in tracks],
        "shows_confusions": bool(data["confusions"]),
        "shows_chance": "cas_null" in drawn,
        "shows_lengths": "squared_lengths" in drawn,
        "by_class": [table for track in tracks if (table := class_accuracies(track)) is not None],
        "differences": recipe_differences(runs),
        "environments": [environment_rows(run) for run in runs],
        "many_tracks": len(tracks) > 1,
        "classes": len(runs[0].classes),
        "data": _json_inside_html(data),
        "css": (_HERE / "page.css").read_text(encoding="utf-8"),
        "javascript": (_HERE / "page.js").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("page.html")
    room = _LARGEST - len(template.render(context, pictures=[], left_out=0).encode())
    pictures, left_out = _pictures(runs, room)
    return template.render(context, pictures=pictures, left_out=left_out)


def _curves(tracks: Sequence[Track]) -> list[Metric]:
    """What was measured of any track and is drawn along the epochs, in the order of the legend."""
    drawn = [
        metric
        for metric in all_metrics()
        if metric.axis is not None
        and any(track.figure(row, metric.name) is not None for track in tracks for row in track.rows)
    ]
    return sorted(drawn, key=lambda metric: len(drawn) if metric.place is None else metric.place)


def _metric_data(metric: Metric) -> dict[str, Any]:
    """What the script knows of a metric; its formats are d3's too."""
    return {
        "name": metric.name,
        "label": metric.label,
        "axis": metric.axis,
        "dash": metric.dash,
        "format": metric.format,
        "rounded": metric.rounded or metric.format,
        "published": metric.published,
    }


def _track_data(run: RunFiles, track: Track, tracks: Sequence[Track]) -> dict[str, Any]:
    epochs = embedded_epochs(track, len(tracks))
    by_epoch = {row.epoch: row for row in track.rows}
    published = run.recipe.get("published", {}).get("figures", ())
    return {
        "name": track.name,
        "epoch": [row.epoch for row in track.rows],
        "curves": {metric.name: [track.figure(row, metric.name) for row in track.rows] for metric in _curves(tracks)},
        "best": None if track.best is None else track.best.epoch,
        "alarms": [] if track.suffix else _alarm_data(track),
        "published": [entry for entry in published if isinstance(entry["at"], int)],
        "matrixEpochs": epochs,
        "matrixProbed": len(track.matrices),
        "matrices": encode(track, epochs),
        "matrixTitles": [_matrix_title(track, by_epoch.get(epoch), epoch) for epoch in epochs],
        "pairs": pairs_along_epochs(track, _TOP_PAIRS),
    }


def _alarm_data(track: Track) -> list[dict[str, Any]]:
    alarms = []
    for alarm, epochs in alarms_by_kind(track.rows).items():
        curve, symbol = _MARKS.get(alarm, _MARKS["robust overfitting"])
        alarms.append({"name": alarm, "epochs": epochs, "metric": curve, "symbol": symbol})
    return alarms


def _matrix_title(track: Track, row: EpochRow | None, epoch: int) -> str:
    words = f"epoch {epoch}" + (", the best" if track.best is not None and track.best.epoch == epoch else "")
    if row is None:
        return words
    shown = [metric_of(name) for name in ("test_robust_accuracy", "cas")]
    figures = (f"{metric.heading} = {metric.in_report(track.figure(row, metric.name))}" for metric in shown)
    return f"{words}: {', '.join(figures)}"


def _notes(runs: Sequence[RunFiles], tracks: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know before comparing."""
    notes = []
    if len({threat_sentence(run.threat) for run in runs}) > 1:
        under = "; ".join(f"{run.name}: {threat_sentence(run.threat)}" for run in runs)
        notes.append(f"The runs are measured under different attacks, so RA and CAS differ by them too ({under}).")
    if any(run.selected_by.startswith("test") for run in runs):
        notes.append("The best epoch is chosen on the test images, which flatters it.")
    for run in runs:
        for note in run.tracks:
            accuracy = selection_free_accuracy(run.folder, run.rows, run.selected_by, note.suffix)
            if accuracy is not None and note.best is not None:
                notes.append(f"{note.name}: {selection_free_in_words(accuracy, note.best, note.suffix)}.")
    for run in runs:
        planned = run.recipe["optim"]["epochs"]
        if len(run.rows) < planned:
            notes.append(f"{run.name} has {len(run.rows)} of {planned} epochs.")
    for track in tracks:
        if len(track["matrixEpochs"]) < track["matrixProbed"]:
            notes.append(
                f"{track['name']}: the matrices of {len(track['matrixEpochs'])} of {track['matrixProbed']} probed "
                "epochs are in this page, evenly chosen, with the best; the run's folder has all."
            )
    return notes


def _pictures(runs: Sequence[RunFiles], room: int) -> tuple[list[dict[str, str]], int]:
    """The runs' saliency pictures as far as the page's size allows, and how many are left out."""
    pictures, left_out = [], 0
    for run in runs:
        for path in run.saliency:
            room -= -(-path.stat().st_size // 3) * 4
            if room < 0:
                left_out += 1
                continue
            encoded = b64encode(path.read_bytes()).decode()
            name = f"{run.name}: {path.stem.replace('_', ' ')}"
            pictures.append({"name": name, "data": encoded, "shows": describe_saliency(path)})
    return pictures, left_out


def _json_inside_html(data: object) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
