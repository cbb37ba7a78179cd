"""log.csv: as it always was, and whatever a newer version adds to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccf_plugin.errors import InputError
from ccf_plugin.runs.log import EpochRow, log_bytes, read_log, with_unknown_columns

# Written by the first version, of a run that averages and holds images out.
OLD = (
    b"epoch,lr,train_loss,train_robust_accuracy,test_clean_accuracy,test_robust_accuracy,cas,instance_cas,seconds,"
    b"images_per_second,alarm,selected_by,validation_clean_accuracy,validation_robust_accuracy,"
    b"test_clean_accuracy_average,test_robust_accuracy_average,cas_average,validation_clean_accuracy_average,"
    b"validation_robust_accuracy_average\n"
    b"1,0.1,2.30259,0.25,0.6,0.3,17.25,30.5,12.5,400.125,,test_robust_accuracy,0.5,0.25,0.625,0.3125,18,0.5,0.375\n"
    b"2,0.01,1.5,,,,,,12.25,408,,,,,,,,,\n"
    b"3,0.01,1.25,0.5,0.6,0.2,3.5,,12.25,408,robust overfitting; CAS falling,,0.5,0.25,,,,,\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_bytes(OLD)
    return tmp_path


def test_an_old_log_is_read_and_written_byte_for_byte(run: Path) -> None:
    first, second, third = read_log(run)
    assert (first.epoch, first.lr, first.train_loss, first.cas, first.instance_cas) == (1, 0.1, 2.30259, 17.25, 30.5)
    assert (first.selected_by, first.cas_average, first.alarm) == ("test_robust_accuracy", 18.0, "")
    assert (second.train_robust_accuracy, second.cas, second.validation_robust_accuracy) == (None, None, None)
    assert third.alarm == "robust overfitting; CAS falling"
    assert log_bytes([first, second, third], averaged=True, validated=True) == OLD


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("validated", [False, True])
def test_columns_are_there_only_where_a_run_has_them(run: Path, averaged: bool, validated: bool) -> None:
    header = log_bytes(read_log(run), averaged=averaged, validated=validated).split(b"\n")[0].decode().split(",")
    expected = OLD.split(b"\n")[0].decode().split(",")
    expected = [name for name in expected if averaged or not name.endswith("_average")]
    assert header == [name for name in expected if validated or not name.startswith("validation_")]


def test_columns_of_a_newer_version_are_kept_and_ignored(run: Path) -> None:
    newer = OLD.replace(b"epoch,lr,", b"epoch,colour,lr,shape,").replace(b"\n1,0.1,", b'\n1,"blue, or 1e3",0.1,007,')
    newer = newer.replace(b"\n2,0.01,", b"\n2,,0.01,,").replace(b"\n3,0.01,", b"\n3,red,0.01,nan,")
    (run / "log.csv").write_bytes(newer)
    rows = read_log(run)
    assert [row.unknown for row in rows] == [
        {"colour": "blue, or 1e3", "shape": "007"},
        {"colour": "", "shape": ""},
        {"colour": "red", "shape": "nan"},
    ]
    assert rows[0].cas == 17.25
    (run / "log.csv").write_bytes(log_bytes(rows, averaged=True, validated=True))
    assert read_log(run) == rows
    assert (run / "log.csv").read_bytes().split(b"\n")[0] == OLD.split(b"\n")[0] + b",colour,shape"


def test_columns_that_only_some_rows_have_are_empty_in_the_others(run: Path) -> None:
    first, second, third = read_log(run)
    rows = with_unknown_columns([first, second], [EpochRow.from_file({**third.as_dict(), "epoch": 2, "colour": "red"})])
    assert [row.unknown for row in rows] == [{}, {"colour": "red"}]
    lines = log_bytes(rows, averaged=False, validated=False).splitlines()
    assert [line.rsplit(b",", 1)[1] for line in lines] == [b"colour", b"", b"red"]


def test_columns_that_may_lack_are_empty(run: Path) -> None:
    (run / "log.csv").write_text("epoch,lr,train_loss,seconds,images_per_second\n1,0.1,2,3,4\n")
    (row,) = read_log(run)
    assert (row.cas, row.alarm, row.test_robust_accuracy_average, row.unknown) == (None, "", None, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch,colour\n1,blue\n", "lr"),
        ("epoch,lr,train_loss,seconds,images_per_second\n1,,2,3,4\n", "lr of None"),
        ("epoch,lr,train_loss,seconds,images_per_second\n1,0.1,2,3\n", "a row cut short"),
        ("epoch,lr,train_loss,seconds,images_per_second\n1,0.1,2,3,4,5\n", "a row too long"),
        ("epoch,lr,train_loss,seconds,images_per_second\n1,0.1,inf,3,4\n", "train_loss of inf"),
        ("epoch,lr,train_loss,seconds,images_per_second\n1.5,0.1,2,3,4\n", "1.5"),
    ],
)
def test_a_damaged_log_is_refused(run: Path, text: str, says: str) -> None:
    (run / "log.csv").write_text(text)
    with pytest.raises(InputError, match=says) as refused:
        read_log(run)
    assert str(refused.value).startswith(f"expected the log of a run in {run / 'log.csv'}, found none")
    assert "\n" not in str(refused.value)
