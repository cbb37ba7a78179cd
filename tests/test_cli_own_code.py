"""A user's own code that prints, warns, logs, parses arguments or ends the program, in every command that runs some."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from support.commands import run, run_here, sets
from support.runs import SMALLEST

MODEL = """
import logging, sys, warnings
import torch
from torch import nn

{at_import}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        {in_forward}
        return self.head(images.flatten(1))

def make():
    {in_factory}
    torch.manual_seed(0)
    return Net()
"""
PLACES = ("at_import", "in_factory", "in_forward")
SAYING = {
    "print": "print('of the user')",
    "write": "sys.stdout.write('of the user\\n')",
    "logging": "logging.root.handlers[:] = [logging.StreamHandler(sys.stdout)]; logging.error('of the user')",
    "warnings": "warnings.simplefilter('always'); warnings.warn('of the user')",
}
ENDING = {
    "sys.exit": ("sys.exit(3)", r"ends the program by sys.exit(3)"),
    "exit": ("exit(3)", r"ends the program by sys.exit(3)"),
    "an exception of its own": (
        "raise type('Mine', (SystemExit,), {})(3)",
        r"ends the program by sys.exit(3)",
    ),
    "a reason": ("sys.exit('no GPU here')", r"ends the program by sys.exit('no GPU here')"),
    "argparse": (
        "import argparse; p = argparse.ArgumentParser(); p.add_argument('--lr'); p.parse_args()",
        "that it parses the command line",
    ),
    "argparse with an argument that is missing": (
        "import argparse; p = argparse.ArgumentParser(); p.add_argument('--lr', required=True); p.parse_known_args()",
        "that it parses the command line",
    ),
}


def _module(folder: Path, name: str, **lines: str) -> str:
    (folder / f"{name}.py").write_text(MODEL.format(**{place: lines.get(place, "pass") for place in PLACES}))
    sys.modules.pop(name, None)
    return f"python:{name}:make"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; the logging that modules set up for the process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    return tmp_path


DIGITS = ("--data", "digits", "--limit", 10)


@pytest.mark.parametrize("command", ["probe", "evaluate", "compare"])
@pytest.mark.parametrize("saying", SAYING)
def test_json_stands_alone_on_standard_output(
    command: str, saying: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = _module(here, f"says_{command}_{saying}", **dict.fromkeys(PLACES, SAYING[saying]))
    before = sys.stdout
    assert run_here(command, *[spec] * (2 if command == "compare" else 1), *DIGITS, "--steps", 1, "--json") == 0
    assert sys.stdout is before
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert "of the user" in err


@pytest.mark.slow
def test_a_process_of_its_own_too(here: Path) -> None:
    beside = "import os; os.write(1, b'of C\\n'); os.system('echo of the shell'); print('a', file=sys.__stdout__)"
    spec = _module(here, "says_all", **dict.fromkeys(PLACES, "; ".join([*SAYING.values(), beside])))
    code, out, err = run("probe", spec, *DIGITS, "--steps", 1, "--json", cwd=here)
    assert code == 0, err
    assert json.loads(out)
    assert "of the user" in err


def test_tables_stay_on_standard_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = _module(here, "says_beside_a_table", at_import=SAYING["print"])
    assert run_here("probe", spec, *DIGITS, "--steps", 1) == 0
    out, err = capsys.readouterr()
    assert "strongest pairs" in out
    assert ("of the user" in out, "of the user" in err) == (False, True)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("ending", ENDING)
def test_code_that_would_end_the_program_is_one_line(
    place: str, ending: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, message = ENDING[ending]
    name = f"ends_{place}_{ending.replace(' ', '_').replace('.', '_')}"
    assert run_here("probe", _module(here, name, **{place: line}), *DIGITS, "--steps", 1) == 2
    out, err = capsys.readouterr()
    told = err.splitlines()[-1]
    assert message in told
    assert f"({name}.py, line " in told
    assert out == ""
    assert (len(err.splitlines()), "usage" in err) == (1, False) or place == "in_forward"
    assert not (here / "results").exists()


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_exception_is_one_line(place: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = _module(here, f"raises_{place}", **{place: "raise type('Mine', (BaseException,), {})('too deep')"})
    assert run_here("probe", spec, *DIGITS, "--steps", 1) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"ccf: your code: expected it to run, found Mine: too deep (raises_{place}.py, line ")


@pytest.mark.parametrize("place", PLACES)
def test_nor_may_it_end_the_process(place: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_here("probe", _module(here, f"dies_{place}", **{place: "import os; os._exit(0)"}), *DIGITS, "--steps", 1)
        == 2
    )
    assert "ends the program by sys.exit(0)" in capsys.readouterr().err


FAILING = {
    "of two images": ("{}['logits']", r"refuses them (KeyError: 'logits' in {}.py, line 14)"),
    "of more": ("assert len(images) < 3 or images.no_such", r"found AttributeError: 'Tensor' object has no attribute"),
    "by its arguments": ("self.head()", "TypeError: Linear.forward() missing 1 required positional argument: 'input'"),
}


@pytest.mark.parametrize("failing", FAILING)
def test_a_forward_that_fails_is_one_line(failing: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, message = FAILING[failing]
    name = f"fails_{list(FAILING).index(failing)}"
    spec = _module(here, name, in_forward=line)
    assert run_here("probe", spec, *DIGITS, "--clean") == 2
    (told,) = (line for line in capsys.readouterr().err.splitlines() if "note:" not in line)
    assert message.replace("{}", name) in told
    assert f"{name}.py, line 14" in told


@pytest.mark.parametrize(
    "line", ["images.sub_(0.5)", "images.data.mul_(2)", "images = images.flatten(1); images -= 0.5"]
)
def test_a_forward_that_changes_its_images_is_one_line_under_attack(
    line: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"changes_{sum(map(ord, line))}"
    spec = _module(here, name, in_forward=line)
    for command in ("probe", "evaluate"):
        assert run_here(command, spec, *DIGITS, "--steps", 1) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"found that {spec} changes them in place" in told
        assert "images.clone()" in told
    assert run_here("probe", spec, *DIGITS, "--clean", "--json") == 0  # nothing else reads them
    changed = json.loads(capsys.readouterr().out)
    copied = _module(here, f"{name}_copied", in_forward=f"images = images.clone(); {line}")
    assert run_here("probe", copied, *DIGITS, "--clean", "--json") == 0
    assert json.loads(capsys.readouterr().out)["matrix"] == changed["matrix"]


OWN = """
import sys
import numpy as np
from ccf_plugin import StepOutput

def data(split):
    {data}
    return np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 10

def attack(model):
    {attack}
    return lambda images, labels: images

def loss(forward, images, adversarial, labels):
    {loss}
"""


@pytest.mark.parametrize("kind", ["data", "attack", "loss"])
def test_data_attacks_and_losses_may_not_either(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"ends_in_{kind}"
    (here / f"{name}.py").write_text(
        OWN.format(**{"data": "pass", "attack": "pass", "loss": "pass", kind: "sys.exit(1)"})
    )
    spec = f"python:{name}:{kind}"
    settings = {"data": f"data.name={spec}", "attack": f"evaluate.name={spec}", "loss": f"objective.loss={spec}"}
    assert run_here("train", "digits", *sets([*SMALLEST, "optim.epochs=1", settings[kind]])) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "ends the program by sys.exit(1)" in told
    assert f"({name}.py, line " in told


def test_what_works_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guarded = "import argparse\nif __name__ == '__main__':\n    argparse.ArgumentParser().parse_args()"
    assert run_here("probe", _module(here, "guarded", at_import=guarded), *DIGITS, "--steps", 1) == 0, (
        capsys.readouterr().err
    )
    import argparse

    with pytest.raises(SystemExit):
        argparse.ArgumentParser(prog="other").parse_args(["--unknown"])
    assert "usage: other" in capsys.readouterr().err
