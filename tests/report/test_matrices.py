"""Matrices in a page: exact enough, few enough, and on the paper's colours."""

from __future__ import annotations

from base64 import b64decode

import numpy as np
from support.written_runs import WriteRun, matrix_at

from ccf_plugin.report.matrices import embedded_epochs, encode, pairs_along_epochs, top_pairs
from ccf_plugin.runs.reading import Track, read_runs


def _track(classes: int, epochs: int) -> Track:
    matrix = matrix_at(1, classes, 1)
    return Track("x", "", [], None, dict.fromkeys(range(1, epochs + 1), matrix))


def test_what_is_encoded_is_read_back_within_a_step() -> None:
    matrix = matrix_at(3, 10, 5)
    matrix[4] = matrix[:, 4] = np.nan
    track = Track("x", "", [], None, {3: matrix, 7: -matrix})
    words = np.frombuffer(b64decode(encode(track, [3, 7])), "<i2").reshape(2, 55).astype(float)
    words[words == -32768] = np.nan
    rows, columns = np.triu_indices(10)
    np.testing.assert_allclose(words[0] / 32767, matrix[rows, columns], atol=0.51 / 32767)
    np.testing.assert_allclose(words[1] / 32767, -matrix[rows, columns], atol=0.51 / 32767)
    assert len(encode(_track(10, 200), range(1, 201))) < 30_000


def test_epochs_are_thinned_only_where_they_do_not_fit(write_run: WriteRun) -> None:
    assert embedded_epochs(_track(10, 200), tracks=4) == list(range(1, 201))
    assert embedded_epochs(_track(100, 200), tracks=1) == list(range(1, 201))
    track = _track(200, 200)
    kept = embedded_epochs(track, tracks=1)
    assert {1, 200} <= set(kept)
    assert 40 <= len(kept) <= 60
    assert max(np.diff(kept)) <= 5
    assert len(encode(track, kept)) < 2_750_000
    (run,) = read_runs([write_run("peak", epochs=9, best=7)])
    peaked = Track("x", "", run.rows, run.tracks[0].best, dict.fromkeys(range(1, 10), matrix_at(1, 500, 1)))
    assert embedded_epochs(peaked, tracks=40) == [1, 7, 9]


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
