"""The most robust epoch's RA without what choosing it on the same images adds."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.files import write_atomically
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.layout import records_of, results_of
from ccf_plugin.runs.log import EpochRow, best_row
from ccf_plugin.runs.metrics import metric_of

BIASED = "test_robust_accuracy"  # the figure that chooses an epoch on the images that its RA is of
CLEAN = "test_clean_accuracy"


def two_fold_accuracy(withstands: NDArray[np.bool_], *, seed: int = 0) -> float:
    """RA of the epoch with the highest RA, on images that had no part in choosing it.

    The highest of many accuracies on the same images lies above the accuracy of that epoch on others: among epochs of
    equal accuracy that one is chosen whose errors fall elsewhere. So the images are halved at random. One half
    chooses the epoch (the first of equals), the other measures it; then the other way round, and the mean is returned.
    It is an unbiased estimate of the accuracy of an epoch that is chosen on half of the images.

    Args:
        withstands: whether each image is classified right under attack, (epochs, N) bool, the same images in each row.
        seed: of the halves.

    Returns:
        A fraction.

    Raises:
        ValueError: fewer than two images, or no epoch.
    """
    epochs, images = withstands.shape
    if not epochs or images < 2:
        raise ValueError(f"expected epochs with two images or more, found an array of shape {withstands.shape}")
    order = np.random.default_rng(seed).permutation(images)
    halves = [withstands[:, half].mean(1) for half in (order[: images // 2], order[images // 2 :])]
    return float(np.mean([measured[chosen.argmax()] for chosen, measured in (halves, halves[::-1])]))


def selection_free_accuracy(run: Path, rows: Sequence[EpochRow], selected_by: str, suffix: str = "") -> float | None:
    """`two_fold_accuracy` of a run's evaluated epochs, from its records of images.

    Args:
        run: the folder.
        rows: its log.
        selected_by: the figure that chose its best epoch.
        suffix: of the weights, "" or ``AVERAGE``.

    Returns:
        None where test RA did not choose, where fewer than two epochs were evaluated, or where the records of one are
        missing, damaged, or not those of its RA.
    """
    figure = f"{BIASED}{suffix}"
    evaluated = [row for row in rows if getattr(row, figure) is not None]
    if selected_by != BIASED or len(evaluated) < 2:
        return None
    best = best_row(rows, figure)
    records = [record_of(run, row, suffix, is_best=row is best) for row in evaluated]
    whole = [record for record in records if record is not None]
    if len(whole) < len(records) or len({len(record) for record in whole}) > 1 or len(whole[0]) < 2:
        return None
    return two_fold_accuracy(np.stack(whole))


def selection_free_in_words(accuracy: float, best: EpochRow, suffix: str = "") -> str:
    """Both figures of the best epoch's RA."""
    write = metric_of(BIASED).in_report
    return (
        "RA of the best epoch, chosen on one half of the test images and measured on the other, both ways: "
        f"{write(accuracy)} (on the images that chose it: {write(getattr(best, f'{BIASED}{suffix}'))})"
    )


def save_records(run: Path, epoch: int, suffix: str, result: CrossClassResult) -> None:
    """Write which images an epoch's result has as right, where it says so: a kilobyte for 10,000 images."""
    if result.correct is None:
        return
    file, buffer = records_of(run, epoch, suffix), BytesIO()
    np.savez_compressed(buffer, counts=result.counts, correct=np.packbits(result.correct))
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, buffer.getvalue())


def record_of(
    run: Path, row: EpochRow, suffix: str = "", *, is_best: bool = False, column: str = BIASED
) -> NDArray[np.bool_] | None:
    """Which test images the weights of an epoch classify right, (N,) bool, where its files say so.

    Args:
        run: the folder.
        row: the epoch's in its log.
        suffix: of the weights, "" or ``AVERAGE``.
        is_best: whether it is the epoch of the best checkpoint, whose result may have it too.
        column: of the log: test RA, or ``CLEAN``, which results alone have.
    """
    accuracy = getattr(row, f"{column}{suffix}")
    stems = results_of(run, row.epoch, suffix, is_best=is_best)
    results = [stem.with_suffix(".npz") for stem in stems]
    files = results if column == CLEAN else [records_of(run, row.epoch, suffix), *results]
    known = (_records(file, accuracy, "correct_clean" if column == CLEAN else "correct") for file in files)
    return None if accuracy is None else next((record for record in known if record is not None), None)


def _records(file: Path, accuracy: float, name: str) -> NDArray[np.bool_] | None:
    """Which images a result has as right, (N,) bool; None where it has none, or others than make this accuracy.

    The result's JSON is not read: of 1,000 classes it takes a second.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            images = int(archive["counts"].sum())
            correct = np.unpackbits(archive[name], count=images).astype(bool)
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    is_of_row = len(correct) == images and abs(correct.sum() - accuracy * images) < 0.5
    return correct if is_of_row else None
