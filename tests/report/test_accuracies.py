"""Accuracy by class and confusion matrices in the page, against what the results hold."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from support.written_runs import WriteRun, confusion_at

from ccf_plugin.probe.confidence import wilson
from ccf_plugin.report.accuracies import class_accuracies, confusions
from ccf_plugin.runs.reading import Track, read_runs


def decoded(counts: list[int], classes: int) -> np.ndarray:
    matrix = np.zeros(classes * classes, dtype=int)
    matrix[counts[0::2]] = counts[1::2]
    return matrix.reshape(classes, classes)


def test_the_confusions_of_the_best_and_the_last_epoch_are_read_back(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=6, best=4, evidence=True)])
    shown = confusions(run.tracks)
    names = ["best (4), clean", "best (4), under attack", "last (6), clean", "last (6), under attack"]
    assert [entry["name"] for entry in shown] == names
    for entry, (epoch, accuracy) in zip(shown, [(4, 0.8), (4, 0.48), (6, 0.8), (6, 0.38)], strict=True):
        np.testing.assert_array_equal(decoded(entry["counts"], 10), confusion_at(epoch, 10, 100, accuracy))


def test_models_are_named_where_there_are_several(write_run: WriteRun) -> None:
    runs = read_runs([write_run(name, epochs=2, best=1, evidence=True) for name in ("a", "b")])
    tracks = [track for run in runs for track in run.tracks]
    assert [entry["name"] for entry in confusions(tracks)][::4] == ["a, best (1), clean", "b, best (1), clean"]


def test_what_makes_the_page_too_large_is_left_out(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = read_runs([write_run("run", epochs=6, best=4, evidence=True)])
    size = sum(len(json.dumps(entry["counts"], separators=(",", ":"))) for entry in confusions(run.tracks)[:2])
    monkeypatch.setattr("ccf_plugin.report.accuracies._CHARACTERS", size)
    assert [entry["name"] for entry in confusions(run.tracks)] == ["best (4), clean", "best (4), under attack"]


def test_the_accuracy_of_each_class(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=6, best=4, evidence=True)])
    table = class_accuracies(run.tracks[0])
    assert table is not None
    assert table["columns"][:3] == ["class", "images", "best (4), clean"]
    for index, (name, images, *shares) in enumerate(table["rows"]):
        assert (name, images) == (run.classes[index], "100")
        clean, attacked = (confusion_at(6, 10, 100, accuracy)[index, index] for accuracy in (0.8, 0.38))
        assert shares[2:] == [f"{clean}.0 %", f"{attacked}.0 %"]
    low, high = (100 * bound for bound in wilson(50, 100))
    assert table["interval"] == f"Of 100 images, the 95 % interval of 50.0 % is {low:.1f} % to {high:.1f} %."


def test_a_class_without_images_has_no_accuracy(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=1, best=1, evidence=True)])
    (result,) = run.tracks[0].ends.values()
    matrix = confusion_at(1, 10, 100, 0.5)
    matrix[3] = 0
    track = replace(run.tracks[0], ends={1: replace(result, confusion_clean=matrix, confusion_adversarial=None)})
    table = class_accuracies(track)
    assert table is not None
    assert [row[2] == "–" for row in table["rows"]] == [index == 3 for index in range(10)]


def test_results_without_confusions_show_none(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=2, best=1)])
    assert confusions(run.tracks) == []
    assert class_accuracies(run.tracks[0]) is None
    assert class_accuracies(Track("x", "", run.rows, None, run.tracks[0].matrices)) is None
