"""RA of the chosen epoch: biased where the same images choose and measure, unbiased on the other half."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.layout import AVERAGE, records_of, result_of
from ccf_plugin.runs.log import EpochRow
from ccf_plugin.runs.selection import save_records, selection_free_accuracy, two_fold_accuracy


def drawn(accuracies: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Records of epochs that are alike as epochs of one run are: an image that is hard for one is hard for all."""
    rng = np.random.default_rng(seed)
    common, single = rng.normal(size=images), rng.normal(size=(len(accuracies), images))
    score = (common + single) / np.sqrt(2)
    return score < np.array([NormalDist().inv_cdf(accuracy) for accuracy in accuracies])[:, None]


def test_epochs_of_equal_accuracy_are_not_flattered_on_the_other_half() -> None:
    records = [drawn(np.full(30, 0.4), 200, seed) for seed in range(400)]
    naive = np.array([record.mean(1).max() for record in records])
    halved = np.array([two_fold_accuracy(record) for record in records])
    errors = [figures.std() / np.sqrt(len(figures)) for figures in (naive, halved)]
    assert abs(halved.mean() - 0.4) < 4 * errors[1]
    assert naive.mean() - 0.4 > 20 * errors[0]
    assert naive.mean() - 0.4 > 0.03  # three points and more of 200 images, of nothing but choosing


def test_the_estimate_is_of_the_epoch_that_a_half_chooses() -> None:
    """Epochs of different accuracy: what is estimated is the true accuracy of the epochs chosen."""
    truth = 0.4 + 0.1 * np.sin(np.linspace(0, 3, 12))
    estimated, chosen, naive = [], [], []
    for seed in range(400):
        record = drawn(truth, 300, seed)
        estimated.append(two_fold_accuracy(record, seed=seed))
        order = np.random.default_rng(seed).permutation(300)
        chosen.append(np.mean([truth[record[:, half].mean(1).argmax()] for half in (order[:150], order[150:])]))
        naive.append(record.mean(1).max())
    error = np.std(np.array(estimated) - np.array(chosen)) / np.sqrt(400)
    assert abs(np.mean(estimated) - np.mean(chosen)) < 4 * error
    assert np.mean(naive) > truth.max() + 4 * np.std(naive) / np.sqrt(400)


def test_both_ways_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    class InOrder:
        def permutation(self, images: int) -> np.ndarray:
            return np.arange(images)

    monkeypatch.setattr("numpy.random.default_rng", lambda seed: InOrder())
    record = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1]], dtype=bool)
    # the first half (2/2, 1/2, 0/2) chooses epoch 1, which has 0/2 on the other; that (0, 2, 2) chooses epoch 2: 1/2
    assert two_fold_accuracy(record) == 0.25
    with pytest.raises(ValueError, match="two images or more"):
        two_fold_accuracy(record[:, :1])


def write(run: Path, accuracies: list[float], suffix: str = "") -> list[EpochRow]:
    (run / "probe").mkdir(exist_ok=True)
    records = drawn(np.array(accuracies), 60, 1)
    rows = []
    for epoch, record in enumerate(records, 1):
        row = {f"test_robust_accuracy{suffix}": float(f"{record.mean():.6g}")}  # as log.csv has it
        rows.append(EpochRow(epoch=epoch, lr=0.1, train_loss=1.0, seconds=1.0, images_per_second=1.0, figures=row))
        result = CrossClassResult(np.eye(3), np.ones((3, 2)), np.full(3, 20), correct=record)
        result.save(result_of(run, epoch, suffix))
    return rows


@pytest.mark.parametrize("suffix", ["", AVERAGE])
def test_the_records_of_a_run_are_read(tmp_path: Path, suffix: str) -> None:
    rows = write(tmp_path, [0.3, 0.5, 0.4], suffix)
    expected = two_fold_accuracy(drawn(np.array([0.3, 0.5, 0.4]), 60, 1))
    assert selection_free_accuracy(tmp_path, rows, "test_robust_accuracy", suffix) == expected
    assert selection_free_accuracy(tmp_path, rows, "validation_robust_accuracy", suffix) is None
    assert selection_free_accuracy(tmp_path, rows, "test_clean_accuracy", suffix) is None
    assert selection_free_accuracy(tmp_path, rows[:1], "test_robust_accuracy", suffix) is None


def test_where_records_are_missing_nothing_is_said(tmp_path: Path) -> None:
    rows = write(tmp_path, [0.3, 0.5, 0.4])

    def of(rows: list[EpochRow]) -> float | None:
        return selection_free_accuracy(tmp_path, rows, "test_robust_accuracy")

    whole = of(rows)
    unknown = replace(rows[0], epoch=9, figures={})
    assert of([*rows, unknown]) == whole  # not evaluated
    assert of([*rows, replace(rows[0], epoch=9)]) is None  # evaluated, and not kept
    others = {"test_robust_accuracy": (rows[2].test_robust_accuracy or 0) + 0.05}
    assert of([*rows[:2], replace(rows[2], figures=others)]) is None  # the records are of another measurement
    for suffix in (".npz", ".json"):
        result_of(tmp_path, 2).with_suffix(suffix).rename(result_of(tmp_path, "best").with_suffix(suffix))
    assert of(rows) == whole  # the best epoch's are in best.npz too
    save_records(tmp_path, 3, "", CrossClassResult.load(result_of(tmp_path, 3)))
    result_of(tmp_path, 3).with_suffix(".npz").rename(tmp_path / "aside")
    assert of(rows) == whole  # of an epoch that has no result
    records_of(tmp_path, 3).unlink()
    (tmp_path / "aside").rename(result_of(tmp_path, 3).with_suffix(".npz"))
    result_of(tmp_path, 3).with_suffix(".npz").write_bytes(b"PK\x03\x04 cut off")
    assert of(rows) is None
    CrossClassResult(np.eye(3), np.ones((3, 2)), np.full(3, 20)).save(result_of(tmp_path, 3))
    assert of(rows) is None  # a result without records
