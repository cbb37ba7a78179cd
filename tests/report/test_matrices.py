"""Matrices in a page: exact enough, few enough, and on the paper's colours."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.written_runs import WriteRun, confusion_at, matrix_at

from ccf_plugin.errors import InputError
from ccf_plugin.probe.confidence import wilson
from ccf_plugin.report.matrices import embedded_epochs, encode, pairs_along_epochs, state, states, top_pairs
from ccf_plugin.runs.reading import Track, read_runs


def _track(classes: int, epochs: int) -> Track:
    matrix = matrix_at(1, classes, 1)
    return Track("x", "", [], None, dict.fromkeys(range(1, epochs + 1), matrix))


def _epochs(states: list[dict[str, Any]]) -> list[int]:
    return [state["epoch"] for state in states]


def test_what_is_encoded_is_read_back_within_a_step() -> None:
    matrix = matrix_at(3, 10, 5)
    matrix[4] = matrix[:, 4] = np.nan
    words = np.frombuffer(b64decode(encode(matrix)), "<i2").astype(float)
    words[words == -32768] = np.nan
    np.testing.assert_allclose(words / 32767, matrix[np.triu_indices(10)], atol=0.51 / 32767)
    assert len(encode(matrix)) < 150


def test_epochs_are_thinned_only_where_they_do_not_fit(write_run: WriteRun) -> None:
    assert [_epochs(track) for track in states([_track(10, 200)] * 4)] == [list(range(1, 201))] * 4
    assert _epochs(states([_track(100, 150)])[0]) == list(range(1, 151))
    (kept,) = states([_track(200, 200)])
    assert {1, 200} <= set(_epochs(kept))
    assert 40 <= len(kept) <= 60
    assert max(np.diff(_epochs(kept))) <= 5
    assert len(json.dumps(kept)) < 2_750_000


def test_of_few_epochs_the_best_comes_first(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("peak", epochs=9, best=7)])
    track = run.tracks[0]
    assert [embedded_epochs(track, room) for room in (1, 2, 3, 4)] == [[7], [7, 9], [1, 7, 9], [1, 5, 7, 9]]
    assert embedded_epochs(track, 9) == list(range(1, 10))
    assert embedded_epochs(track, 8)[0] == 1


def test_confusions_give_way_to_matrices_and_these_to_an_error(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = read_runs([write_run("run", epochs=6, best=4, evidence=True)])
    (track,) = run.tracks
    one, bare = (
        len(json.dumps(state(track, 4, with_confusions=kept), separators=(",", ":"))) for kept in (True, False)
    )
    monkeypatch.setattr("ccf_plugin.report.matrices._CHARACTERS", 2 * one)
    (embedded,) = states([track])
    assert len(embedded) >= 3
    assert all(not state["confusions"] for state in embedded)
    monkeypatch.setattr("ccf_plugin.report.matrices._CHARACTERS", 2 * bare)
    assert [_epochs(kept) for kept in states([track, track])] == [[4], [4]]
    with pytest.raises(InputError, match="for each of 3 models; report fewer runs together"):
        states([track] * 3)


def test_the_confusions_of_an_epoch_are_read_back(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=6, best=4, evidence=True)])
    for epoch in (1, 4, 6):
        shown = state(run.tracks[0], epoch)
        counts = shown["confusions"]["clean"]
        matrix = np.zeros(100, dtype=int)
        matrix[counts[0::2]] = counts[1::2]
        expected = confusion_at(epoch, 10, 100, 0.8)
        np.testing.assert_array_equal(matrix.reshape(10, 10), expected)
        for index, (share, low, high) in enumerate(shown["accuracies"]["clean"]):
            right = int(expected[index, index])
            assert share == right / 100
            assert (low, high) == pytest.approx(wilson(right, 100), abs=5e-5)
        assert list(shown["confusions"]) == ["clean", "under attack"]


def test_a_class_without_images_has_no_accuracy(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=1, best=1, evidence=True)])
    confusion = run.tracks[0].confusions[1]["clean"].copy()
    confusion[3] = 0
    track = replace(run.tracks[0], confusions={1: {"clean": confusion}})
    accuracies = state(track, 1)["accuracies"]["clean"]
    assert [accuracy is None for accuracy in accuracies] == [index == 3 for index in range(10)]


def test_the_best_epoch_that_was_not_probed_is_stood_for_by_its_neighbour(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("seldom", epochs=6, best=4)])
    track = run.tracks[0]
    seldom = Track("x", "", track.rows, track.best, {epoch: track.matrices[epoch] for epoch in (1, 3, 6)})
    assert [seldom.probed(epoch) for epoch in (1, 2, 4, 5)] == [1, 3, 3, 6]
    assert pairs_along_epochs(seldom, 3)["at"] == 3


def test_top_pairs_by_hand() -> None:
    nan = np.nan
    matrix = np.array([[1, 0.2, 0.5, nan], [0.2, 1, -0.1, nan], [0.5, -0.1, 1, nan], [nan, nan, nan, nan]])
    assert top_pairs(matrix, 2) == [(0, 2), (0, 1)]
    assert top_pairs(matrix, 9) == [(0, 2), (0, 1), (1, 2)]
    assert top_pairs(np.ones((1, 1)), 3) == []
