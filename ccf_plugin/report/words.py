"""A run in words and tables: what the page says beside its pictures, and instead of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccf_plugin.runs.alarms import alarms_in_words
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.runs.reading import RunFiles, Track

FIGURES = {"test_clean_accuracy": "clean accuracy", "test_robust_accuracy": "RA", "cas": "CAS"}
_PUBLISHED_AS = {"test_clean_accuracy": "clean_accuracy", "test_robust_accuracy": "robust_accuracy", "cas": "cas"}


def format_figure(name: str, value: float | None) -> str:
    """An accuracy in percent, CAS with one decimal; "–" for what was not measured."""
    if value is None:
        return "–"
    return f"{value:.1f}" if "cas" in name else f"{100 * value:.1f} %"


def describe_saliency(picture: Path) -> str:
    """What a picture of ``ccf saliency`` shows, by the JSON that was written with it; "" where there is none such."""
    features = picture.stem.endswith("-features")
    try:
        found = json.loads(picture.with_name(f"{picture.stem.removesuffix('-features')}.json").read_text("utf-8"))
        if features:
            pair = found["pair"]
            shares = ", ".join(f"{entry['feature']} ({entry['share']:+.3f})" for entry in pair["features"])
            return (
                f"The images that excite most the features which carry C[{', '.join(pair['classes'])}] = "
                f"{pair['correlation']:.2f}: {shares}."
            )
        seen = (f"{one['class']} {one['index']}: {one['best']}, {one['last']}" for one in found["examples"])
        return f"Test images, where the first and the second model look, and what they say. {'; '.join(seen)}."
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def summarise(run: RunFiles, track: Track) -> str:
    """What a reader who sees no picture should know of a track."""
    measured = track.evaluated
    if not measured or track.best is None:
        return f"{track.name}: {len(track.rows)} epochs, none of them evaluated."
    last = measured[-1]

    def at(row: EpochRow) -> str:
        figures = (f"{label} {format_figure(name, track.figure(row, name))}" for name, label in FIGURES.items())
        return f"epoch {row.epoch} ({', '.join(figures)})"

    parts = [
        f"{track.name}: best at {at(track.best)} by {run.selected_by.replace('_', ' ')}",
        f"last evaluated at {at(last)}",
    ]
    if not track.suffix:
        parts += alarms_in_words(track.rows) or ["no alarm in the log"]
    return "; ".join(parts) + "."


def along_epochs(track: Track) -> dict[str, Any]:
    """The table behind the curves: a heading, and a row for each evaluated epoch."""
    columns = ["train_robust_accuracy", *FIGURES, "instance_cas", "validation_robust_accuracy"]
    rows = track.evaluated
    columns = [name for name in columns if any(track.figure(row, name) is not None for row in rows)]
    labels = {
        "train_robust_accuracy": "train RA",
        "instance_cas": "I-CAS",
        "validation_robust_accuracy": "validation RA",
        **FIGURES,
    }
    return {
        "name": track.name,
        "columns": ["epoch", *(labels[name] for name in columns), "alarm"],
        "rows": [
            [
                f"{row.epoch}{' (best)' if row is track.best else ''}",
                *(format_figure(name, track.figure(row, name)) for name in columns),
                "" if track.suffix else row.alarm,
            ]
            for row in rows
        ],
    }


def against_published(run: RunFiles, track: Track) -> dict[str, Any]:
    """Best and last epoch and those with published figures: what was measured, what was published, the difference.

    Without published figures the table has the measured ones alone; so have the raw weights of a run that averages,
    since what was published is of the method's output.
    """
    is_output = track is run.tracks[-1]
    published: Mapping[str, Any] = run.recipe.get("published", {}) if is_output else {}
    by_place: dict[int | str, Mapping[str, float]] = {entry["at"]: entry for entry in published.get("figures", ())}
    evaluated = track.evaluated
    places: dict[int | str, EpochRow | None] = {row.epoch: row for row in evaluated if row.epoch in by_place}
    places |= {place: None for place in by_place if isinstance(place, int) and place not in places}
    rows = dict(sorted(places.items(), key=lambda pair: int(pair[0])))
    rows |= {"best": track.best, "last": evaluated[-1] if evaluated else None}
    names = [name for name in FIGURES if any(_PUBLISHED_AS[name] in entry for entry in by_place.values())]
    return {
        "name": track.name,
        "columns": ["epoch", *FIGURES.values(), *(f"published {FIGURES[name]}" for name in names)],
        "rows": [
            [
                _place(place, row),
                *(format_figure(name, None if row is None else track.figure(row, name)) for name in FIGURES),
                *(_published(track, row, name, by_place.get(place, {})) for name in names),
            ]
            for place, row in rows.items()
        ],
        "is_output": is_output,
        "source": published.get("source"),
        "changed": published.get("changed", []),
    }


def _place(place: int | str, row: EpochRow | None) -> str:
    if row is None:
        return f"{place} (not evaluated)"
    return str(place) if isinstance(place, int) else f"{place} ({row.epoch})"


def _published(track: Track, row: EpochRow | None, name: str, entry: Mapping[str, float]) -> str:
    value = entry.get(_PUBLISHED_AS[name])
    measured = None if row is None else track.figure(row, name)
    if value is None:
        return ""
    if measured is None:
        return format_figure(name, value)
    difference = (measured - value) * (1 if name == "cas" else 100)
    return f"{format_figure(name, value)} (here {difference:+.1f})".replace("-", "\N{MINUS SIGN}")


def recipe_differences(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """The keys in which the runs' recipes differ, with each run's value."""
    flat = [_flat({key: value for key, value in run.recipe.items() if key != "published"}) for run in runs]
    keys = sorted({key for one in flat for key in one})
    differing = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    return {
        "columns": ["key", *(run.name for run in runs)],
        "rows": [[key, *(str(one.get(key, "–")) for one in flat)] for key in differing],
    }


def environment_rows(run: RunFiles) -> list[tuple[str, str]]:
    """What the run ran on, a line each."""
    shown = {**run.environment, "command": " ".join(map(str, run.environment.get("command", [])))}
    return [(key.replace(".", " "), str(value)) for key, value in _flat(shown).items() if value != ""]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
