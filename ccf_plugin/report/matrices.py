"""Matrices in a page: which epochs are embedded, and how."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ccf_plugin.probe.classes import top_pairs
from ccf_plugin.runs.reading import Track

if TYPE_CHECKING:
    pass

_CHARACTERS = 2_750_000  # for all matrices of a page: with plotly.js (4.8 MB) and the rest it stays under 8 MB
_STEPS = 32767  # int16 steps of a cosine: errors of 1.5e-5 at most
_MISSING = -32768


def encode(track: Track, epochs: Sequence[int]) -> str:
    """The upper triangles (diagonal included) of C at these epochs, as base64 of little-endian int16.

    C is symmetric, and a cosine: a step is 1/32767, and the least integer stands for NaN.
    """
    stacked = np.stack([track.matrices[epoch] for epoch in epochs])
    upper = stacked[:, *np.triu_indices(stacked.shape[-1])]
    steps = np.where(np.isnan(upper), _MISSING, np.rint(np.nan_to_num(upper).clip(-1, 1) * _STEPS))
    return b64encode(steps.astype("<i2").tobytes()).decode()


def embedded_epochs(track: Track, tracks: int) -> list[int]:
    """The epochs whose matrices the page holds: all, or so many as fit, evenly, with first, best and last.

    Args:
        track: the model along the epochs.
        tracks: how many share the page.
    """
    epochs = list(track.matrices)
    room = max(3, _CHARACTERS // (tracks * len(encode(track, epochs[:1]))))
    if len(epochs) <= room:
        return epochs
    embedded = {epochs[round(place)] for place in np.linspace(0, len(epochs) - 1, room - 1)}
    return sorted(embedded | ({track.probed(track.best.epoch)} if track.best is not None else set()))


def pairs_along_epochs(track: Track, count: int) -> dict[str, Any]:
    """C[i, j] at every probed epoch for the pairs that share most at the best epoch (the last, where none is best)."""
    at = track.probed(track.best.epoch if track.best is not None else track.rows[-1].epoch)
    pairs = top_pairs(track.matrices[at], count)
    values = [
        [None if np.isnan(value := matrix[i, j]) else round(float(value), 4) for matrix in track.matrices.values()]
        for i, j in pairs
    ]
    return {"at": at, "epochs": list(track.matrices), "pairs": pairs, "values": values}
