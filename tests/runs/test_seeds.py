"""Which runs are seeds of one method, and which runs a folder holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.written_runs import WriteRun

from ccf_plugin.errors import InputError
from ccf_plugin.runs.reading import read_runs
from ccf_plugin.runs.seeds import by_seed, list_runs


def _names(folders: list[Path]) -> list[str]:
    return [group.name for group in by_seed(read_runs(folders))]


def test_recipes_that_differ_in_seed_alone_are_one_method(write_run: WriteRun) -> None:
    one = [write_run(f"pgd-s{seed}", epochs=1, overrides=(f"seed={seed}",)) for seed in (0, 1, 2)]
    other = write_run("pgd-s3", epochs=1, overrides=("seed=3", "attack.eps=4/255"))
    groups = by_seed(read_runs([one[0], other, *one[1:]]))
    assert [(group.name, list(group.tracks)) for group in groups] == [("pgd", [0, 1, 2]), ("pgd-s3", [3])]


def test_a_seed_that_was_run_twice_is_no_other_seed(write_run: WriteRun) -> None:
    runs = read_runs([write_run(name, epochs=1) for name in ("first", "again")])
    assert [len(group.tracks) for group in by_seed(runs)] == [1, 1]


def test_averaged_weights_are_apart_from_raw_ones(write_run: WriteRun) -> None:
    folders = [
        write_run(f"wake_{seed}", recipe="preact_linf_wake", epochs=1, averaged=True, overrides=(f"seed={seed}",))
        for seed in (0, 1)
    ]
    assert _names(folders) == ["wake, raw weights", "wake, averaged weights"]


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (("digits-s0", "digits-s1"), "digits"),
        (("digits", "digits-2"), "digits"),
        (("kd_seed10", "kd_seed11"), "kd"),
        (("cifar10", "cifar10-1"), "cifar10"),
        (("kd, seed 0", "kd, seed 1"), "kd"),
        (("a", "b"), "a and 1 more"),
    ],
)
def test_a_method_is_called_by_what_its_runs_names_have_in_common(
    write_run: WriteRun, names: tuple[str, str], common: str
) -> None:
    assert _names([write_run(name, epochs=1, overrides=(f"seed={at}",)) for at, name in enumerate(names)]) == [common]


def _study(folder: Path, runs: list[dict[str, object]]) -> Path:
    (folder / "study.json").write_text(json.dumps({"format": 1, "baseline": "pgd", "runs": runs, "more": 1}))
    return folder


def _entry(name: str, seed: int, status: str = "finished") -> dict[str, object]:
    label = f"{name}, seed {seed}"
    return {"name": name, "seed": seed, "label": label, "folder": f"{name}-{seed}", "status": status}


def test_a_study_names_its_runs_and_their_method(write_run: WriteRun, tmp_path: Path) -> None:
    teachers = (0, 1)
    for seed in teachers:  # each seed has its own teacher, so that its recipes differ in more than the seed
        more = (f"seed={seed}", f"distill=[{{teacher='runs/t-{seed}', weight=0.5, temperature=2.0}}]")
        write_run(f"kd-{seed}", recipe="digits", epochs=1, overrides=more, parent=tmp_path)
    empty = write_run("pgd-0", epochs=1, parent=tmp_path)
    log = empty / "log.csv"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    entries = [_entry("kd", 0), _entry("kd", 1), _entry("pgd", 0, "begun"), _entry("pgd", 1, "waiting")]
    listing = list_runs([_study(tmp_path, entries)])
    assert listing.left_out == ["pgd, seed 0 (begun)", "pgd, seed 1 (waiting)"]
    assert listing.baseline == "pgd"
    runs = read_runs(listing.runs)
    assert [run.name for run in runs] == ["kd, seed 0", "kd, seed 1"]
    (group,) = by_seed(runs)
    assert (group.name, list(group.tracks)) == ("kd", [0, 1])
    assert [len(one.tracks) for one in by_seed([replace(run, method=None) for run in runs])] == [1, 1]


def test_a_folder_of_runs_is_its_runs_in_order(write_run: WriteRun, tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "run-1"):
        write_run(name, epochs=1, parent=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "note.txt").write_text("x")
    assert [run.folder.name for run in list_runs([tmp_path]).runs] == ["run-1", "run-2", "run-10"]
    alone = list_runs([tmp_path / "run-2", tmp_path / "other"])
    assert [run.folder.name for run in alone.runs] == ["run-2", "other"]  # which reading refuses by name


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"runs": 3}', '{"runs": [{}]}', '{"runs": []}', '{"runs": [{"name": "a"}]}']
)
def test_a_damaged_study_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(InputError, match="expected a study") as refused:
        list_runs([tmp_path])
    assert "\n" not in str(refused.value)
