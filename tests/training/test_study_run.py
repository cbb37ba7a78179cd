"""A study done in pieces, by several processes, killed and changed: the end is that of one that ran through."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import Ccf, ended, run, run_here, start, wait_until
from support.runs import COLUMNS
from support.studies import COMMON, STUDY, write_study

from ccf_plugin.report.study_page import build_page
from ccf_plugin.runs.log import read_log
from ccf_plugin.runs.state import read_state
from ccf_plugin.runs.study_file import read_study

TIMED = ("seconds", "images_per_second")


def outcome(folder: Path) -> dict[str, Any]:
    """What a study found: verdicts, tables and logs, but not when, nor how fast."""
    study = read_study(folder)
    logs = {
        one["folder"]: [
            [getattr(row, name) for name in COLUMNS if name not in TIMED] for row in read_log(folder / one["folder"])
        ]
        for one in study["runs"]
    }
    verdicts = [(claim["claim"], claim["verdict"], claim["parts"]) for claim in study["claims"]]
    return {"logs": logs, "verdicts": verdicts, "table": study["table"], "differences": study["differences"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran through in one process."""
    folder = tmp_path_factory.mktemp("whole")
    write_study(folder / "mine.toml")
    with contextlib.chdir(folder):
        assert run_here("study", "mine.toml", "--page", "pages") == 0
    return folder


def test_it_leaves_runs_tables_a_page_and_what_is_kept(whole: Path) -> None:
    folder = whole / "runs" / "mine"
    assert {path.name for path in folder.glob("*/")} == {"madry-0", "kd-0", "madry-1", "kd-1"}
    kept = whole / "pages" / "mine"
    names = {path.relative_to(kept / "kd-1").as_posix() for path in (kept / "kd-1").rglob("*") if path.is_file()}
    assert names >= {
        "log.csv",
        "recipe.toml",
        "environment.json",
        "probe/best.npz",
        "probe/002.json",
        "records/001.npz",
    }
    assert not list(kept.rglob("*.safetensors"))
    page = (whole / "pages" / "mine.md").read_text()
    assert page.index("| claim | verdict | by |") < page.index("![RA and CAS") < page.index("| run | seeds |")
    assert "ccf study mine.toml" in page
    assert "torchattacks 3" in page
    assert (page, (whole / "pages" / "mine.png").read_bytes()) == build_page(kept)  # from what is committed alone


def test_one_that_is_ended_by_time_goes_on(whole: Path, ccf: Ccf, tmp_path: Path) -> None:
    """However short the time, a step or an epoch's test is done."""
    write_study(tmp_path / "mine.toml")
    code, out, err = ccf("study", "mine.toml", "--minutes", "0")
    assert (code, err) == (0, "")
    assert "0 of 4 runs are finished; the same ccf study goes on" in out
    assert read_study(tmp_path / "runs" / "mine")["claims"][0]["verdict"] == "undecided"
    slots = 0
    while not read_study(tmp_path / "runs" / "mine")["finished"]:
        assert ccf("study", "mine.toml", "--minutes", "0.00001")[0] == 0
        slots += 1
        assert slots <= 12  # three a run: two steps, and the last epoch's test
    assert slots > 1
    assert outcome(tmp_path / "runs" / "mine") == outcome(whole / "runs" / "mine")


def _epochs(folder: Path) -> int:
    return sum(len(read_state(path.parent.parent).rows) for path in folder.glob("*/state/last.json"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_one_that_is_ended_by_a_signal_goes_on(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "mine.toml")
    folder, kills = tmp_path / "runs" / "mine", 0
    for epochs in (1, 3, 6):
        with ended(start("study", "mine.toml", cwd=tmp_path)) as process:
            wait_until(lambda least=epochs: _epochs(folder) >= least, process)
            process.send_signal(number)
            _, err = process.communicate(timeout=120)
        kills += process.returncode != 0
        assert ("continue with the same ccf study" in err) is (number != signal.SIGKILL)
    assert kills == 3
    assert run("study", "mine.toml", cwd=tmp_path)[0] == 0
    assert outcome(folder) == outcome(whole / "runs" / "mine")


@pytest.mark.slow
def test_two_processes_share_the_runs(whole: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "mine.toml")
    with (
        ended(start("study", "mine.toml", cwd=tmp_path)) as first,
        ended(start("study", "mine.toml", cwd=tmp_path)) as second,
    ):
        told = [process.communicate(timeout=240) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], told
    assert run("study", "mine.toml", cwd=tmp_path)[0] == 0  # what one left to the other
    assert outcome(tmp_path / "runs" / "mine") == outcome(whole / "runs" / "mine")
    logs = [read_log(path.parent) for path in (tmp_path / "runs" / "mine").glob("*/log.csv")]
    assert [len(rows) for rows in logs] == [2] * 4  # nothing was trained twice


def test_a_run_that_another_process_trains_is_left_to_it(whole: Path, ccf: Ccf, tmp_path: Path) -> None:
    from filelock import FileLock

    write_study(tmp_path / "mine.toml")
    shutil.copytree(whole / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "mine" / "kd-1" / "state" / "last.json").unlink()
    pid = os.fork()
    if pid == 0:
        with FileLock(tmp_path / "runs" / "mine" / "kd-1" / ".lock"):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        code, out, _ = ccf("study", "mine.toml")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert code == 0
    assert "kd, seed 1: another process trains it" in out
    assert "3 of 4 runs are finished" in out


def test_claims_that_change_after_the_runs_are_told(whole: Path, ccf: Ccf, tmp_path: Path) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    late = "kd.best_cas > 0"
    write_study(tmp_path / "mine.toml", claims=[late])
    code, out, _ = ccf("study", "mine.toml", "--page", "pages")
    assert code == 0
    claims = {claim["claim"]: claim for claim in read_study(tmp_path / "runs" / "mine")["claims"]}
    first = STUDY["claims"][0]
    assert (claims[late]["stated_before"], claims[first]["stated_before"]) == (False, True)
    assert (claims[late]["withdrawn"], claims[first]["withdrawn"]) == (False, True)
    page = (tmp_path / "pages" / "mine.md").read_text()
    assert f"| {late} (stated after) |" in page
    assert f"| {first} (withdrawn) |" in page
    assert "stated after" in out


def test_runs_of_another_recipe_are_refused_before_anything_runs(whole: Path, ccf: Ccf, tmp_path: Path) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    write_study(tmp_path / "mine.toml", common={**COMMON, "optim": {"epochs": 3, "decay_epochs": [1]}})
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    code, _, err = ccf("study", "mine.toml")
    assert code == 2
    assert "optim.epochs: 2 before, 3 now" in err
    assert len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in before} == before
    code, _, err = ccf("study", "mine.toml", "--allow-change", "optim.epochs", "--minutes", "0")
    assert (code, err) == (0, "")


def test_weights_of_finished_runs_may_be_thrown_away(whole: Path, ccf: Ccf, tmp_path: Path) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    write_study(tmp_path / "mine.toml")
    for path in (tmp_path / "runs").rglob("*.safetensors"):
        path.unlink()
    assert ccf("study", "mine.toml")[0] == 0
    assert outcome(tmp_path / "runs" / "mine") == outcome(whole / "runs" / "mine")


def test_a_precision_that_the_machine_settles_is_no_change(ccf: Ccf, tmp_path: Path) -> None:
    write_study(tmp_path / "mine.toml", common={**COMMON, "precision": "auto"}, seeds=[0])
    assert ccf("study", "mine.toml", "--minutes", "0.00001")[0] == 0
    for _ in range(2):
        code, _, err = ccf("study", "mine.toml")
        assert (code, err) == (0, "")
    assert read_study(tmp_path / "runs" / "mine")["finished"]


def test_a_dry_run_writes_nothing(ccf: Ccf, tmp_path: Path) -> None:
    write_study(tmp_path / "mine.toml", seconds_per_epoch=45)
    code, out, _ = ccf("study", "mine.toml", "--dry-run")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows[1] == ["kd, seed 0", "madry-0", "2", "0", "2 min"]
    assert rows[-1] == ["all", "", "", "", "6 min"]


def test_a_run_that_diverges_stops_what_needs_it_alone(ccf: Ccf, tmp_path: Path) -> None:
    runs = {**STUDY["runs"], "madry": {"optim": {"lr": 1e30}}, "other": {}}
    write_study(tmp_path / "mine.toml", runs=runs, seeds=[0])
    code, _, err = ccf("study", "mine.toml")
    assert code == 1
    assert err == "ccf: expected 3 runs to the end, found that these diverged: madry, seed 0\n"
    statuses = {one["name"]: one["status"] for one in read_study(tmp_path / "runs" / "mine")["runs"]}
    assert statuses == {"madry": "diverged", "kd": "waiting", "other": "finished"}
    assert json.loads((tmp_path / "runs" / "mine" / "study.json").read_text())["claims"][0]["verdict"] == "undecided"


def test_a_page_needs_a_finished_run_and_a_place_of_its_own(whole: Path, ccf: Ccf, tmp_path: Path) -> None:
    write_study(tmp_path / "mine.toml")
    code, _, err = ccf("study", "mine.toml", "--minutes", "0", "--page", "pages")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "expected a study with a finished run" in err
    assert not (tmp_path / "pages").exists()
    shutil.rmtree(tmp_path / "runs")
    shutil.copytree(whole / "runs", tmp_path / "runs")
    (tmp_path / "pages" / "mine").mkdir(parents=True)
    (tmp_path / "pages" / "mine" / "diary.txt").write_text("mine")
    code, _, err = ccf("study", "mine.toml", "--page", "pages")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "found other files" in err
    assert (tmp_path / "pages" / "mine" / "diary.txt").read_text() == "mine"


def test_what_is_kept_gives_the_same_results(whole: Path) -> None:
    with np.load(whole / "pages" / "mine" / "kd-0" / "probe" / "best.npz") as kept:
        with np.load(whole / "runs" / "mine" / "kd-0" / "probe" / "best.npz") as first:
            assert kept.files == first.files
            for name in first.files:
                np.testing.assert_array_equal(kept[name], first[name])
