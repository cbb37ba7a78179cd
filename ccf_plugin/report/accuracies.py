"""Which classes a model recognises, and which it takes for which: at the best and at the last epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ccf_plugin.probe.confidence import wilson
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.metrics import metric_of
from ccf_plugin.runs.reading import Track

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHARACTERS = 250_000  # for all confusion matrices of a page


def confusions(tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """The confusion matrices of the tracks' best and last epochs, as the page's script reads them.

    ``counts`` has the place i K + j of each entry that is not 0, and the entry: of a thousand classes most are 0.
    Without those that make the page too large, which are the last.
    """
    shown: list[dict[str, Any]] = []
    room = _CHARACTERS
    for track in tracks:
        prefix = f"{track.name}, " if len(tracks) > 1 else ""
        for epoch, result in track.ends.items():
            for images, matrix in _by_images(result).items():
                places = np.flatnonzero(matrix)
                counts = np.stack([places, matrix.reshape(-1)[places]], 1).reshape(-1).tolist()
                room -= len(json.dumps(counts, separators=(",", ":")))
                if room < 0:
                    return shown
                shown.append({"name": f"{prefix}{_named(track, epoch)}, {images}", "counts": counts})
    return shown


def class_accuracies(track: Track) -> dict[str, Any] | None:
    """The accuracy on each class, a row each, at the best and the last epoch; None where it was not measured."""
    columns: dict[str, NDArray[np.float64]] = {}
    for epoch, result in track.ends.items():
        for images, matrix in _by_images(result).items():
            totals = matrix.sum(1)
            share = np.diagonal(matrix) / np.maximum(totals, 1)
            columns[f"{_named(track, epoch)}, {images}"] = np.where(totals > 0, share, np.nan)
    if not columns:
        return None
    result = next(iter(track.ends.values()))
    write = metric_of("test_clean_accuracy").in_report
    most = int(result.counts.max())
    half, (low, high) = most // 2 / most, wilson(most // 2, most)
    return {
        "name": track.name,
        "columns": ["class", "images", *columns],
        "rows": [
            [name, str(result.counts[index])]
            + [write(None if np.isnan(value := column[index]) else float(value)) for column in columns.values()]
            for index, name in enumerate(result.names)
        ],
        "interval": f"Of {most} images, the 95 % interval of {write(half)} is {write(low)} to {write(high)}.",
    }


def _by_images(result: CrossClassResult) -> dict[str, NDArray[np.int64]]:
    known = {"clean": result.confusion_clean, "under attack": result.confusion_adversarial}
    return {images: matrix for images, matrix in known.items() if matrix is not None}


def _named(track: Track, epoch: int) -> str:
    is_best = track.best is not None and track.best.epoch == epoch
    return f"{'best' if is_best else 'last'} ({epoch})"
