"""scikit-learn's digits, which need no download: 8×8 scans, 1 channel, 0..16 scaled to 0..255."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccf_plugin.zoo.readers.reader import Arrays, Reader, register_reader

_TEST_PER_CLASS = 45


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> Arrays:
    """The scans: 45 test images of each class, the rest for training."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    # Spread evenly over each class, since neighbours were written by one hand; no random numbers, so that every
    # machine and every version of NumPy and scikit-learn has the same split.
    in_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        in_test[rows[np.arange(_TEST_PER_CLASS) * len(rows) // _TEST_PER_CLASS]] = True
    masks = {"train": ~in_test, "test": in_test}
    return Arrays({split: (images[mask], labels[mask]) for split, mask in masks.items()}, tuple(map(str, range(10))))


register_reader(Reader("digits", "digits", _read))
