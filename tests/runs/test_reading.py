"""What is read of a run folder, and what is refused in one line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.written_runs import CIFAR, WriteRun, matrix_at

from ccf_plugin.errors import InputError
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.runs.reading import read_runs


def test_a_run_with_averaged_weights_is_two_tracks(write_run: WriteRun) -> None:
    folder = write_run("wake", recipe="preact_linf_wake", epochs=12, every=2, best=6, averaged=True)
    (run,) = read_runs([folder])
    raw, averaged = run.tracks
    assert (raw.name, averaged.name) == ("wake, raw weights", "wake, averaged weights")
    assert list(raw.matrices) == list(averaged.matrices) == [2, 4, 6, 8, 10, 12]
    np.testing.assert_array_equal(raw.matrices[4], matrix_at(4, 10, 6))
    assert raw.best is not None
    assert raw.best.epoch == 6
    assert raw.figure(raw.best, "test_robust_accuracy") == pytest.approx(0.48)
    assert averaged.figure(raw.best, "test_robust_accuracy") == pytest.approx(0.49)
    assert averaged.figure(raw.best, "train_robust_accuracy") is None
    assert (run.classes, run.selected_by) == (CIFAR, "test_robust_accuracy")


def test_the_best_epoch_of_standard_training_is_chosen_by_clean_accuracy(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("standard", recipe="preact_standard", epochs=4, best=2, threat=None)])
    assert run.tracks[0].best is not None
    assert run.tracks[0].best.epoch == 4  # clean accuracy rises to the end; RA peaks at 2


def test_runs_of_one_name_are_told_apart(write_run: WriteRun) -> None:
    runs = read_runs([write_run("same", epochs=2), write_run("same", epochs=2)])
    assert runs[0].name != runs[1].name


def _damaged(folder: Path, file: str, content: str) -> Path:
    (folder / file).write_text(content)
    return folder


def test_bad_folders_are_refused_by_name(write_run: WriteRun, tmp_path: Path) -> None:
    unprobed = write_run("unprobed", epochs=2)
    for file in (unprobed / "probe").iterdir():
        file.unlink()
    lone = write_run("lone", epochs=2)
    (lone / "probe" / "001.npz").unlink()
    mixed = write_run("mixed", epochs=2)
    other = write_run("other", epochs=1, count=500)
    for suffix in ("json", "npz"):
        (mixed / "probe" / f"001.{suffix}").write_bytes((other / "probe" / f"001.{suffix}").read_bytes())
    header = (unprobed / "log.csv").read_text().splitlines()[0]
    cases = {
        "expected a run folder": [tmp_path],
        "expected probe results in .*unprobed": [unprobed],
        "expected the result file .*001.npz": [lone],
        "found 500 test images of cifar10 in mixed and 1000 test images": [mixed],
        "finished epochs in .*, found none yet": [_damaged(write_run("new", epochs=1), "log.csv", header + "\n")],
        "expected the log of a run": [_damaged(write_run("log", epochs=1), "log.csv", "epoch,colour\n1,blue\n")],
        "expected the recipe of a run": [_damaged(write_run("recipe", epochs=1), "recipe.toml", "= = =")],
        "expected the environment of a run": [_damaged(write_run("machine", epochs=1), "environment.json", "{")],
        "expected each run once": [other, other],
    }
    for message, folders in cases.items():
        with pytest.raises(InputError, match=message) as refused:
            read_runs(folders)
        assert "\n" not in str(refused.value)


def test_runs_that_cannot_be_compared_are_refused(write_run: WriteRun) -> None:
    one = write_run("one", epochs=1)
    renamed = (*CIFAR[:-1], "lorry")
    cases = {
        "10 in one and 3 in three": write_run("three", epochs=1, classes=("a", "b", "c")),
        "'truck' in one and 'lorry' in lorries": write_run("lorries", epochs=1, classes=renamed),
        "1000 test images of cifar10 in one and 500 test images of cifar10 in fewer": write_run(
            "fewer", epochs=1, count=500
        ),
    }
    for message, other in cases.items():
        with pytest.raises(InputError, match=message):
            read_runs([one, other])


def test_images_of_another_size_are_refused_where_both_sizes_are_known(write_run: WriteRun) -> None:
    runs = {name: write_run(name, epochs=1) for name in ("small", "large", "unknown", "halved")}
    for name, more in {
        "small": {"input_size": [3, 32, 32]},
        "large": {"input_size": [3, 64, 64]},
        "halved": {"downscale": 2},
    }.items():
        stem = runs[name] / "probe" / "001"
        result = CrossClassResult.load(stem)
        replace(result, data={**(result.data or {}), **more}).save(stem)
    for other, words in (("large", "cifar10, 3×64×64 in large"), ("halved", "cifar10, downscaled by 2 in halved")):
        with pytest.raises(InputError, match=rf"found 1000 test images of cifar10, 3×32×32 in small and .* {words}"):
            read_runs([runs["small"], runs[other]])
    assert len(read_runs([runs["small"], runs["unknown"]])) == 2


def test_the_best_epoch_has_its_matrix_though_it_is_not_among_those_probed(write_run: WriteRun) -> None:
    folder = write_run("run", epochs=12, every=1, best=5)
    for epoch in range(1, 13):
        if epoch % 4:
            for suffix in ("json", "npz"):
                path = folder / "probe" / f"{epoch:03}.{suffix}"
                path.rename(folder / "probe" / f"best.{suffix}") if epoch == 5 else path.unlink()
    (run,) = read_runs([folder])
    assert sorted(run.tracks[0].matrices) == [4, 5, 8, 12]
    shutil.copy(folder / "probe" / "008.json", folder / "probe" / "best.json")  # as of an epoch that never was logged
    shutil.copy(folder / "probe" / "008.npz", folder / "probe" / "best.npz")
    (run,) = read_runs([folder])
    assert sorted(run.tracks[0].matrices) == [4, 8, 12]


def test_a_run_that_has_its_best_result_alone_is_shown(write_run: WriteRun) -> None:
    folder = write_run("run", epochs=3, best=2, averaged=True)
    for suffix in ("", "_average"):
        for kind in ("json", "npz"):
            (folder / "probe" / f"002{suffix}.{kind}").rename(folder / "probe" / f"best{suffix}.{kind}")
    for path in (folder / "probe").glob("00*"):
        path.unlink()
    (run,) = read_runs([folder])
    assert [sorted(track.matrices) for track in run.tracks] == [[2], [2]]
