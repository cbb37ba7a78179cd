"""The user's own code: importing it, and finding where a recipe names it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.python_code import code_in, is_python, load_object


def test_objects_are_found_in_packages_and_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_object("python:pathlib:Path") is Path
    (tmp_path / "code_of_mine.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := [entry for entry in sys.path if entry])
    assert load_object("python:code_of_mine:answer") == 42
    assert sys.path == before
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:pathlib", "expected python:package.module:name"),
        ("python::Path", "expected python:package.module:name"),
        ("pathlib:Path", "expected python:package.module:name"),
        ("python:no_such_module:x", "importing no_such_module failed"),
        ("python:pathlib:Paht", "pathlib has no 'Paht'; did you mean 'Path'"),
        ("python:.relative:x", "importing .relative failed"),
    ],
)
def test_what_names_nothing_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_object(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_is_found_wherever_it_hides() -> None:
    content = {
        "seed": 1,
        "model": {"name": "python:a:b", "options": {"deep": [{"er": "python:c:d"}]}},
        "distill": [{"teacher": "runs/x"}, {"teacher": "python:e:f"}],
        "data": {"name": "npz:python:x"},
    }
    assert list(code_in(content)) == [
        ("model.name", "python:a:b"),
        ("model.options.deep.0.er", "python:c:d"),
        ("distill.1.teacher", "python:e:f"),
    ]
    assert [is_python(value) for value in ("python:a:b", "Python:a:b", 3, None)] == [True, False, False, False]
