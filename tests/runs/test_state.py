"""The state of a run that a newer version began: it goes on, and nothing that is unknown here is lost."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support.runs import Quiet, interrupted, tiny

from ccf_plugin.runs.state import read_state
from ccf_plugin.training.loop import train


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    interrupted(tiny(), tmp_path / "run", 2)
    return tmp_path / "run"


def _change_state(run: Path, rows: list[dict[str, Any]], **more: object) -> None:
    path = run / "state" / "last.json"
    state = json.loads(path.read_text())
    state["rows"] = [row | change for row, change in zip(state["rows"], rows, strict=True)]
    path.write_text(json.dumps(state | more))


def _log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_of_a_newer_version_goes_on_and_keeps_what_is_unknown(stopped: Path) -> None:
    before = _log(stopped)
    _change_state(stopped, [{"sharpness": 0.25, "colours": ["red"]}, {"sharpness": None}], schedule="later")
    train(tiny(), stopped, Quiet(), resume=True)
    after = _log(stopped)
    assert list(after[0]) == [*before[0], "sharpness", "colours"]
    assert [row["sharpness"] for row in after] == ["0.25", "", ""]
    assert [{name: row[name] for name in before[0]} for row in after[:2]] == before
    rows = json.loads((stopped / "state" / "last.json").read_text())["rows"]
    assert (rows[0]["sharpness"], rows[0]["colours"]) == (0.25, ["red"])
    assert "sharpness" not in rows[2]


def test_columns_that_the_log_alone_has_stay_when_it_is_written_again(stopped: Path) -> None:
    header, *lines = (stopped / "log.csv").read_text().splitlines()
    noted = [f"{header},note", *(f'{line},"as, planned"' for line in lines)]
    (stopped / "log.csv").write_text("\n".join(noted) + "\n")
    train(tiny(), stopped, Quiet(), resume=True)
    assert [row["note"] for row in _log(stopped)] == ["as, planned", "as, planned", ""]


@pytest.mark.parametrize("log", [None, "damaged"])
def test_a_log_that_is_gone_or_damaged_is_written_anew(stopped: Path, log: str | None) -> None:
    before = _log(stopped)
    (stopped / "log.csv").unlink()
    if log is not None:
        (stopped / "log.csv").write_text(log)
    train(tiny(), stopped, Quiet(), resume=True)
    assert _log(stopped)[:2] == before


def test_fields_that_may_lack_take_their_defaults(stopped: Path) -> None:
    path = stopped / "state" / "last.json"
    state = json.loads(path.read_text())
    always = ("epoch", "lr", "train_loss", "seconds", "images_per_second")
    state["rows"] = [{name: row[name] for name in always} for row in state["rows"]]
    del state["step"], state["format"]
    path.write_text(json.dumps(state))
    read = read_state(stopped)
    assert (read.step, read.tensors.name) == (0, "002.safetensors")
    assert [(row.epoch, row.cas, row.alarm, row.selected_by) for row in read.rows] == [
        (1, None, "", ""),
        (2, None, "", ""),
    ]
