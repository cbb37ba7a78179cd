"""Writing whole files, and paths that lead elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_inputs.cases import SET

from ccf_plugin.files import given_path, made_folder, write_together
from ccf_plugin.zoo.datasets import load_data


def test_a_path_that_leads_elsewhere_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert given_path("data/x") == Path("data/x")
    assert given_path("data/../../x") == tmp_path / "x"
    assert given_path("~/x") == tmp_path / "home" / "x"
    assert given_path("~nobody_of_this_name/x") == Path("~nobody_of_this_name/x")
    (tmp_path / "here" / "loop").symlink_to("loop")
    assert given_path("loop/../x").is_absolute()
    assert given_path("..\0") == Path("..\0")


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
