"""Runs of one method that differ in their seed alone, and folders that hold many runs, such as a study's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccf_plugin.errors import InputError
from ccf_plugin.files import by_numbers_inside, expanded_path, flattened
from ccf_plugin.runs.layout import LOG, RECIPE, STUDY
from ccf_plugin.runs.log import read_log
from ccf_plugin.runs.reading import ListedRun, RunFiles, Track
from ccf_plugin.runs.study_file import read_study


@dataclass(frozen=True)
class Listing:
    """The runs of some folders.

    Attributes:
        runs: those with finished epochs.
        left_out: the others of a study, with why.
        baseline: the method that a study compares the others with, or None.
    """

    runs: Sequence[ListedRun]
    left_out: Sequence[str] = ()
    baseline: str | None = None


@dataclass(frozen=True)
class Seeds:
    """One method's weights of one kind: ``tracks`` by seed."""

    name: str
    method: str | None
    suffix: str
    tracks: Mapping[object, Track]


def list_runs(folders: Sequence[Path]) -> Listing:
    """The runs that folders are or hold: a run folder is one; else the runs of its study.json, or those right in it.

    Raises:
        InputError: a study.json that cannot be read, or that names no run with finished epochs.
    """
    runs: list[ListedRun] = []
    left_out: list[str] = []
    baselines = []
    for folder in map(expanded_path, folders):
        if (folder / STUDY).is_file():
            listing = _of_study(folder)
            runs += listing.runs
            left_out += listing.left_out
            baselines.append(listing.baseline)
        else:
            runs += [ListedRun(run) for run in _runs_in(folder)] or [ListedRun(folder)]
    return Listing(runs, left_out, next(filter(None, baselines), None))


def _is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file() and (folder / LOG).is_file()


def _runs_in(folder: Path) -> list[Path]:
    """The folders with finished epochs that lie right in one that is no run itself."""
    if _is_run(folder) or not folder.is_dir():
        return []
    children = sorted(folder.iterdir(), key=lambda child: by_numbers_inside(child.name))
    return [child for child in children if _is_run(child) and read_log(child)]


def _of_study(folder: Path) -> Listing:
    study = read_study(folder)
    runs, left_out = [], []
    for run in study["runs"]:
        place = folder / run["folder"]
        if _is_run(place) and read_log(place):
            runs.append(ListedRun(place, run["label"], run["name"]))
        else:
            left_out.append(f"{run['label']} ({run['status']})")
    if not runs:
        raise InputError(f"expected a study with a run that has finished epochs in {folder}, found none yet")
    baseline = study.get("baseline")
    return Listing(runs, left_out, baseline if isinstance(baseline, str) else None)


def by_seed(runs: Sequence[RunFiles]) -> list[Seeds]:
    """The runs' weights, in groups of one method, in the order of the runs.

    One method are runs that a study calls by one name, else those whose recipes differ in ``seed`` alone. A second run
    of the same seed is a group of its own: it is no other seed.
    """
    groups: dict[tuple[str | None, str, str, int], dict[object, Track]] = {}
    for run in runs:
        recipe = {key: value for key, value in flattened(run.recipe).items() if not key.startswith("published")}
        seed = recipe.pop("seed", None)
        same = run.method or json.dumps(recipe, sort_keys=True, default=str)
        for track in run.tracks:
            turn = 0
            while seed in groups.get((run.method, same, track.suffix, turn), {}):
                turn += 1
            groups.setdefault((run.method, same, track.suffix, turn), {})[seed] = track
    return [
        Seeds(_common_name([track.name for track in tracks.values()], method), method, suffix, tracks)
        for (method, _, suffix, _), tracks in groups.items()
    ]


def _common_name(names: Sequence[str], method: str | None) -> str:
    """What the names of one method's runs have in common; the method's own, with what weights these are."""
    if len(names) == 1:
        return names[0]
    weights = re.search(r", (raw|averaged) weights$", names[0])
    ending = weights[0] if weights else ""
    stems = [name.removesuffix(ending) for name in names]
    apart = (at for at, letters in enumerate(zip(*stems, strict=False)) if len(set(letters)) > 1)
    common = stems[0][: next(apart, min(map(len, stems)))]
    common = re.sub(r"([\s,._=-]+(seed|s)?[\s,._=-]*\d*|seed\d*)$", "", common)
    return (method or common or f"{stems[0]} and {len(names) - 1} more") + ending


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and (sample) standard deviation over seeds, of two or more."""
    return float(np.mean(values)), float(np.std(values, ddof=1))
