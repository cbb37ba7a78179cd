"""Whatever a recipe, a spec or an option says, no traceback reaches the user: it works, or an error of ours says why.

Fixed examples in the default run; many more with ``-m slow``.
"""

from __future__ import annotations

import contextlib
import json
import string
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.commands import run_here

from ccf_plugin.errors import CCFError
from ccf_plugin.measuring.compare import compare
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.threat import threat_model
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import load_recipe, shipped_recipes
from ccf_plugin.training.study import sweep_study
from ccf_plugin.zoo.attacks import check_attack
from ccf_plugin.zoo.datasets import load_data
from ccf_plugin.zoo.models import build_model, load_model

CONTEXT = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
QUICK = settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=CONTEXT)
LONG = settings(max_examples=20_000, derandomize=True, deadline=None, database=None, suppress_health_check=CONTEXT)

SHIPPED = [path.read_text(encoding="utf-8") for path in shipped_recipes().values()]
KEYS = sorted(load_recipe("preact_linf_te", ["stop={on=['CAS falling']}", "awp={}"]).flat())
SECTIONS = sorted({key.split(".")[0] for key in KEYS} | set(Recipe.model_fields))

THREAT = {"attack": "PGD", "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20, "seed": 0}
RESULT = CrossClassResult(
    *(np.eye(3), np.ones((3, 2)), np.full(3, 4)),
    robust_accuracy=0.5,
    class_names=("a", "b", "c"),
    data={"name": "digits", "split": "test", "count": 12},
    threat=THREAT,
)
FIELDS = [(name,) for name in RESULT.to_json()] + [
    (table, name) for table, names in (("threat", THREAT), ("data", RESULT.data or {})) for name in names
]

words = st.sampled_from(
    [
        *("digits", "cifar10", "average", "PGD", "TPGD", "AutoAttack", "madry", "trades", "mart", "ema", "Linf", "L2"),
        *("eps/4", "8/255", "eps", "eps*eps/0", "1e999", "nan", "-0", "folder:", "folder:.", "npz:x", "npz:", "timm:"),
        *("timm:resnet18", "robustbench:X", "robustbench:a/b/c/d", "python:os", "python:os:getcwd", "python::", ":"),
        *("..", "~", "~nobody", "/", "\0", "\n", "×", "", "a" * 300, "cuda:99", "cpu", "mps:x", "validation", "cyclic"),
        *("narrow_preact_resnet18", "preact_resnet18", "runs/x", "a.b", "[", "{", "=", ","),
    ]
)
text = st.one_of(words, st.text(max_size=12), st.text(string.printable, max_size=30))
numbers = st.one_of(
    st.integers(), st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**70), 10**30]), st.floats(), st.booleans()
)
values = st.recursive(
    st.one_of(text, numbers, st.dates(), st.datetimes(), st.times()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
keys = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(SECTIONS), st.builds("{}.{}".format, st.sampled_from(SECTIONS), text)
)


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe that is right but for some keys."""
    content: dict[str, Any] = {"model": {"name": "narrow_preact_resnet18"}, "data": {"name": "digits"}}
    for key, value in draw(st.lists(st.tuples(keys, values), max_size=4)):
        *tables, last = key.split(".")
        inside = content
        for table in tables:
            inside = inside.setdefault(table, {})
            if not isinstance(inside, dict):
                break
        else:
            inside[last] = value
    if draw(st.booleans()):
        content["base"] = draw(st.one_of(st.sampled_from(sorted(shipped_recipes())), text))
    return content


@st.composite
def torn(draw: st.DrawFn) -> bytes:
    """A shipped recipe with a piece replaced."""
    whole = draw(st.sampled_from(SHIPPED)).encode()
    start = draw(st.integers(0, len(whole)))
    end = start + draw(st.integers(0, 40))
    piece = draw(st.one_of(st.binary(max_size=20), text.map(lambda some: some.encode("utf-8", "replace"))))
    return whole[:start] + piece + whole[end:]


nested = st.sampled_from(["[" * 2000, "{a=" * 500, "0x" + "f" * 5000, "9" * 5000])
override = st.builds("{}={}".format, keys, st.one_of(text, values.map(repr), nested))
kinds = st.sampled_from(["robustbench", "timm", "python", "folder", "npz", "x"])
specs = st.one_of(text, st.builds("{}:{}".format, kinds, text))


def _told(call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """It works, or fails by an error of ours, whose lines are lines; the rest fails the test by itself."""
    lines = ["fine"]
    try:
        call(*arguments, **options)
    except CCFError as error:
        lines = str(error).split("\n")
    except OSError as error:  # of a path that no disk can have; `ccf` tells it in one line
        lines = [error.strerror]
    assert all(line.strip() and line.isprintable() and len(line) < 1300 for line in lines)


def _recipe_texts(folder: Path, content: dict[str, Any]) -> None:
    with contextlib.suppress(TypeError, ValueError, AttributeError, UnicodeEncodeError):  # no TOML has such a value
        (folder / "mine.toml").write_text(tomli_w.dumps(content), encoding="utf-8")
        _told(load_recipe, str(folder / "mine.toml"))


def _torn_recipes(folder: Path, content: bytes) -> None:
    (folder / "torn.toml").write_bytes(content)
    _told(load_recipe, str(folder / "torn.toml"))


def _overrides(folder: Path, given_overrides: list[str]) -> None:
    _told(load_recipe, "digits", given_overrides)
    _told(sweep_study, "digits", given_overrides, [], folder)


def _specs(folder: Path, spec: str, more: str) -> None:
    _told(load_recipe, spec)
    _told(load_data, spec, splits=("test",), test_limit=10, root=folder)
    _told(load_model, spec, pretrained=False, model_dir=folder)
    _told(build_model, spec, num_classes=3, input_size=(1, 8, 8), options={"width": 2})
    _told(lambda: check_attack(spec, threat_model(norm="L2"), {}))
    _told(threat_model, eps=more, step_size=spec)


def _results(folder: Path, changes: list[tuple[tuple[str, ...], Any]]) -> None:
    """A saved result of which some values are others: what was saved is compared, or refused."""
    for name in ("one", "two"):
        RESULT.save(folder / name)
    content = json.loads((folder / "one.json").read_text())
    for (*tables, last), value in changes:
        inside = content
        for table in tables:
            inside = inside[table] if isinstance(inside.get(table), dict) else {}
        inside[last] = value
    with contextlib.suppress(TypeError, UnicodeEncodeError):  # no JSON has such a value
        (folder / "one.json").write_text(json.dumps(content), encoding="utf-8")
        loaded = [partial(CrossClassResult.load, folder / name) for name in ("one", "two")]
        _told(lambda: json.dumps(compare(*(load() for load in loaded)).to_json(), allow_nan=False))


CASES: dict[str, tuple[Callable[..., None], list[st.SearchStrategy[Any]]]] = {
    "recipes with other values": (_recipe_texts, [contents()]),
    "torn recipes": (_torn_recipes, [torn()]),
    "--set and sweeps": (_overrides, [st.lists(st.one_of(text, override), max_size=3)]),
    "specs": (_specs, [specs, text]),
    "saved results": (_results, [st.lists(st.tuples(st.sampled_from(FIELDS), values), max_size=2)]),
}


def _fuzz(case: str, profile: settings, folder: Path) -> None:
    check, strategies = CASES[case]
    run = profile(given(st.tuples(*strategies))(lambda drawn: check(folder, *drawn)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


@pytest.mark.parametrize("case", CASES)
def test_no_traceback(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _fuzz(case, QUICK, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_traceback_in_many_more(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _fuzz(case, LONG, tmp_path)


def test_no_traceback_at_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    setting = st.builds("{}={}".format, keys, text)
    options = st.sampled_from(["--data", "--eps", "--seed", "--head", "--attack", "--norm", "--steps"])
    commands = st.one_of(
        st.tuples(st.just("probe"), specs, options, text, st.just("--no-pretrained")),
        st.tuples(st.just("train"), st.just("digits"), st.just("--set"), setting, st.just("--device=cuda:99")),
        st.tuples(st.just("sweep"), st.just("digits"), setting, st.just("--print")),
        st.tuples(st.just("compare"), specs, specs, options, text, st.just("--no-pretrained")),
        st.tuples(st.just("saliency"), specs, specs, st.sampled_from(["--pair", "--indices", "--class"]), text),
        st.tuples(st.just("evaluate"), specs, options, text, st.just("--no-pretrained")),
        st.tuples(
            st.just("leaderboard"), st.just("--local"), st.sampled_from(["--dataset", "--threat", "--eps"]), text
        ),
        st.tuples(st.just("report"), text),
        st.tuples(st.just("bench"), st.just("--recipe=digits"), st.just("--set"), setting, st.just("--device=cuda:99")),
        st.tuples(st.just("fix-tinyimagenet"), st.just("--data-root"), text),
    )

    @settings(QUICK, max_examples=100)
    @given(commands)
    def run(arguments: tuple[str, ...]) -> None:
        code = run_here(*arguments)
        err = capsys.readouterr().err
        assert code in (0, 1, 2), err
        assert "Traceback" not in err

    run()
