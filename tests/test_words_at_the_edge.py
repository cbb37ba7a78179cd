"""Library rooms name parameters, with remedies that work from Python; the command line shows its options."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ccf_plugin
from ccf_plugin import CCFError, InputError, Interrupted, load_data, load_model, load_recipe, train
from ccf_plugin.cli.app import _spell
from ccf_plugin.runs.folder import check_is_free
from ccf_plugin.runs.state import read_state
from ccf_plugin.training.distillation import check_teachers
from ccf_plugin.training.opening import check_place, check_same
from ccf_plugin.training.recipe import DistillSection
from ccf_plugin.training.run import _check_changes

PACKAGE = Path(ccf_plugin.__file__).parent
_OPTION = re.compile(r"(?<![\w-])--[a-z]")


@pytest.mark.parametrize(
    "path", [path for path in PACKAGE.rglob("*.py") if "cli" not in path.parts[-2:-1]], ids=lambda path: path.stem
)
def test_no_text_of_a_library_room_holds_an_option(path: Path) -> None:
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [text for text in texts if _OPTION.search(text.replace("ccf --help", ""))] == []


def _run_with_a_state(folder: Path) -> Path:
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "last.json").write_text("{}")
    (folder / "environment.json").write_text(json.dumps({"images": {"test": "a"}}))
    return folder


def _other_epochs(folder: Path) -> None:
    recipe = load_recipe("digits")
    (folder / "recipe.toml").write_text(recipe.as_toml())
    optim = recipe.optim.model_copy(update={"epochs": 7, "lr": 1.0})
    _check_changes(folder, recipe.model_copy(update={"optim": optim}), ())


def _code_in_a_file(folder: Path) -> None:
    (folder / "mine.toml").write_text('base = "digits"\n[model]\nname = "python:a:b"')
    load_recipe(str(folder / "mine.toml"))


def _empty_file(folder: Path) -> Path:
    (folder / "weights.pt").write_bytes(b"PK\x03\x04")
    return folder / "weights.pt"


def _interrupted(folder: Path) -> None:
    raise Interrupted("here", 2, "continue with {resume=True} ({out='runs/my run'})")


# What fails, the command that it fails under, and its remedy in Python's words and in the command line's.
FAULTS: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "no folder": (
        lambda folder: check_is_free(_empty_file(folder)),
        "train",
        "choose another out",
        "choose another --out",
    ),
    "other files": (
        lambda folder: (_empty_file(folder), check_is_free(folder)),
        "train",
        "choose another out",
        "choose another --out",
    ),
    "a run": (
        lambda folder: check_is_free(_run_with_a_state(folder / "run")),
        "train",
        "resume=True, replace it with force=True, or choose another out",
        "--resume, replace it with --force, or choose another --out",
    ),
    "nothing to resume": (
        lambda folder: check_place(folder / "none", resume=True, force=False),
        "train",
        "start it without resume",
        "start it without --resume",
    ),
    "a damaged state": (
        lambda folder: read_state(_run_with_a_state(folder / "run")),
        "train",
        "start anew with force=True",
        "start anew with --force",
    ),
    "other images": (
        lambda folder: check_same(_run_with_a_state(folder / "run"), "images", {"test": "b"}),
        "train",
        "another out",
        "another --out",
    ),
    "a changed recipe": (
        _other_epochs,
        "train",
        "resume with allow_change=['optim.epochs', 'optim.lr'], or use another out",
        "resume with --allow-change optim.epochs --allow-change optim.lr, or use another --out",
    ),
    "code": (_code_in_a_file, "sweep", "add allow_code=True", "add --allow-code"),
    "overrides": (
        lambda _: load_recipe("digits", ["nothing"]),
        "bench",
        "overrides: expected key=value",
        "--set: expected key=value",
    ),
    "a key of no table": (
        lambda _: load_recipe("digits", ["seed.a=1"]),
        "train",
        "overrides: expected a key",
        "--set: expected a key",
    ),
    "no teacher": (
        lambda folder: check_teachers([DistillSection(teacher="runs/my teacher", weight=0.5)], folder / "run"),
        "train",
        "train RECIPE first, with out='runs/my teacher'",
        "train RECIPE first, with --out 'runs/my teacher'",
    ),
    "no data": (
        lambda folder: load_data("cifar10", root=folder),
        "probe",
        "pass download=True",
        "pass --download",
    ),
    "an undescribed checkpoint": (
        lambda folder: load_model(str(_empty_file(folder))),
        "probe",
        "with checkpoint='",
        "with --checkpoint ",
    ),
    "a signal": (
        _interrupted,
        "train",
        "resume=True (out='runs/my run')",
        "--resume (--out 'runs/my run')",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_same_fault_in_either_language(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails, command, in_python, on_the_command_line = FAULTS[name]
    with pytest.raises(CCFError) as caught:
        fails(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ccf", command])
    spelled = "\n".join(caught.value.lines(_spell))
    assert in_python in str(caught.value)
    assert not _OPTION.search(str(caught.value))
    assert on_the_command_line in spelled
    assert "{" not in spelled


@pytest.mark.parametrize(
    ("command", "reference", "text"),
    [
        ("probe", "pretrained=False", "--no-pretrained"),
        ("probe", "pretrained=True", "--pretrained"),
        ("saliency", "class_name='a b'", "--class 'a b'"),
        ("probe", "limit=5", "--limit 5"),
        ("probe", "options={'a': 'b c', 'd': 1}", "--model-option 'a=b c' --model-option d=1"),
        ("probe", "resume=True", "resume=True"),
        ("probe", "optim.epochs", "optim.epochs"),
        ("", "limit", "limit"),
    ],
)
def test_a_reference_is_what_is_typed(command: str, reference: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ccf", command])
    assert _spell(reference) == text


def test_remedies_name_parameters_of_the_public_functions() -> None:
    known = {
        name for call in (train, load_recipe, load_data, load_model) for name in inspect.signature(call).parameters
    }
    assert {"out", "resume", "force", "download", "allow_change", "allow_code", "overrides", "checkpoint"} <= known


def test_a_prefix_leaves_the_parameter_readable() -> None:
    error = InputError("limit: wrong").within("file")
    assert error.args == ("file: limit: wrong",)
