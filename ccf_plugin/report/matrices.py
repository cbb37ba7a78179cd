"""C and the confusions of each epoch in a page: which epochs are embedded, and how."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import InputError
from ccf_plugin.probe.classes import top_pairs
from ccf_plugin.probe.confidence import wilson
from ccf_plugin.runs.reading import Track

_CHARACTERS = 2_750_000  # for all epochs of a page: with plotly.js (4.8 MB) and the rest it stays under 8 MB
_STEPS = 32767  # int16 steps of a cosine: errors of 1.5e-5 at most
_MISSING = -32768


def encode(matrix: NDArray[np.float64]) -> str:
    """The upper triangle (diagonal included) of C, as base64 of little-endian int16.

    C is symmetric, and a cosine: a step is 1/32767, and the least integer stands for NaN.
    """
    upper = matrix[np.triu_indices(len(matrix))]
    steps = np.where(np.isnan(upper), _MISSING, np.rint(np.nan_to_num(upper).clip(-1, 1) * _STEPS))
    return b64encode(steps.astype("<i2").tobytes()).decode()


def state(track: Track, epoch: int, *, with_confusions: bool = True) -> dict[str, Any]:
    """What the page's script draws of an epoch.

    ``confusions`` has, by the images that were classified, the place i K + j of each entry that is not 0, and the
    entry: of a thousand classes most are 0. ``accuracies`` has each class's accuracy with Wilson's 95 % interval, or
    null for a class without images.
    """
    found = track.confusions.get(epoch, {}) if with_confusions else {}
    return {
        "epoch": epoch,
        "C": encode(track.matrices[epoch]),
        "confusions": {images: _sparse(matrix) for images, matrix in found.items()},
        "accuracies": {images: _by_class(matrix) for images, matrix in found.items()},
    }


def states(tracks: Sequence[Track]) -> list[list[dict[str, Any]]]:
    """The epochs that a page holds of each track: all, or so many as fit, evenly, with first, best and last.

    Where not even three epochs of each fit, the confusions are left out, and then all epochs but the best.

    Raises:
        InputError: not even C of the best epochs fits.
    """
    for with_confusions in (True, False):
        largest = [
            max(_size(state(track, epoch, with_confusions=with_confusions)) for epoch in embedded_epochs(track, 3))
            for track in tracks
        ]
        room = _CHARACTERS // (len(tracks) * max(largest))
        if room >= 3:
            break
    if not room:
        raise InputError(
            f"expected matrices of {_CHARACTERS / 1e6:.1f} MB in all, found that C at the best epoch alone is "
            f"{max(largest) / 1e6:.1f} MB for each of {len(tracks)} models; report fewer runs together"
        )
    return [
        [state(track, epoch, with_confusions=with_confusions) for epoch in embedded_epochs(track, room)]
        for track in tracks
    ]


def embedded_epochs(track: Track, room: int) -> list[int]:
    """All probed epochs, or ``room`` of them: the best first, then the last and the first, then others evenly."""
    epochs = list(track.matrices)
    if len(epochs) <= room:
        return epochs
    best = [] if track.best is None else [track.probed(track.best.epoch)]
    evenly = [epochs[round(place)] for place in np.linspace(len(epochs) - 1, 0, max(room - 1, 2))]
    kept = dict.fromkeys([*best, evenly[0], evenly[-1], *evenly])
    return sorted(list(kept)[:room])


def pairs_along_epochs(track: Track, count: int) -> dict[str, Any]:
    """C[i, j] at every probed epoch for the pairs that share most at the best epoch (the last, where none is best)."""
    at = track.probed(track.best.epoch if track.best is not None else track.rows[-1].epoch)
    pairs = top_pairs(track.matrices[at], count)
    values = [
        [None if np.isnan(value := matrix[i, j]) else round(float(value), 4) for matrix in track.matrices.values()]
        for i, j in pairs
    ]
    return {"at": at, "epochs": list(track.matrices), "pairs": pairs, "values": values}


def _size(content: Mapping[str, Any]) -> int:
    return len(json.dumps(content, separators=(",", ":")))


def _sparse(matrix: NDArray[np.int32]) -> list[int]:
    places = np.flatnonzero(matrix)
    return np.stack([places, matrix.reshape(-1)[places]], 1).reshape(-1).tolist()


def _by_class(matrix: NDArray[np.int32]) -> list[list[float] | None]:
    totals = matrix.sum(1).tolist()
    return [
        [round(right / total, 4), *_interval(right, total)] if total else None
        for right, total in zip(np.diagonal(matrix).tolist(), totals, strict=True)
    ]


@lru_cache(maxsize=10_000)
def _interval(right: int, total: int) -> tuple[float, float]:
    low, high = wilson(right, total)
    return round(low, 4), round(high, 4)
