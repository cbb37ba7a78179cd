"""A run folder as the report reads it: log, results, recipe, environment, pictures. Nothing is written."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import InputError
from ccf_plugin.files import expanded_path, flattened
from ccf_plugin.probe.presentation import conditions_of_images, described_data
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.environment import read_environment
from ccf_plugin.runs.layout import AVERAGE, LOG, PROBE, RECIPE, SALIENCY, result_of
from ccf_plugin.runs.log import EpochRow, best_row, read_log, selecting_figure


@dataclass(frozen=True)
class ListedRun:
    """A run's folder; what it is called, and what its method is called, where a study says so."""

    folder: Path
    label: str | None = None
    method: str | None = None


@dataclass(frozen=True)
class Track:
    """One model along a run's epochs: its raw weights, or their average.

    Attributes:
        name: the run's, and what weights these are where there are several.
        suffix: "" or ``AVERAGE``, by which the log's columns and the results' files are known.
        rows: the log.
        best: the row of the best checkpoint, or None where no epoch was evaluated.
        matrices: C by epoch, each (K, K) float64.
        confusions: by epoch, and by the images that were classified ("clean", "under attack"), (K, K) int32.
        counts: images by class, (K,) int64; None where unknown.
    """

    name: str
    suffix: str
    rows: Sequence[EpochRow]
    best: EpochRow | None
    matrices: Mapping[int, NDArray[np.float64]]
    confusions: Mapping[int, Mapping[str, NDArray[np.int32]]] = field(default_factory=dict)
    counts: NDArray[np.int64] | None = None

    def figure(self, row: EpochRow | None, name: str) -> float | None:
        """A figure of these weights, such as "cas"; None where it was not measured, or is of the raw weights alone.

        ``row`` None is an epoch that has none.
        """
        value: float | None = getattr(row, f"{name}{self.suffix}", None)
        return value

    @property
    def evaluated(self) -> list[EpochRow]:
        """The epochs at which the test images were seen."""
        return [row for row in self.rows if self.figure(row, "test_clean_accuracy") is not None]

    @property
    def last(self) -> EpochRow | None:
        """The last epoch at which the test images were seen."""
        return self.evaluated[-1] if self.evaluated else None

    def probed(self, epoch: int) -> int:
        """The epoch nearest to this one that has a matrix (the later of two)."""
        return min(self.matrices, key=lambda measured: (abs(measured - epoch), -measured))


@dataclass(frozen=True)
class RunFiles:
    """A run. ``classes``, ``data``, ``threat`` and ``robust_threat`` are those of its results (``CrossClassResult``).

    ``recipe`` has every default spelled out, as training writes it. ``measured`` is the first of its results, for what
    all have in common. ``method`` is what a study calls the run without its seed, or None.
    """

    folder: Path
    name: str
    tracks: Sequence[Track]
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    classes: tuple[str, ...]
    data: Mapping[str, Any] | None
    threat: Mapping[str, Any] | None
    robust_threat: Mapping[str, Any] | None
    measured: CrossClassResult
    selected_by: str
    saliency: Sequence[Path]
    method: str | None = None

    @property
    def rows(self) -> Sequence[EpochRow]:
        """The log."""
        return self.tracks[0].rows


def read_runs(folders: Sequence[Path | ListedRun]) -> list[RunFiles]:
    """The runs, checked to be comparable.

    Raises:
        InputError: a folder that is no run, has no results, or has a damaged file; runs of different classes or data.
    """
    listed = [one if isinstance(one, ListedRun) else ListedRun(one) for one in folders]
    resolved = [Path(os.path.realpath(expanded_path(one.folder))) for one in listed]
    twice = next((folder for place, folder in enumerate(resolved) if folder in resolved[:place]), None)
    if twice is not None:
        raise InputError(f"expected each run once, found {twice} twice")
    last_parts = [folder.name for folder in resolved]
    names = last_parts if len(set(last_parts)) == len(listed) else [str(one.folder) for one in listed]
    runs = [
        replace(_read_run(folder, one.label or name), method=one.method)
        for one, folder, name in zip(listed, resolved, names, strict=True)
    ]
    for other in runs[1:]:
        _check_same(runs[0].name, runs[0].measured, other.name, other.measured)
    return runs


def _read_run(folder: Path, name: str) -> RunFiles:
    if not (folder / RECIPE).is_file() or not (folder / LOG).is_file():
        raise InputError(f"expected a run folder, which has {RECIPE} and {LOG}, found {folder} without them")
    rows = read_log(folder)
    if not rows:
        raise InputError(f"expected a run with finished epochs in {folder}, found none yet")
    recipe_text, recipe = _read_recipe(folder / RECIPE)
    by_suffix = _read_results(folder)
    is_adversarial = any(row.train_robust_accuracy is not None for row in rows)
    selected_by = selecting_figure(recipe["evaluate"]["select"], is_adversarial=is_adversarial)
    best = {suffix: best_row(rows, f"{selected_by}{suffix}") for suffix in ("", AVERAGE)}
    for suffix, row in best.items():
        if row is not None and (at_best := _read_best(folder, suffix, row)) is not None:
            by_suffix[suffix] = dict(sorted(({row.epoch: at_best} | by_suffix.get(suffix, {})).items()))
    if not by_suffix.get(""):
        raise InputError(
            f"expected probe results in {folder / PROBE}, found none; the recipe's evaluate.every and probe.every "
            "say at which epochs a run writes them"
        )
    first = next(iter(by_suffix[""].values()))
    tracks = []
    for suffix, results in sorted(by_suffix.items()):
        for epoch, result in results.items():
            _check_same(name, first, f"its epoch {epoch}", result)
        weights = "" if len(by_suffix) == 1 else ", averaged weights" if suffix else ", raw weights"
        matrices = {epoch: result.matrix for epoch, result in results.items()}
        confusions = {epoch: found for epoch, result in results.items() if (found := _confusions(result))}
        counts = next(iter(results.values())).counts
        tracks.append(Track(name + weights, suffix, rows, best[suffix], matrices, confusions, counts))
    return RunFiles(
        folder=folder,
        name=name,
        tracks=tracks,
        recipe=recipe,
        recipe_text=recipe_text,
        environment=read_environment(folder),
        classes=first.names,
        data=first.data,
        threat=first.threat,
        robust_threat=first.robust_threat,
        measured=first,
        selected_by=selected_by,
        saliency=sorted(path for path in (folder / SALIENCY).glob("*.png") if path.is_file()),
    )


def _confusions(result: CrossClassResult) -> dict[str, NDArray[np.int32]]:
    known = {"clean": result.confusion_clean, "under attack": result.confusion_adversarial}
    return {images: matrix.astype("int32") for images, matrix in known.items() if matrix is not None}


def _read_results(folder: Path) -> dict[str, dict[int, CrossClassResult]]:
    """The results by suffix and epoch, epochs ascending."""
    results: dict[str, dict[int, CrossClassResult]] = {}
    for path in (folder / PROBE).glob("*.json"):
        if match := re.fullmatch(rf"(\d+)({AVERAGE})?", path.stem):
            results.setdefault(match[2] or "", {})[int(match[1])] = CrossClassResult.load(path)
    return {suffix: dict(sorted(results[suffix].items())) for suffix in sorted(results)}


def _read_best(folder: Path, suffix: str, row: EpochRow) -> CrossClassResult | None:
    """The result of the best epoch; None where there is none, or a killed run left that of an epoch not in the log."""
    path = result_of(folder, "best", suffix).with_suffix(".json")
    logged = getattr(row, f"cas{suffix}")
    if not path.is_file() or logged is None:
        return None
    result = CrossClassResult.load(path)
    return result if math.isclose(result.cas, logged, rel_tol=1e-4, abs_tol=1e-4) else None


def _read_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        recipe = tomllib.loads(text)
        _check_recipe(recipe)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"expected the recipe of a run in {path}, found none that can be read ({error})") from None
    return text, recipe


def _check_recipe(recipe: Mapping[str, Any]) -> None:
    """Raise where the keys that the page reads are not what a recipe has there: the values' types, then what lacks."""
    for section in ("objective", "evaluate", "optim", "published"):
        if not isinstance(table := recipe.get(section, {}), dict):
            raise ValueError(f"{section} = {table!r}")
    values, types = flattened(recipe), {"objective.loss": str, "evaluate.select": str, "optim.epochs": int}
    for key, kind in types.items():
        if key in values and not isinstance(values[key], kind):
            raise ValueError(f"{key} = {values[key]!r}")
    if (select := values.get("evaluate.select", "test")) not in ("test", "validation"):
        raise ValueError(f"evaluate.select = {select!r}")
    published = recipe.get("published", {})
    for entry in (entry for source in (published, *published.get("also", ())) for entry in source.get("figures", ())):
        figures = [value for key, value in entry.items() if key != "at"]
        if not isinstance(entry["at"], int | str) or not all(map(math.isfinite, figures)):
            raise ValueError(f"published.figures with {entry!r}")
    if missing := [key for key in types if key not in values]:
        raise ValueError(f"no {missing[0]}")


def _check_same(name: str, first: CrossClassResult, other: str, second: CrossClassResult) -> None:
    """CAS depends on the classes and on the images, their number included."""
    if first.names != second.names:
        numbers: tuple[object, object] = len(first.names), len(second.names)
        pairs = zip(map(repr, first.names), map(repr, second.names), strict=False)
        differing = numbers if numbers[0] != numbers[1] else next(pair for pair in pairs if pair[0] != pair[1])
        raise InputError(
            f"expected results of the same classes, found {differing[0]} in {name} and {differing[1]} in {other}"
        )
    if _are_other_images(first.data, second.data):
        raise InputError(
            f"expected results on the same images, found {describe_data(first.data)} in {name} and "
            f"{describe_data(second.data)} in {other}; CAS depends on them: report the runs apart"
        )


def _are_other_images(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool:
    if first is None or second is None:
        return first is not second
    known = [{"count": data.get("count"), **conditions_of_images(data)} for data in (first, second)]
    return any(known[0][name] != known[1][name] for name in known[0].keys() & known[1].keys())


def describe_data(data: Mapping[str, Any] | None) -> str:
    """The images of a result in words."""
    return "unnamed images" if data is None else described_data(data)
