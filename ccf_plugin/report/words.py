"""A run in words and tables: what the page says beside its pictures, and instead of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccf_plugin.errors import counted
from ccf_plugin.files import flattened
from ccf_plugin.measuring.paired import paired_intervals
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.alarms import ALARMS, alarms_by_kind, alarms_in_words
from ccf_plugin.runs.layout import result_of
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.runs.metrics import METRICS, Metric, all_metrics, metric_of
from ccf_plugin.runs.reading import RunFiles, Track, describe_data
from ccf_plugin.threat import threat_sentence

_Said = Mapping[int | str, Mapping[str, Any]]  # a source's figures by their place


def headline() -> list[Metric]:
    """The figures by which models are compared: those that papers publish."""
    return [metric for metric in METRICS if metric.published is not None]


def describe_saliency(picture: Path) -> str:
    """What a picture of ``ccf saliency`` shows, by the JSON that was written with it; "" where there is none such."""
    features = picture.stem.endswith("-features")
    try:
        described = json.loads(picture.with_name(f"{picture.stem.removesuffix('-features')}.json").read_text("utf-8"))
        if features:
            pair = described["pair"]
            shares = ", ".join(f"{entry['feature']} ({entry['share']:+.3f})" for entry in pair["features"])
            return (
                f"The images that excite most the features which carry C[{', '.join(pair['classes'])}] = "
                f"{pair['correlation']:.2f}: {shares}."
            )
        result = (
            f"{image['class']} {image['index']}: {image['best']}, {image['last']}" for image in described["examples"]
        )
        return f"Test images, where the first and the second model look, and what they say. {'; '.join(result)}."
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def summarise(run: RunFiles, track: Track) -> str:
    """What a reader who sees no picture should know of a track."""
    measured = track.evaluated
    if not measured or track.best is None:
        return f"{track.name}: {counted(len(track.rows), 'epoch')}, none of them evaluated."
    last = measured[-1]

    def at(row: EpochRow) -> str:
        figures = (f"{metric.heading} {metric.in_report(track.figure(row, metric.name))}" for metric in headline())
        return f"epoch {row.epoch} ({', '.join(figures)})"

    parts = [
        f"{track.name}: best at {at(track.best)} by {run.selected_by.replace('_', ' ')}",
        f"last evaluated at {at(last)}",
    ]
    parts += changes_after_best(track, last)
    parts += cas_with_intervals(run, track)
    if not track.suffix:
        parts += alarms_in_words(track.rows) or ["no alarm in the log"]
    return "; ".join(parts) + "."


def changes_after_best(track: Track, last: EpochRow) -> list[str]:
    """From the best epoch to the last: CAS, how much of that chance is, and the shared part beside the lengths.

    CAS is the shared part with the lengths divided out, so that it also falls where only these grow.
    """
    best = track.best
    if best is None or best is last:
        return []

    def figures(name: str) -> tuple[float, float] | None:
        before, after = (track.figure(row, name) for row in (best, last))
        return None if before is None or after is None else (before, after)

    moved = []
    steps = {name: pair[1] - pair[0] for name in ("cas", "cas_null", "cas_excess") if (pair := figures(name))}
    if len(steps) == 3:
        cas, chance, beyond = (signed(step, ".1f") for step in steps.values())
        moved.append(f"from the best epoch to the last CAS moved by {cas}: by chance {chance}, beyond chance {beyond}")
    ratios = [
        f"{label} by {signed(pair[1] / pair[0] - 1, '.0%').replace('%', ' %')}"
        for label, name in (("the shared part", "shared"), ("the squared lengths", "squared_lengths"))
        if (pair := figures(name)) and pair[0]
    ]
    if ratios:
        moved.append(f"{' and '.join(ratios)}, in variances of the logits")
    return moved


def cas_with_intervals(run: RunFiles, track: Track) -> list[str]:
    """CAS at the best and the last epoch with 95 % intervals, that of their difference, and how many pairs differ."""
    ends = [row for row in (track.best, None if track.last is track.best else track.last) if row is not None]
    results = [(row.epoch, result) for row in ends if (result := _result_of(run, track, row)) is not None]
    shown = [
        f"{metric_of(name).heading} {_cas(low)} to {_cas(high)} at epoch {epoch}"
        for name in ("cas", "cas_excess")
        for epoch, result in results
        if (interval := result.interval(name)) is not None
        for low, high in (interval,)
    ]
    parts = [f"95 % intervals over other images: {', '.join(shown)}"] if shown else []
    if len(results) == 2 and (paired := paired_intervals(results[0][1], results[1][1])) is not None:
        (low, high), bands = paired.cas[2], paired.bands
        parts.append(
            f"CAS of the best epoch less that of the last {_cas(low)} to {_cas(high)}; {bands.surviving_pairs} of "
            f"{bands.pairs} pairs of classes differ, at 95 % together"
        )
    return parts


def _result_of(run: RunFiles, track: Track, row: EpochRow) -> CrossClassResult | None:
    stems = [result_of(run.folder, row.epoch, track.suffix)]
    stems += [result_of(run.folder, "best", track.suffix)] if row is track.best else []
    stem = next((stem for stem in stems if stem.with_suffix(".json").is_file()), None)
    return None if stem is None else CrossClassResult.load(stem)


def _cas(value: float) -> str:
    return metric_of("cas").in_report(value)


def signed(value: float, form: str) -> str:
    return format(value, f"+{form}").replace("-", "\N{MINUS SIGN}")


def describe_measurement(runs: Sequence[RunFiles]) -> str:
    """What the figures of the runs are: attack, images, layer, mode and precision; each once where they agree."""
    first = runs[0].measured

    def each(values: Sequence[str]) -> str:
        return " / ".join(dict.fromkeys(values))

    parts = [
        f"RA under {each([threat_sentence(run.robust_threat) for run in runs])}",
        f"{describe_data(first.data)} ({len(runs[0].classes)} classes)",
    ]
    heads = [run.measured.head for run in runs]
    if named := each([head.name for head in heads if head is not None]):
        parts.append(f"C at the inputs of layer {named}")
    modes = (f"{run.measured.model_mode} mode" for run in runs if run.measured.model_mode)
    precisions = (str(run.measured.precision) for run in runs if run.measured.precision)
    return ", ".join([*parts, *filter(None, (each([*modes]), each([*precisions])))])


def describe_alarms(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """A row for each alarm of each run: at which epochs, and the p of RA's fall at the first."""
    write = metric_of("robust_fall_p").in_report
    rows = []
    for run in runs:
        by_epoch = {row.epoch: row for row in run.rows}
        alarms = zip(alarms_in_words(run.rows), alarms_by_kind(run.rows).items(), strict=True)
        for sentence, (alarm, epochs) in alarms:
            rows.append([run.name, alarm, sentence.partition(" at ")[2], write(by_epoch[epochs[0]].robust_fall_p)])
    return {"columns": ["run", "alarm", "at", "p of RA's fall at the first"], "rows": rows}


def alarm_meanings(runs: Sequence[RunFiles]) -> dict[str, str]:
    """What each alarm of the runs says; of earlier versions', which tested nothing, that they did not."""
    by_rows = [(run, alarms_by_kind(run.rows)) for run in runs]
    meanings = {
        alarm: ALARMS.get(alarm, "an alarm that this version does not know") for _, found in by_rows for alarm in found
    }
    untested = [run.name for run, found in by_rows if found and all(row.robust_fall_p is None for row in run.rows)]
    if untested:
        earlier = "an earlier version wrote these logs and named alarms without a test of images: the log has no p"
        meanings[", ".join(untested)] = earlier
    return meanings


def along_epochs(track: Track) -> dict[str, Any]:
    """The table behind the curves: a heading, and a row for each evaluated epoch."""
    rows = track.evaluated
    shown = [metric for metric in all_metrics() if metric.axis is not None]
    shown = [metric for metric in shown if any(track.figure(row, metric.name) is not None for row in rows)]
    shown.sort(key=lambda metric: metric.split)  # those of the validation images last
    return {
        "name": track.name,
        "columns": ["epoch", *(metric.heading for metric in shown), "alarm"],
        "rows": [
            [
                f"{row.epoch}{' (best)' if row is track.best else ''}",
                *(metric.in_report(track.figure(row, metric.name)) for metric in shown),
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
    sources = {"published": published} | {source["name"]: source for source in published.get("also", ())}
    said: dict[str, _Said] = {
        name: {entry["at"]: entry for entry in source.get("figures", ())} for name, source in sources.items()
    }
    evaluated = track.evaluated
    epochs = {place for by_place in said.values() for place in by_place if isinstance(place, int)}
    places: dict[int | str, EpochRow | None] = dict.fromkeys(epochs)
    places |= {row.epoch: row for row in evaluated if row.epoch in epochs}
    rows = dict(sorted(places.items(), key=lambda pair: int(pair[0])))
    rows |= {"best": track.best, "last": evaluated[-1] if evaluated else None}
    figures = headline()
    compared = [
        (name, metric)
        for name, by_place in said.items()
        for metric in figures
        if any(metric.published in entry for entry in by_place.values())
    ]
    return {
        "name": track.name,
        "columns": [
            "epoch",
            *(metric.heading for metric in figures),
            *(f"{name} {metric.heading}" for name, metric in compared),
        ],
        "rows": [
            [
                _place(place, row),
                *(metric.in_report(track.figure(row, metric.name)) for metric in figures),
                *(
                    _published(said[name].get(place, {}), track.figure(row, metric.name), metric)
                    for name, metric in compared
                ),
            ]
            for place, row in rows.items()
        ],
        "is_output": is_output,
        "source": published.get("source"),
        "also": [f"{source['name']}: {source['source']}" for source in published.get("also", ())],
        "standing": _standing(track, said, published.get("also", ())),
        "changed": published.get("changed", []),
    }


def _standing(track: Track, said: Mapping[str, _Said], also: Sequence[Mapping[str, Any]]) -> str:
    """How far the best RA lies from each source's, the nearest first, and why these differ; "" for fewer than two."""
    metric = metric_of("test_robust_accuracy")
    known = {
        name: value for name, by_place in said.items() if (value := by_place.get("best", {}).get("robust_accuracy"))
    }
    measured = track.figure(track.best, metric.name)
    if measured is None or len(known) < 2:
        return ""
    nearest = sorted(known, key=lambda name: abs(measured - known[name]))
    distances = [
        f"{signed((measured - known[name]) * metric.unit, '.1f')} points from the {metric.in_report(known[name])} of "
        f"{'the source above' if name == 'published' else name}"
        for name in nearest
    ]
    reasons = [f" {source['why']}." for source in also if source.get("why")]
    return f"The best RA, {metric.in_report(measured)}, stands {' and '.join(distances)}.{''.join(reasons)}"


def _place(place: int | str, row: EpochRow | None) -> str:
    if row is None:
        return f"{place} (not evaluated)"
    return str(place) if isinstance(place, int) else f"{place} ({row.epoch})"


def _published(entry: Mapping[str, float], measured: float | None, metric: Metric) -> str:
    value = entry.get(metric.published or "")
    if value is None:
        return ""
    if measured is None:
        return metric.in_report(value)
    difference = (measured - value) * metric.unit
    return f"{metric.in_report(value)} (here {difference:+.1f})".replace("-", "\N{MINUS SIGN}")


def recipe_differences(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """The keys in which the runs' recipes differ, with each run's value."""
    recipes = [flattened({key: value for key, value in run.recipe.items() if key != "published"}) for run in runs]
    keys = sorted({key for recipe in recipes for key in recipe})
    differing = [key for key in keys if len({str(recipe.get(key)) for recipe in recipes}) > 1]
    return {
        "columns": ["key", *(run.name for run in runs)],
        "rows": [[key, *(str(recipe.get(key, "–")) for recipe in recipes)] for key in differing],
    }


def environment_rows(run: RunFiles) -> list[tuple[str, str]]:
    """What the run ran on, a line each."""
    shown = {**run.environment, "command": " ".join(map(str, run.environment.get("command", [])))}
    return [(key.replace(".", " "), str(value)) for key, value in flattened(shown).items() if value != ""]
