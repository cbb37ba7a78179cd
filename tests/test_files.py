"""Writing whole files, and paths that lead elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_inputs.cases import SET

from ccf_plugin.files import (
    check_writable,
    csv_bytes,
    expanded_path,
    flattened,
    json_bytes,
    made_folder,
    read_csv,
    write_json,
    write_together,
)
from ccf_plugin.zoo.datasets import load_data


def test_a_path_that_leads_elsewhere_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert expanded_path("data/x") == Path("data/x")
    assert expanded_path("data/../../x") == tmp_path / "x"
    assert expanded_path("~/x") == tmp_path / "home" / "x"
    assert expanded_path("~nobody_of_this_name/x") == Path("~nobody_of_this_name/x")
    (tmp_path / "here" / "loop").symlink_to("loop")
    assert expanded_path("loop/../x").is_absolute()
    assert expanded_path("..\0") == Path("..\0")


@pytest.mark.parametrize("spec", ["folder:../up", "npz:../up", "folder:~/up"])
def test_what_data_lack_is_said_with_where_they_should_be(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=rf":{tmp_path}/up: expected"):
        load_data(spec)


def test_a_run_shows_where_the_paths_of_its_recipe_lead(
    ccf: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    digits = load_data("digits", train_per_class=2, test_limit=10)
    assert digits.train is not None
    assert digits.test is not None
    arrays = {
        f"{name}_{split}": getattr(of_split, kind)
        for split, of_split in (("train", digits.train), ("test", digits.test))
        for name, kind in (("x", "images"), ("y", "labels"))
    }
    arrays = {key: value[:, 0] if key.startswith("x") else value for key, value in arrays.items()}
    np.savez(tmp_path / "up.npz", **arrays)
    recipe = 'base = "../digits_below"\n[data]\nname = "npz:../up.npz"\n'
    (tmp_path / "digits_below.toml").write_text('base = "digits"')
    Path("mine.toml").write_text(recipe)
    code, out, err = ccf("train", "mine.toml", *SET, "--out", "../run")
    assert (code, err) == (0, "")
    assert f"on npz:{tmp_path / 'up.npz'} → {tmp_path / 'run'}" in out
    code, out, err = ccf("train", "mine.toml", "--set", "distill=[{teacher='../gone', weight=1}]", *SET)
    assert code == 2
    assert f"{tmp_path / 'gone'}" in err


def test_files_that_belong_together_are_written_both_or_not_at_all(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "missing" / "other"
    one.write_bytes(b"old")
    with pytest.raises(OSError, match="other"):
        write_together({one: b"new", other: b"new"})
    assert one.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [one]
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_together({one: b"new", tmp_path / "folder": b"new"})
    assert one.read_bytes() == b"old"
    write_together({one: b"new", tmp_path / "other": b"more"})
    assert (one.read_bytes(), (tmp_path / "other").read_bytes()) == (b"new", b"more")


def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), made_folder(tmp_path / "a" / "b"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), made_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "mine"]
    with made_folder(tmp_path / "empty" / "deeper"):
        pass  # a command that had nothing to write
    assert not (tmp_path / "empty").exists()


def test_a_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [{"name": 'a "b", c', "value": 0.1 + 0.2, "count": 3}, {"name": "", "value": None, "other": "left out"}]
    file = tmp_path / "table.csv"
    file.write_bytes(csv_bytes(["name", "value", "count"], rows))
    columns, cells = read_csv(file)
    assert columns == ["name", "value", "count"]
    assert cells == [
        {"name": 'a "b", c', "value": "0.30000000000000004", "count": "3"},
        {"name": "", "value": "", "count": ""},
    ]
    assert csv_bytes(["value"], rows[:1], digits=6) == b"value\n0.3\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b\n1\n", "a row cut short"),
        (b"a,b\n1,2,3\n", "a row too long"),
        (b"a,b\n\xff,2\n", "utf-8"),
        (b"a,b\n" + b"1" * 200_000, "field limit"),
    ],
)
def test_a_csv_that_is_none_is_a_value_error(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_csv(tmp_path / "table.csv")


def test_an_empty_csv_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"")
    assert read_csv(tmp_path / "table.csv") == ([], [])


def test_json_has_no_nan_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "one.json", {"a": [1]})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "one.json", float("nan"))
    assert (tmp_path / "one.json").read_bytes() == json_bytes({"a": [1]}) == b'{\n "a": [\n  1\n ]\n}\n'


def test_nested_tables_are_flattened_to_dotted_keys() -> None:
    assert flattened({"a": 1, "b": {"c": {"d": [2]}, "e": {}}}) == {"a": 1, "b.c.d": [2]}


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file"):
        check_writable(tmp_path / "file" / "folder")
    with pytest.raises(OSError, match="/proc/folder"):  # where nobody may write, root neither
        check_writable(Path("/proc/folder"))
