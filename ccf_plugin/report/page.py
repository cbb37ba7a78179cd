"""The page: one HTML file with everything in it, that asks nothing of a network.

The paper's Figure 1 with the trajectory of Figure 10, the matrices of Figure 2, the differences of Figure 4.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccf_plugin.drawing import DIFFERENCE_SCALE, colour_scale
from ccf_plugin.errors import UnavailableError, counted
from ccf_plugin.report.ablations import find_ablations
from ccf_plugin.report.curves import drawn_metrics, lines, means, metric_data
from ccf_plugin.report.matrices import pairs_along_epochs, states
from ccf_plugin.report.overview import UNSELECTED, in_words, overview
from ccf_plugin.report.words import (
    against_published,
    alarm_meanings,
    along_epochs,
    describe_alarms,
    describe_measurement,
    describe_saliency,
    environment_rows,
    recipe_differences,
    summarise,
)
from ccf_plugin.runs.metrics import metric_of
from ccf_plugin.runs.reading import RunFiles, Track, read_runs
from ccf_plugin.runs.seeds import by_seed, list_runs
from ccf_plugin.threat import threat_sentence

_HERE = Path(__file__).parent
_SCRIPTS = ("looks.js", "curves.js", "matrices.js", "page.js")
_TOP_PAIRS = 8
_LARGEST = 8_000_000
_MANY_CLASSES = 12  # tables of more classes start closed


def build_report(
    folders: Sequence[Path],
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    ablations: Sequence[Path] = (),
) -> str:
    """The page of one run, or of several side by side, as HTML.

    Args:
        folders: run folders, and folders that hold many, such as a study's.
        vmin, vmax: ends of the matrices' colour scale; the paper's for such runs where None.
        ablations: JSON of `ccf ablate`, beside those that lie in the runs' folders.

    Raises:
        InputError: vmin is not below vmax; a file that is no ablation; else as ``list_runs`` and ``read_runs`` do.
        UnavailableError: plotly or jinja2 is not installed.
    """
    listing = list_runs(folders)
    runs = read_runs(listing.runs)
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
    groups = by_seed(runs)
    metrics = drawn_metrics(tracks)
    drawn = {metric.name for metric in metrics}
    data = {
        "title": _title(runs, folders),
        "classes": runs[0].classes,
        "scale": [low, high],
        "differenceScale": DIFFERENCE_SCALE,
        "blues": sequential.Blues,
        "bothSigns": diverging.RdBu[::-1],  # positive is blue here too
        "metrics": metric_data(metrics),
        "lines": lines(runs, metrics),
        "means": means(groups, metrics, tracks),
        "tracks": _track_data(runs),
        "ablations": find_ablations(runs, ablations),
    }
    context: dict[str, Any] = {
        "title": data["title"],
        "runs": runs,
        "measurement": describe_measurement(runs),
        "notes": [*(f"Left out, without a finished epoch: {name}." for name in listing.left_out), *_notes(runs, data)],
        "unselected": UNSELECTED,
        "overview": overview(runs, groups, listing.baseline),
        "summaries": [summarise(run, track) for run in runs for track in run.tracks],
        "alarms": describe_alarms(runs),
        "alarm_meanings": alarm_meanings(runs),
        "against": [against_published(run, track) for run in runs for track in run.tracks],
        "along": [along_epochs(track) for track in tracks],
        "has_seeds": any(len(group.tracks) > 1 for group in groups),
        "has_confusions": any(track.confusions for track in tracks),
        "has_chance": "cas_null" in drawn,
        "has_test_losses": not {"test_clean_loss", "test_robust_loss"}.isdisjoint(drawn),
        "has_lengths": "squared_lengths" in drawn,
        "has_gradients": "gradient_norm" in drawn,
        "ablations": data["ablations"],
        "differences": recipe_differences(runs),
        "environments": [environment_rows(run) for run in runs],
        "many_tracks": len(tracks) > 1,
        "has_one_matrix": [len(shown["states"]) for shown in data["tracks"]] == [1],
        "best_is_last": len(tracks) == 1 and data["tracks"][0]["best"] == data["tracks"][0]["states"][-1]["epoch"],
        "classes": len(runs[0].classes),
        "many_classes": len(runs[0].classes) > _MANY_CLASSES,
        "data": _json_inside_html(data),
        "css": (_HERE / "page.css").read_text(encoding="utf-8"),
        "javascript": "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "plotly": get_plotlyjs(),
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = _unbroken
    template = environment.get_template("page.html")
    room = _LARGEST - len(template.render(context, pictures=[], left_out=0).encode())
    pictures, left_out = _pictures(runs, room)
    return template.render(context, pictures=pictures, left_out=left_out)


def _title(runs: Sequence[RunFiles], folders: Sequence[Path]) -> str:
    many = len(runs) > 4
    return "Cross-class features of " + (
        f"{len(runs)} runs of {', '.join(Path(folder).resolve().name for folder in folders[:4])}"
        if many and len(folders) < len(runs)
        else f"{', '.join(run.name for run in runs[:3])} and {len(runs) - 3} more runs"
        if many
        else ", ".join(run.name for run in runs)
    )


def _track_data(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    tracks = [(run, track) for run in runs for track in run.tracks]
    embedded = states([track for _, track in tracks])
    return [
        {
            "name": track.name,
            "best": None if track.best is None else track.best.epoch,
            "probed": len(track.matrices),
            "states": [drawn | {"title": _state_title(track, drawn["epoch"])} for drawn in of_track],
            "pairs": pairs_along_epochs(track, _TOP_PAIRS),
            "measured": describe_measurement([run]),
        }
        for (run, track), of_track in zip(tracks, embedded, strict=True)
    ]


def _state_title(track: Track, epoch: int) -> str:
    words = f"epoch {epoch}" + (", the best" if track.best is not None and track.best.epoch == epoch else "")
    row = next((row for row in track.rows if row.epoch == epoch), None)
    if row is None:
        return words
    shown = [metric_of(name) for name in ("test_robust_accuracy", "cas")]
    figures = (f"{metric.heading} = {in_words(track, metric, track.figure(row, metric.name))}" for metric in shown)
    return f"{words}: {', '.join(figures)}"


def _notes(runs: Sequence[RunFiles], data: dict[str, Any]) -> list[str]:
    """What a reader must know before comparing."""
    notes = []
    if len({threat_sentence(run.robust_threat) for run in runs}) > 1:
        under = "; ".join(f"{run.name}: {threat_sentence(run.robust_threat)}" for run in runs)
        notes.append(f"The runs are measured under different attacks, so RA and CAS differ by them too ({under}).")
    if len({run.measured.provenance.get("images") for run in runs} - {None}) > 1:
        notes.append(
            "The runs' test images are of one name and number, and their pixels differ: so do figures by them."
        )
    if any(run.selected_by.startswith("test") for run in runs):
        notes.append("The best epoch is chosen on the test images, which flatters it.")
    for run in runs:
        planned = run.recipe["optim"]["epochs"]
        if len(run.rows) < planned:
            notes.append(f"{run.name} has {len(run.rows)} of {counted(planned, 'epoch')}.")
    for shown in data["tracks"]:
        if len(shown["states"]) < shown["probed"]:
            notes.append(
                f"{shown['name']}: the matrices of {len(shown['states'])} of {shown['probed']} probed epochs are in "
                "this page, evenly chosen, with the best; the run's folder has all."
            )
    has_confusions = any(track.confusions for run in runs for track in run.tracks)
    if has_confusions and not any(state["confusions"] for shown in data["tracks"] for state in shown["states"]):
        notes.append("The confusions are left out: with them the page would be larger than 8 MB. The runs have them.")
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


def _unbroken(cell: str) -> str:
    """A number is not parted from its unit or its spread at the end of a line."""
    return re.sub(r" (?=%|points)| ± ", lambda gap: gap[0].replace(" ", "\N{NO-BREAK SPACE}"), cell)


def _json_inside_html(data: object) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
