"""How the command line behaves: help, version, env, volume, completion, and what it answers before torch is there."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import typer
from support.commands import Ccf, environment, run

from ccf_plugin.cli.app import app

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_bare_ccf_prints_its_help_once_and_whole(ccf: Ccf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = ccf()
    assert (code, err) == (0, "")
    assert out.count("Usage:") == 1
    assert out.rstrip("\n") == ccf("--help")[1].rstrip("\n")


@pytest.mark.parametrize("width", ["60", "80", "200"])
def test_no_description_is_cut_in_any_help(ccf: Ccf, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    shown = _letters(ccf("--help")[1])
    for name, command in COMMANDS.items():
        assert _letters(f"{name} {command.help}") in shown
        code, out, err = ccf(name, "--help")
        assert (code, err) == (0, "")
        assert max(map(len, out.splitlines())) <= max(int(width), 80)
        text = _letters(out)
        assert _letters(command.help) in text
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)
            assert _letters(parameter.help) in text, (name, parameter.name)


def _letters(text: str) -> str:
    """Without the breaks, which may be within a long word."""
    return "".join(text.split())


def test_the_options_of_probe_stand_in_groups_with_their_defaults(ccf: Ccf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = ccf("probe", "--help")
    groups = dict(re.findall(r"^(\w+):\n(.*?)(?=^\w|\Z)", out, re.M | re.S))
    assert list(groups) == ["Arguments", "Model", "Data", "Attack", "Measurement", "Output", "Options"]
    options = {
        title: set(re.findall(r"--[a-z][\w-]+", re.sub(r"(?m)^ {6,}.*", "", text))) for title, text in groups.items()
    }
    assert {"--checkpoint", "--head", "--model-dir"} <= options["Model"]
    assert {"--data", "--limit", "--download"} <= options["Data"]
    assert {"--clean", "--attack", "--eps", "--steps", "--seed"} <= options["Attack"]
    assert {"--instances", "--seeds", "--groups"} <= options["Measurement"]
    assert {"--out", "--json", "--force", "--vmin"} <= options["Output"]
    assert options["Options"] == {"--help"}
    attack = " ".join(groups["Attack"].split())
    for text in (
        "else 8/255 in Linf, 128/255 in L2",
        "else eps/4 in Linf, eps/8 in L2",
        "else 20",
        "PGD in Linf, PGDL2 in L2",
    ):
        assert text in attack


def test_the_version(ccf: Ccf) -> None:
    assert ccf("--version") == (0, f"ccf_plugin {metadata.version('ccf_plugin')}\n", "")


def test_env_says_what_a_bug_report_needs(ccf: Ccf) -> None:
    code, out, err = ccf("env", "--json")
    assert (code, err) == (0, "")
    described = json.loads(out)
    assert described["python"] == platform.python_version()
    assert described["libraries"]["torch"] == metadata.version("torch")
    assert described["extras"].keys() == set(PROJECT["optional-dependencies"]) - {"dev"}
    assert (described["gpus"] is None) == (not torch.cuda.is_available())
    code, out, _ = ccf("env")
    assert code == 0
    for text in (described["python"], described["libraries"]["torchattacks"], "extras: saliency"):
        assert text in out


def test_quiet_leaves_results_and_errors_alone(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    arguments = ("probe", digits_run, "--steps", 1, "--limit", 10)
    assert ccf("--quiet", *arguments, "--out", "mine") == (0, "", "")
    assert (tmp_path / "mine.json").is_file()
    code, out, err = ccf("-q", *arguments, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["data"]["count"] == 10
    code, out, err = ccf("-q", "probe", digits_run, "--limit", 0)
    assert (code, out) == (2, "")
    assert err == "ccf: --limit: expected at least 1, found 0\n"  # spelled as the command after -q does
    assert "CAS" in ccf(*arguments)[1]  # and the next command speaks again


def test_verbose_shows_the_packages_log(ccf: Ccf, digits_run: Path) -> None:
    arguments = ("probe", digits_run, "--steps", 1, "--limit", 10, "--json")
    code, out, err = ccf("-v", *arguments)
    assert code == 0
    assert json.loads(out)
    assert f"ccf: measuring.subject: {digits_run}, 10 images of digits, on cpu\n" in err
    assert "head linear" in err
    assert ccf(*arguments)[2] == ""


def test_where_nobody_watches_lines_tell_how_far_it_is(
    ccf: Ccf, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccf_plugin.engine.heartbeat.INTERVAL", 0.0)
    few = ("--steps", 1, "--limit", 30, "--batch-size", 10)
    said = {
        ("probe", digits_run, *few): "measuring, batch 2 of 3 done, 0 s so far, about 0 s to go",
        ("evaluate", digits_run, *few): "PGD-1, 30 images, batch 2 of 3 done",
        ("compare", digits_run, *few): "measuring digits_run",
        ("theory", "--samples", 300, "--points", 1): "training, setting 1 of 2 done",
    }
    for command, line in said.items():
        code, out, _ = ccf(*command)
        assert code in (0, 1)
        assert line in re.sub(r"digits_run\d+", "digits_run", out), command
        assert line not in re.sub(r"digits_run\d+", "digits_run", ccf("-q", *command)[1]), command


# Answered from names and paths, each with what is said.
BEFORE_TORCH = {
    "a model that is nowhere": (["probe", "nowhere"], "no such file or folder"),
    "a kind that there is not": (["probe", "tim:resnet18"], "did you mean 'timm"),
    "a model that timm does not have": (
        ["probe", "timm:resnt18"],
        "timm has no model 'resnt18'; did you mean 'resnet18'",
    ),
    "weights that timm does not have": (
        ["probe", "timm:resnet18.tv_in1"],
        "timm has no weights 'resnet18.tv_in1'; did you mean 'resnet18.tv_in1k'",
    ),
    "a model that RobustBench does not have": (
        ["evaluate", "robustbench:Carmon2019Unlabelled"],
        "RobustBench has no model 'Carmon2019Unlabelled'; did you mean 'Carmon2019Unlabeled'",
    ),
    "a data set that RobustBench does not have": (
        ["ablate", "robustbench:mnist/Linf/X"],
        "RobustBench has no dataset 'mnist'; it has cifar10,",
    ),
    "a row that RobustBench does not have": (
        ["leaderboard", "--only", "Carmon2019Unlabelled"],
        "did you mean 'Carmon2019Unlabeled'",
    ),
    "a name of timm's without its kind": (["probe", "resnet18"], "did you mean 'timm:resnet18'"),
    "a network's name": (["probe", "preact_resnt18"], "did you mean 'preact_resnet18'"),
    "code without a function": (["probe", "python:module"], "python:package.module:"),
    "a checkpoint that is nowhere": (
        ["probe", "python:m:f", "--checkpoint", "w.pt"],
        "expected a checkpoint file, found nothing",
    ),
    "an evaluation of nothing": (["evaluate", "runs/nowhere"], "no such file or folder"),
    "a comparison with nothing": (["compare", "nowhere", "timm:resnet18"], "no such file or folder"),
    "saliency of nothing": (["saliency", "timm:resnet18", "nowhere"], "no such file or folder"),
    "eps without an attack": (["probe", "timm:resnet18", "--clean", "--eps", "1/255"], "leave one out"),
}


@pytest.mark.parametrize("case", BEFORE_TORCH)
def test_a_mistyped_name_is_answered_before_torch_is_imported(tmp_path: Path, case: str) -> None:
    arguments, message = BEFORE_TORCH[case]
    code = (
        "import sys\nfrom ccf_plugin.cli import main\n"
        f"sys.argv = ['ccf', *{arguments!r}]\n"
        "try:\n    main()\n"
        "finally:\n    print([name for name in ('torch', 'numpy', 'timm', 'robustbench') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("ccf: ")
    assert answer.stderr.count("\n") == 1
    assert message in answer.stderr
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_a_shell_can_complete_commands_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, word: str
) -> None:
    monkeypatch.setenv("_CCF_COMPLETE", f"source_{shell}")
    code, out, _ = run(cwd=tmp_path)
    assert code == 0
    assert word in out
    assert "_CCF_COMPLETE" in out


def test_a_word_begun_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CCF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "ccf lea")
    monkeypatch.setenv("COMP_CWORD", "1")
    _, out, _ = run(cwd=tmp_path)
    assert out.split() == ["leaderboard"]
