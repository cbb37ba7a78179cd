"""The command line as a user meets it: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import save_checkpoint
from support.commands import RANDOM_WEIGHTS, Ccf, ended, run, sets, start
from support.runs import SMALLEST

from ccf_plugin.probe import CrossClassResult
from ccf_plugin.training.recipe_files import shipped_recipes
from ccf_plugin.zoo.models import build_model

TINY = sets([*SMALLEST, "data.train_per_class=4", "optim.epochs=2", "probe.every=2"])


def _save_untrained(folder: Path, classes: str, data: str) -> Path:
    """An untrained model, in the form that training writes."""
    torch.manual_seed(0)
    options = {"width": 2, "blocks": [1, 1, 1, 1]}
    model = build_model("narrow_preact_resnet18", num_classes=len(classes), input_size=(1, 8, 8), options=options)
    metadata = {
        "model": {"name": "narrow_preact_resnet18", "options": options, "mean": None, "std": None},
        "classes": list(classes),
        "data": data,
        "input_size": [1, 8, 8],
        "threat": {"norm": "Linf", "eps": 0.1},
        "epoch": 1,
    }
    save_checkpoint(folder / "best.safetensors", model, metadata)
    return folder / "best.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the digits."""
    return _save_untrained(tmp_path_factory.mktemp("ten"), "0123456789", "digits")


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three classes, with its data."""
    folder = tmp_path_factory.mktemp("three")
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.savez(folder / "three.npz", x=images, y=np.arange(6) % 3)
    return _save_untrained(folder, "012", f"npz:{folder / 'three.npz'}")


def test_train_then_probe_the_run(ccf: Ccf, tmp_path: Path) -> None:
    code, out, err = ccf("train", "digits", *TINY)
    assert (code, err) == (0, "")
    run = tmp_path / "runs" / "digits"
    for text in ("epoch 1 ·", "test RA", "CAS", "best", "last", "runs/digits/log.csv"):
        assert text in out
    assert (run / "probe" / "002.png").read_bytes().startswith(b"\x89PNG")

    code, out, err = ccf("probe", run, "--steps", 2, "--limit", 30, "--instances")
    assert (code, err) == (0, "")
    for text in (
        "linear (Linear), 10 classes × 16 features",
        "PGD-2, Linf, eps 20/255, step 5/255, seed 0, float32",
    ):
        assert text in out
    for text in (
        "clean accuracy",
        "RA (PGD-2)",
        "CAS",
        "of 90",
        "CAS by chance",
        "with the entries of each class attribution permuted",
        "I-CAS",
        "over all pairs",
        "strongest pairs",
        "30 test images of digits",
    ):
        assert text in out
    for suffix in ("npz", "json", "png"):
        assert (tmp_path / "results" / f"digits-PGD2-Linf-20of255.{suffix}").is_file()


def test_json_is_all_that_json_prints_and_is_what_is_saved(ccf: Ccf, checkpoint: Path, tmp_path: Path) -> None:
    code, out, err = ccf("probe", checkpoint, "--json", "--limit", 20, "--steps", 1, "--out", "mine/here", "--seed", 4)
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "mine" / "here.json").read_text())
    assert printed["threat"]["seed"] == 4
    result = CrossClassResult.load(tmp_path / "mine" / "here")
    assert printed["cas"] == result.cas
    assert printed["counts"] == [2] * 10
    assert printed.keys() >= {
        *("model", "head", "data", "threat", "clean_accuracy", "robust_accuracy", "cas", "cas_normalised"),
        *("instance_cas", "counts", "class_names", "matrix", "instance_matrix", "versions", "format"),
    }


def test_the_clean_options_and_the_l2_defaults(ccf: Ccf, checkpoint: Path) -> None:
    _, out, _ = ccf("probe", checkpoint, "--json", "--limit", 20, "--clean")
    assert json.loads(out)["threat"] is None
    assert json.loads(out)["robust_accuracy"] is None
    _, out, _ = ccf("probe", checkpoint, "--json", "--limit", 20, "--norm", "L2", "--steps", 1)
    threat = json.loads(out)["threat"]
    assert (threat["attack"], threat["eps"], threat["step_size"]) == ("PGDL2", 128 / 255, 16 / 255)
    _, out, _ = ccf("probe", checkpoint, "--json", "--limit", 20, "--attack", "fgsm", "--eps", "4/255")
    threat = json.loads(out)["threat"]
    assert (threat["attack"], threat["eps"], threat["steps"], threat["step_size"]) == ("FGSM", 4 / 255, None, None)


def test_an_attack_without_a_step_size_is_shown(ccf: Ccf, checkpoint: Path) -> None:
    code, out, _ = ccf("probe", checkpoint, "--limit", 20, "--attack", "FGSM")
    assert code == 0
    assert "FGSM, Linf, eps 25.5/255, seed 0, float32" in out


def test_a_class_without_images_is_named_and_left_out(ccf: Ccf, checkpoint: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (18, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "nine.npz", x=images, y=np.arange(18) % 9, classes=np.array(list("0123456789")))
    code, out, err = ccf("probe", checkpoint, "--data", "npz:nine.npz", "--clean", "--out", "of_nine")
    assert code == 0
    assert "no samples of 9: NaN in C, not in CAS" in out
    assert len(err.splitlines()) <= 1
    result = CrossClassResult.load(tmp_path / "of_nine")
    assert np.isnan(result.matrix[9]).all()
    assert np.isfinite(result.matrix[:9, :9]).all()
    assert np.isfinite(result.cas)


def test_a_sweep_runs_each_combination_once_and_ends_in_a_table(ccf: Ccf, tmp_path: Path) -> None:
    arguments = ("sweep", "digits", "attack.eps=4/255,8/255", "optim.decay_epochs=[1],[1,2]", *TINY)
    code, out, _ = ccf(*arguments, "--print", "--out", "mine")
    assert code == 0
    commands = out.splitlines()
    assert len(commands) == 4
    assert "--set attack.eps=8/255 --set 'optim.decay_epochs=[1,2]' --out" in commands[3]
    assert not (tmp_path / "mine").exists()

    code, out, err = ccf("sweep", "digits", "attack.eps=4/255,8/255", *TINY, "--out", "mine")
    assert (code, err) == (0, "")
    assert {path.name for path in (tmp_path / "mine").glob("*/")} == {"attack.eps=4_255", "attack.eps=8_255"}
    for text in ("attack.eps=4/255", "attack.eps=8/255", "best CAS", "last RA"):
        assert text in out
    result = CrossClassResult.load(tmp_path / "mine" / "attack.eps=4_255" / "probe" / "002")
    assert result.threat is not None
    assert (result.threat["eps"], result.threat["step_size"]) == (4 / 255, 1 / 255)  # evaluation follows

    before = (tmp_path / "mine" / "attack.eps=4_255" / "log.csv").read_bytes()
    code, out, _ = ccf("sweep", "digits", "attack.eps=4/255,8/255", *TINY, "--out", "mine", "--format", "tex,csv")
    assert code == 0
    assert out.count("finished already") == 2
    assert r"attack.eps=4/255 & " in (tmp_path / "mine" / "sweep.tex").read_text()
    assert (tmp_path / "mine" / "sweep.csv").read_text().startswith("run,best epoch,best RA,")
    code, _, err = ccf("sweep", "digits", "seed=0", *TINY, "--format", "png")
    assert (code, err) == (2, "ccf: --format: expected some of tex, md, csv, with commas between, found 'png'\n")
    assert (tmp_path / "mine" / "attack.eps=4_255" / "log.csv").read_bytes() == before


def test_a_sweep_refuses_folders_of_another_recipe_before_it_runs(ccf: Ccf, tmp_path: Path) -> None:
    assert ccf("sweep", "digits", "seed=0", *TINY, "--out", "mine")[0] == 0
    code, out, err = ccf("sweep", "digits", "seed=1,0", *TINY, "--set", "objective.loss=trades", "--out", "mine")
    assert (code, out) == (2, "")
    assert "objective.loss: 'madry' before, 'trades' now" in err
    assert [path.name for path in (tmp_path / "mine").glob("*/")] == ["seed=0"]


def test_a_sweep_goes_on_with_changes_that_are_allowed(ccf: Ccf) -> None:
    assert ccf("sweep", "digits", "seed=0", *TINY, "--out", "mine")[0] == 0
    longer = ("sweep", "digits", "seed=0", *TINY, "--out", "mine", "--set", "optim.epochs=3")
    code, _, err = ccf(*longer)
    assert code == 2
    assert "--allow-change optim.epochs" in err
    code, out, _ = ccf(*longer, "--allow-change", "optim.epochs")
    assert code == 0
    assert "epoch 3" in out
    assert "epoch 2 ·" not in out


def test_a_sweep_that_is_interrupted_says_how_it_goes_on(ccf: Ccf, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def step(self: object, epoch: int, done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("ccf_plugin.training.progress.ProgressReporter.step", step)
    code, _, err = ccf("sweep", "digits", "seed=0,1", *TINY)
    assert code == 130
    assert err.startswith("ccf: seed=0: SIGINT in epoch 1, saved after step 1; continue with the same ccf sweep")
    assert ccf("sweep", "digits", "seed=0,1", *TINY)[0] == 0


def test_a_run_that_diverges_does_not_keep_a_sweep_from_the_others(ccf: Ccf) -> None:
    code, out, err = ccf("sweep", "digits", "optim.lr=1e30,0.1", *TINY)
    assert code == 1
    assert err == "ccf: expected 2 runs to the end, found that these diverged: optim.lr=1e30\n"
    assert "optim.lr=1e30: expected a finite loss" in out
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│ optim.lr")]
    assert [row[2].strip() for row in rows] == ["diverged", rows[1][2].strip()]
    assert rows[1][2].strip() in ("1", "2")


def test_a_sweep_splits_values_outside_brackets_alone(ccf: Ccf) -> None:
    teacher = "distill=[{teacher='average', weight=0.5, ramp=[1,2], weight_after=1.0}],[]"
    arguments = ("sweep", "digits", teacher, *TINY, "--set", "average={kind='ema'}", "--print", "--download")
    code, out, _ = ccf(*arguments)
    assert code == 0
    first, second = (shlex.split(line) for line in out.splitlines())
    assert teacher.removesuffix(",[]") in first
    assert "distill=[]" in second
    assert "--download" in first
    assert ccf("sweep", "digits", "attack.eps=2/255,,4/255", *TINY, "--print")[0] == 2


@pytest.mark.slow
def test_a_run_is_shown_as_one_page(ccf: Ccf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, more in (("first", []), ("second", ["--set", "average={kind='ema', decay=0.5}"])):
        assert ccf("train", "digits", *TINY, *more, "--out", name)[0] == 0
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) is None)
    code, out, err = ccf("report", "first", "second", "--open", "--vmax", 0.5)
    page = tmp_path / "results" / "report-first-second.html"
    assert (code, err) == (0, "")
    assert out.startswith("Wrote results/report-first-second.html (")
    assert opened == [page.as_uri()]
    for text in (
        "first: best at epoch",
        "second, averaged weights: best at epoch",
        "average.decay",
        '"scale":[0.0,0.5]',
    ):
        assert text in page.read_text(encoding="utf-8")

    monkeypatch.setattr("webbrowser.open", lambda address: False)
    code, _, err = ccf("report", "first", "--open", "--out", "mine/page.html")
    assert code == 1
    assert err == "ccf: expected a browser for --open, found none; the page is in mine/page.html: open it by hand\n"
    assert (tmp_path / "mine" / "page.html").read_bytes().endswith(b"</html>")
    assert ccf("train", "digits", *TINY, "--out", "first", "--force")[0] == 0  # a report hinders no later run


@pytest.mark.slow
def test_the_closing_table_shows_averaged_weights_too(ccf: Ccf) -> None:
    code, out, _ = ccf("train", "digits", *TINY, "--set", "average={kind='ema', decay=0.5}")
    assert code == 0
    assert "best averaged" in out
    assert "last averaged" in out
    assert "weights runs/digits/best_average.safetensors" in out
    assert "distill" not in out
    code, out, _ = ccf("sweep", "digits", "optim.lr=0.1,0.2", *TINY, "--set", "average={kind='ema', decay=0.5}")
    assert code == 0
    assert out.count("averaged weights") == 2


def test_what_a_run_will_not_reach_is_said_at_its_start(ccf: Ccf) -> None:
    code, out, _ = ccf("train", "digits", *TINY, "--set", "optim.decay_epochs=[1,9]")
    assert code == 0
    assert out.splitlines()[1] == "not reached in 2 epochs: optim.decay_epochs 9"


OWN_ATTACK = """
def reflected(model, eps):
    return lambda images, labels: (images + eps * (0.5 - images).sign()).clamp(0, 1)
"""


def test_an_attack_of_ones_own_trains_resumes_and_probes(ccf: Ccf, tmp_path: Path) -> None:
    (tmp_path / "attack_of_mine.py").write_text(OWN_ATTACK)
    spec = "python:attack_of_mine:reflected"
    code, _, err = ccf("train", "digits", *TINY, "--set", f"attack.name={spec}", "--set", f"evaluate.name={spec}")
    assert (code, err) == (0, "")
    run = tmp_path / "runs" / "digits"
    result = CrossClassResult.load(run / "probe" / "002")
    assert result.threat is not None
    assert (result.threat["attack"], result.threat["eps"], result.threat["steps"]) == (spec, 20 / 255, None)

    # The run's own recipe file names code too: what decides is the recipe that the command line gives.
    arguments = ("--resume", "--allow-change", "optim.epochs", "--set", "optim.epochs=3")
    with_code = ("--set", f"attack.name={spec}", "--set", f"evaluate.name={spec}")
    assert ccf("train", "digits", *TINY, *with_code, *arguments)[0] == 0
    (tmp_path / "theirs.toml").write_bytes((run / "recipe.toml").read_bytes())
    code, _, err = ccf("train", "theirs.toml")
    assert code == 2
    assert err.splitlines() == [
        f"ccf: theirs.toml: {key}: expected no code named by a file, found '{spec}'; if you trust it, add --allow-code"
        for key in ("attack.name", "evaluate.name")
    ]
    assert ccf("sweep", "theirs.toml", "seed=1,2", "--print")[0] == 2
    code, out, _ = ccf("sweep", "theirs.toml", "seed=1,2", "--print", "--allow-code")
    assert (code, out.count("--allow-code")) == (0, 2)
    assert ccf("train", "theirs.toml", "--allow-code", "--set", "optim.epochs=1")[0] == 0

    code, out, err = ccf("probe", run, "--attack", spec, "--limit", 20)
    assert (code, err) == (0, "")
    assert (tmp_path / "results" / "digits-reflected-Linf-20of255.npz").is_file()


@pytest.mark.parametrize(
    ("model", "entry", "head"), [("Pair", "0", "head"), ("Pair", "1", "second"), ("Named", "two", "second")]
)
def test_an_entry_of_the_output_is_an_index_or_a_key(ccf: Ccf, model: str, entry: str, head: str) -> None:
    spec = f"python:training.own_models:{model}"
    code, out, err = ccf("probe", spec, "--data", "digits", "--clean", "--limit", 20, "--output", entry, "--json")
    assert code == 0
    assert err == f"ccf: note: {spec} {RANDOM_WEIGHTS}\n"
    assert json.loads(out)["head"]["name"] == head


def test_recipes_lists_every_shipped_one_with_its_source(ccf: Ccf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = ccf("recipes")
    assert code == 0
    lines = {line.split()[0]: re.split(r"  +", line, maxsplit=3) for line in out.split("\n\n")[0].splitlines()}
    assert list(lines) == list(shipped_recipes())
    assert [name for name, cells in lines.items() if "(from " not in cells[3] or not cells[3].endswith(")")] == []
    assert lines["preact_linf_awp"][1] == "cifar10"
    assert lines["preact_linf_awp"][3].endswith("(from Wu et al. 2020)")
    assert {name: lines[name][2] for name in ("preact_linf", "preact_fast", "preact_standard")} == {
        "preact_linf": "200 × 11",
        "preact_fast": "200 × 2",
        "preact_standard": "200 × 1",
    }


BAD = {
    "an unknown command": (["nothing"], "No such command 'nothing'"),
    "no model": (["probe"], "Missing argument"),
    "steps that are no number": (["probe", "x", "--steps", "two"], "--steps"),
    "a model that is nowhere": (["probe", "nowhere"], "no such file or folder"),
    "an unknown RobustBench model": (["probe", "robustbench:Carmon2019"], "did you mean 'Carmon2019Unlabeled'"),
    "an unknown timm model": (["probe", "timm:resnet181", "--data", "digits"], "did you mean 'resnet18'"),
    "eps in the wrong units": (["probe", "{checkpoint}", "--eps", "8"], "'8/255'"),
    "an unknown norm": (["probe", "{checkpoint}", "--norm", "L3"], "expected 'Linf' or 'L2', found 'L3'"),
    "an unknown attack": (["probe", "{checkpoint}", "--attack", "PDG"], "did you mean 'PGD'"),
    "an unknown precision": (["probe", "{checkpoint}", "--precision", "fp8"], "precision"),
    "unknown data": (["probe", "{checkpoint}", "--data", "digit"], "did you mean 'digits'"),
    "data that are not there": (["probe", "{checkpoint}", "--data", "npz:absent.npz"], "absent.npz"),
    "data that are not downloaded": (["probe", "{checkpoint}", "--data", "cifar10"], "--download"),
    "data of other classes": (["probe", "{checkpoint}", "--data", "npz:three.npz"], "expected data of 10 classes"),
    "labels that are none": (["probe", "{checkpoint}", "--data", "npz:labels.npz"], "label"),
    "images in 0..1 floats": (["probe", "{checkpoint}", "--data", "npz:floats.npz"], "uint8"),
    "a limit of nothing": (["probe", "{checkpoint}", "--limit", "0"], "--limit: expected at least 1"),
    "a batch of nothing": (["probe", "{checkpoint}", "--batch-size", "0"], "batch"),
    "a head that is no layer": (["probe", "{checkpoint}", "--head", "linea"], "did you mean 'linear'"),
    "an entry that is not there": (
        ["probe", "python:training.own_models:Named", "--data", "digits", "--clean", "--output", "three"],
        "at output='three', found type dict of 'one': shape",
    ),
    "a network without a head": (
        ["train", "digits", "--set", "model={{name='python:training.own_models:Headless'}}"],
        "probabilities, not logits",
    ),
    "a checkpoint of another architecture": (
        ["probe", "python:pyautoattack.examples.resnet:ResNet18", "--checkpoint", "{checkpoint}", "--data", "digits"],
        "another architecture",
    ),
    "a checkpoint that is a web page": (
        ["probe", "python:pyautoattack.examples.resnet:ResNet18", "--checkpoint", "page.pt", "--data", "digits"],
        "web page",
    ),
    "a module that is not there": (["probe", "python:no_such_module:f", "--data", "digits"], "no_such_module"),
    "an unknown recipe": (["train", "digit"], "did you mean 'digits'"),
    "an unknown recipe key": (["train", "digits", "--set", "optim.epoch=3"], "did you mean 'epochs'"),
    "a recipe of other images": (["train", "preact_linf", "--set", "data.name=digits"], "3×32×32"),
    "a sweep without values": (["sweep", "digits", "attack.eps"], "expected key=value,value"),
    "a sweep of an unknown key": (["sweep", "digits", "attack.epz=1/255,2/255"], "did you mean 'eps'"),
    "nothing to resume": (["train", "digits", "--resume"], "found none; start it without --resume"),
    "both resume and force": (["train", "digits", "--resume", "--force"], "--resume or --force"),
    "a folder that is taken": (["train", "digits", "--out", "taken"], "other files (notes.txt)"),
    "a taken folder by force": (["train", "digits", "--out", "taken", "--force"], "other files (notes.txt)"),
    "a file for a folder": (["train", "digits", "--out", "page.pt"], "found the file page.pt"),
    "clean and an attack": (["probe", "{checkpoint}", "--clean", "--attack", "PGD"], "leave one out"),
    "images of other channels": (["probe", "{checkpoint}", "--data", "npz:colour.npz"], "expected images of 1 channel"),
    "data of other class names": (
        ["probe", "{checkpoint}", "--data", "npz:named.npz"],
        "their order must be the model's",
    ),
    "an attack for more classes": (
        ["probe", "{three}", "--attack", "AutoAttack", "--steps", "1"],
        "cannot attack this",
    ),
    "a report of what is no run": (["report", "taken"], "expected a run folder, which has recipe.toml and log.csv"),
    "a report into a folder": (["report", "taken", "--out", "taken"], "found the folder taken"),
    "a report of nothing": (["report"], "Missing argument"),
    "a seed beyond bounds": (["train", "digits", "--set", "seed=99999999999999999999"], "seed: expected less than"),
    "a batch of one": (
        ["train", "digits", "--set", "data.train_per_class=13", "--set", "optim.batch_size=129"],
        "a single image",
    ),
    "a network that refuses the images": (
        ["train", "digits", "--set", "model.options={{}}", "--set", "model.name=timm:vit_tiny_patch16_224"],
        "vit_tiny_patch16_224",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(
    ccf: Ccf, checkpoint: Path, three_classes: Path, tmp_path: Path, case: str
) -> None:
    np.savez(tmp_path / "three.npz", x=np.zeros((3, 8, 8), np.uint8), y=np.arange(3))
    np.savez(tmp_path / "labels.npz", x=np.zeros((3, 8, 8), np.uint8), y=np.array([0, -1, 2]))
    np.savez(tmp_path / "floats.npz", x=np.zeros((3, 8, 8)), y=np.arange(3))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "colour.npz", x=rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8), y=np.arange(10))
    named = np.array([f"class {letter}" for letter in "abcdefghij"])
    np.savez(tmp_path / "named.npz", x=np.zeros((10, 8, 8), np.uint8), y=np.arange(10), classes=named)
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>quota exceeded</html>")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments, message = BAD[case]
    code, out, err = ccf(*(argument.format(checkpoint=checkpoint, three=three_classes) for argument in arguments))
    assert code in (1, 2)
    assert out == ""
    assert err.startswith("ccf: ")
    assert len(err.splitlines()) == 1, err
    assert message in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} <= {*(path.name for path in before), "taken"}


def test_help_answers_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    heavy = ["torch", "numpy", "matplotlib", "torchattacks", "robustbench", "timm", "torchvision", "accelerate"]
    code = f"import sys; import ccf_plugin.cli; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.strip() == "[]"
    code, out, _ = run("--help", cwd=tmp_path)
    assert code == 0
    assert "probe" in out


def test_a_real_process_prints_errors_without_a_traceback(tmp_path: Path) -> None:
    code, out, err = run("probe", "nowhere", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("ccf: model 'nowhere'")


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, checkpoint: Path) -> None:
    with ended(start("probe", checkpoint, "--clean", "--limit", 20, "--json", cwd=tmp_path)) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=120)
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_quick_start_learns_and_keeps_its_time(tmp_path: Path) -> None:
    """`recipes/digits.toml`: clean accuracy ≥ 95 %, RA ≥ 70 %; its time is printed, not asserted."""
    started = time.perf_counter()
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "ccf_plugin", "train", "digits"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    print(f"digits: {time.perf_counter() - started:.1f} s")
    result = CrossClassResult.load(tmp_path / "runs" / "digits" / "probe" / "014")
    assert result.clean_accuracy is not None
    assert result.robust_accuracy is not None
    assert result.clean_accuracy >= 0.95
    assert result.robust_accuracy >= 0.70


@pytest.mark.slow
def test_the_golden_figures_through_the_command_line(ccf: Ccf, outside_data: Path) -> None:
    weights = Path(str(resources.files("pyautoattack"))) / "examples" / "model_test.pt"
    code, out, _ = ccf(
        *("probe", "python:pyautoattack.examples.resnet:ResNet18", "--checkpoint", weights),
        *("--data", f"npz:{outside_data / 'cifar10_test1000.npz'}", "--clean", "--instances"),
    )
    assert code == 0
    for text in ("93.7%", "13.48 (95%", "18.81 (95%"):
        assert text in out


@pytest.mark.slow
def test_bench_prints_a_table_and_writes_json(ccf: Ccf, tmp_path: Path) -> None:
    settings = [*TINY, "--set", "optim.batch_size=16"]
    code, out, err = ccf("bench", "--recipe", "digits", "--epochs", 1, "--reference-steps", 0, *settings)
    assert (code, err) == (0, "")
    assert "images per second" in out
    assert "FLOP utilisation" in out
    figures = json.loads((tmp_path / "results" / "bench-digits-cpu.json").read_text())
    assert figures["command"][:3] == ["ccf", "bench", "--recipe"]
    assert figures["train_images"] == 40


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(
    "command",
    [
        ("bench", "--quick"),
        ("train", "digits", "--set"),
        ("probe", "python:torch.nn:Identity", "--data", "digits"),
    ],
)
def test_cuda_without_a_gpu_is_one_line_and_never_the_cpu(ccf: Ccf, command: tuple[str, ...]) -> None:
    asked = "device=cuda" if command[-1] == "--set" else "--device"
    code, out, err = ccf(*command, asked, *(["cuda"] if asked == "--device" else []))
    assert (code, out) == (1, "")
    assert err == "ccf: device 'cuda': torch sees 0 CUDA devices here; use 'cpu' or 'auto'\n"
