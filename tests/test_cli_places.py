"""No result is lost: what is measured under other conditions gets a name of its own, and says where it comes from."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs.cases import ends_in_one_line
from safetensors.numpy import load_file
from support.commands import Ccf, sets
from support.runs import SMALLEST

from ccf_plugin.cli.places import Place, growing_file
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.zoo.datasets import load_data

QUICK = ("--steps", 1, "--limit", 20)
BASE = "digits-PGD1-Linf-8of255"


@pytest.fixture
def model(digits_run: Path, tmp_path: Path) -> Path:
    """A run of the digits in the working directory."""
    shutil.copytree(digits_run, tmp_path / "digits")
    return Path("digits")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Options beside those of the first probe, and what the second's name says of them.
OTHERS = {
    "limit": (["--steps", 1, "--limit", 10], "limit10"),
    "no limit": (["--steps", 1], "all"),
    "seed": ([*QUICK, "--seed", 2], "seed2"),
    "precision": ([*QUICK, "--precision", "bf16"], "bf16"),
    "head": ([*QUICK, "--head", "linear"], "head-linear"),
    "step size": ([*QUICK, "--step-size", "3/255"], "step3of255"),
    "instances": ([*QUICK, "--instances"], "instances"),
    "two of them": ([*QUICK, "--seed", 2, "--head", "linear"], "seed2-head-linear"),
    "other data of as many images": (["--steps", 1, "--limit", 20, "--data", "npz:other.npz"], "npz_other"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.slow
def test_other_conditions_get_a_name_that_tells_them_apart(ccf: Ccf, model: Path, tmp_path: Path, case: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", x=images, y=np.arange(20) % 10)
    assert ccf("probe", model, *QUICK)[0] == 0
    before = contents(tmp_path / "results")
    assert set(before) == {f"{BASE}.{suffix}" for suffix in ("npz", "json", "png")}
    options, part = OTHERS[case]
    for _ in range(2):  # the second time as the same, which may be replaced
        code, out, err = ccf("probe", model, *options)
        assert (code, err) == (0, "")
        assert f"results/{BASE}-{part}.json" in out
        after = contents(tmp_path / "results")
        assert set(after) == {*before, *(f"{BASE}-{part}.{suffix}" for suffix in ("npz", "json", "png"))}
        assert {name: after[name] for name in before} == before
    assert ccf("probe", model, *QUICK)[0] == 0  # the first conditions still have the first name
    assert set(contents(tmp_path / "results")) == set(after)


@pytest.mark.slow
def test_a_batch_size_counts_where_figures_depend_on_it(ccf: Ccf, model: Path, tmp_path: Path) -> None:
    one_step = ("--limit", 20, "--steps", 1)
    by_image, by_batch = (*one_step, "--norm", "L2"), (*one_step, "--attack", "APGD")
    for options in (one_step, by_image, by_batch):
        for batch_size in (20, 7):
            assert ccf("probe", model, *options, "--batch-size", batch_size)[0] == 0
    names = {path.name for path in (tmp_path / "results").glob("*.json")}
    apgd = {"digits-APGD1-Linf-8of255.json", "digits-APGD1-Linf-8of255-batch7.json"}
    assert names == {f"{BASE}.json", "digits-PGDL2-1-L2-128of255.json", *apgd}


def test_two_checkpoints_of_one_factory_are_two_results(ccf: Ccf, tmp_path: Path) -> None:
    from bad_inputs.cases import network
    from safetensors.torch import save_file

    for name, factor in (("w1", 1.0), ("w2", 2.0)):
        save_file(
            {key: value * factor for key, value in network().state_dict().items()}, tmp_path / f"{name}.safetensors"
        )
    for name in ("w1", "w2", "w1"):
        arguments = ("--data", "digits", "--limit", 20, "--clean", "--checkpoint", f"{name}.safetensors")
        code, _, _ = ccf("probe", "python:bad_inputs.cases:network", *arguments)
        assert code == 0
    assert {path.name for path in (tmp_path / "results").glob("*.json")} == {
        "network-clean.json",
        "network-clean-w2.json",
    }
    found = [json.loads((tmp_path / "results" / f"network-clean{part}.json").read_text()) for part in ("", "-w2")]
    assert [one["provenance"]["checkpoint"] for one in found] == ["w1.safetensors", "w2.safetensors"]
    assert found[0]["provenance"]["weights"] != found[1]["provenance"]["weights"]


def test_weights_trained_anew_in_one_folder_are_others(ccf: Ccf, model: Path, tmp_path: Path) -> None:
    assert ccf("probe", model, *QUICK)[0] == 0
    shutil.copy(tmp_path / "digits" / "last.safetensors", tmp_path / "digits" / "best.safetensors")
    code, _, _ = ccf("probe", model, *QUICK)
    assert code == 0
    weights = _hash(load_file(tmp_path / "digits" / "last.safetensors"))
    names = {path.name for path in (tmp_path / "results").glob("*.json")}
    assert names == {f"{BASE}.json", f"{BASE}-weights-{weights[:8]}.json"}


def test_a_result_of_an_older_version_is_kept(ccf: Ccf, model: Path, tmp_path: Path) -> None:
    CrossClassResult(np.eye(10), np.ones((10, 2)), np.full(10, 2)).save(_in(tmp_path / "results") / BASE)
    before = contents(tmp_path / "results")
    for _ in range(2):
        assert ccf("probe", model, *QUICK)[0] == 0
    after = contents(tmp_path / "results")
    assert {name: after[name] for name in before} == before
    assert len([name for name in after if name.endswith(".json")]) == 2


def _in(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _hash(tensors: dict[str, Any]) -> str:
    return hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()[:16]


def test_a_result_says_where_it_comes_from(ccf: Ccf, model: Path, tmp_path: Path) -> None:
    code, out, _ = ccf("probe", model, *QUICK, "--seed", 3, "--head", "linear", "--json")
    assert code == 0
    printed = json.loads(out)
    split = load_data("digits", splits=("test",), test_limit=20).test
    assert split is not None
    expected = {
        "model": None,
        "checkpoint": "digits/best.safetensors",
        "weights": _hash(load_file(tmp_path / "digits" / "best.safetensors")),
        "data": "digits",
        "images": hashlib.sha256(split.images.numpy().tobytes() + split.labels.numpy().tobytes()).hexdigest()[:16],
        "limit": 20,
        "input_size": [1, 8, 8],
        "seed": 3,
        "precision": "float32",
        "batch_size": None,
        "head": "linear",
        "output": None,
        "instances": False,
        "device": "cpu",
        "command": ["ccf", "probe", "digits", *map(str, QUICK), "--seed", "3", "--head", "linear", "--json"],
    }
    attack = {"attack": "PGD", "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 1, "options": {}}
    attack["per_image_noise"] = True
    assert printed["provenance"] == {**expected, "attack": attack}
    assert printed["versions"].keys() >= {"torch", "numpy"}
    assert not (tmp_path / "results").exists()  # --json alone writes nothing


# Commands that write files, each with something that changes its conditions.
COMMANDS = {
    "probe": (["probe", "digits", *QUICK], ["--seed", 1], "json"),
    "compare": (["compare", "digits", *QUICK], ["--seed", 1], "json"),
    "saliency": (["saliency", "digits", *QUICK, "--indices", "3"], ["--seed", 1], "json"),
    "evaluate": (["evaluate", "digits", *QUICK], ["--seed", 1], "json"),
    "theory": (["theory", "--samples", 300, "--points", 1], ["--seed", 1], "json"),
    "bench": (
        [
            "bench",
            "--recipe",
            "digits",
            "--reference-steps",
            0,
            "--epochs",
            1,
            *sets([*SMALLEST, "data.train_per_class=4"]),
        ],
        ["--epochs", 2],
        "json",
    ),
}
SLOW = {"bench"}  # 15 s


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in COMMANDS])
def test_every_command_keeps_what_is_there(ccf: Ccf, model: Path, tmp_path: Path, name: str) -> None:
    command, change, suffix = COMMANDS[name]
    assert ccf(*command)[0] in (0, 1)
    before = contents(tmp_path / "results")
    assert "provenance" in json.loads(next(text for file, text in before.items() if file.endswith(suffix)))
    assert ccf(*command, *change)[0] in (0, 1)
    after = contents(tmp_path / "results")
    assert {file: after[file] for file in before} == before
    assert len(after) == 2 * len(before)

    # a name that the user chose: refused before anything is measured, or replaced on request
    out = f"mine.{suffix}"
    assert ccf(*command, "--out", out)[0] in (0, 1)
    kept = (tmp_path / out).read_bytes()
    code, printed, err = ccf(*command, *change, "--out", out)
    assert printed == ""
    ends_in_one_line(code, err, "there, ")
    for text in (out, "--out", "--force"):
        assert text in err
    assert (tmp_path / out).read_bytes() == kept
    assert ccf(*command, *change, "--out", out, "--force")[0] in (0, 1)
    assert (tmp_path / out).read_bytes() != kept


def test_what_is_no_result_is_not_overwritten(ccf: Ccf, model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_bytes(b"mine")
    code, out, err = ccf("probe", model, *QUICK, "--out", "notes")
    assert out == ""
    ends_in_one_line(
        code, err, "notes.png: expected no file yet, or a result of the same conditions, found another file"
    )
    assert (tmp_path / "notes.png").read_bytes() == b"mine"


def test_a_result_that_came_while_this_one_was_measured_is_kept(
    ccf: Ccf, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccf_plugin.measuring.subject import Subject

    measure = Subject.measure

    def beside_another(self: Subject, **options: Any) -> CrossClassResult:
        (tmp_path / "mine.json").write_text('{"provenance": {"seed": 9}}')
        return measure(self, **options)

    monkeypatch.setattr(Subject, "measure", beside_another)
    code, out, _ = ccf("probe", model, *QUICK, "--out", "mine")
    assert code == 0
    assert json.loads((tmp_path / "mine.json").read_text()) == {"provenance": {"seed": 9}}
    written = [path for path in tmp_path.glob("mine-*.json") if path.name in out]
    assert len(written) == 1
    assert CrossClassResult.load(written[0]).provenance["seed"] == 0


@pytest.mark.parametrize("out", ["there", "there/", ".", ""])
@pytest.mark.parametrize("command", ["probe", "evaluate"])
def test_a_folder_is_where_files_go(ccf: Ccf, model: Path, tmp_path: Path, out: str, command: str) -> None:
    (tmp_path / "there").mkdir()
    assert ccf(command, model, "--limit", 10, "--steps", 1, "--out", out)[0] == 0
    (written,) = (tmp_path / out).glob("digits-*.json")
    assert not (tmp_path / "there.json").exists()
    assert "provenance" in json.loads(written.read_text())


def _write(limit: int) -> None:
    Place(None, "a", {"limit": limit}).write({".json": json.dumps({"provenance": {"limit": limit}}).encode()})


def test_commands_that_write_at_the_same_time_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_write, range(24), chunksize=1)
    kept = [json.loads(file.read_text())["provenance"]["limit"] for file in (tmp_path / "results").iterdir()]
    assert sorted(kept) == list(range(24))


def _keep(limit: int) -> None:
    with growing_file(None, "a", {"limit": limit}) as file:
        for _ in range(3):
            counts = json.loads(file.read_text())["counts"] if file.exists() else []
            file.write_text(json.dumps({"provenance": {"limit": limit}, "counts": [*counts, limit]}))


def test_a_file_that_grows_is_kept_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_keep, [0, 1, 2, 3] * 4, chunksize=1)
    counts = [json.loads(file.read_text())["counts"] for file in (tmp_path / "results").iterdir()]
    assert all(len(set(kept)) == 1 for kept in counts)
    assert sorted(limit for kept in counts for limit in kept) == sorted([0, 1, 2, 3] * 12)


@pytest.mark.parametrize("command", [("evaluate", "digits"), ("leaderboard", "--local")], ids=lambda words: words[0])
def test_a_file_that_another_process_writes_is_left_to_it(ccf: Ccf, model: Path, command: tuple[str, str]) -> None:
    words = [model if word == "digits" else word for word in command]
    with growing_file(Path("mine"), "", {}, ".json" if command[0] == "evaluate" else ".csv"):
        code, _, err = ccf(*words, "--out", "mine")
    ends_in_one_line(code, err, "expected a file that no other process writes, found mine locked by one")
    assert "--out" in err


@pytest.mark.parametrize("out", ["/proc/mine", "file/mine", None])
@pytest.mark.parametrize("command", ["probe", "evaluate"])
def test_nothing_is_measured_that_cannot_be_written(
    ccf: Ccf, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, out: str | None
) -> None:
    from ccf_plugin.measuring.subject import Subject

    for name in ("file", "results"):
        (tmp_path / name).write_text("mine")
    monkeypatch.setattr(Subject, "forward", None)
    monkeypatch.setattr(Subject, "measure", None)
    code, _, err = ccf(command, model, "--steps", 1, "--limit", 2, *(() if out is None else ("--out", out)))
    assert code in (1, 2)
    assert err.count("\n") == 1
    assert "/proc" in err or "file" in err or "results" in err
    assert {path.name for path in tmp_path.iterdir()} >= {"file", "results"}


def test_reports_of_runs_of_one_name_are_two(ccf: Ccf, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        settings = sets([*SMALLEST, "data.train_per_class=4", "optim.epochs=1"])
        assert ccf("train", "digits", *settings, "--out", f"{folder}/digits")[0] == 0
    for folder in ("a", "b", "a"):
        assert ccf("report", f"{folder}/digits")[0] == 0
    pages = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert len(pages) == 2
    assert pages[-1] == "report-digits.html"
    assert str(tmp_path) not in (tmp_path / "results" / "report-digits.html").read_text(encoding="utf-8")
    code, _, err = ccf("report", "b/digits", "--out", "results/report-digits.html")
    ends_in_one_line(code, err, "--force")


def test_evaluations_of_other_conditions_are_both_kept(ccf: Ccf, model: Path, tmp_path: Path) -> None:
    assert ccf("evaluate", model, "--steps", 1)[0] == 0
    code, _, err = ccf("evaluate", model, "--steps", 1, "--limit", 12)
    assert (code, err) == (0, "")
    name = "digits-evaluation-Linf-8of255"
    images = {file.name: json.loads(file.read_text())["images"] for file in (tmp_path / "results").iterdir()}
    assert images == {f"{name}.json": 450, f"{name}-limit12.json": 12}
    code, _, err = ccf("evaluate", model, "--steps", 1, "--limit", 12, "--out", f"results/{name}.json")
    ends_in_one_line(code, err, "limit none there, 12 now")
    assert "{" not in err


def test_a_leaderboard_of_other_conditions_is_another(ccf: Ccf, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", x=np.zeros((10, 32, 32, 3), np.uint8), y=np.arange(10))
    from ccf_plugin.files import csv_bytes
    from ccf_plugin.measuring.leaderboard import _COLUMNS

    row = {"model": "Wong2020Fast", "cas": 1.0, "robust_accuracy": 0.5, "clean_accuracy": 0.6, "instance_cas": 2.0}
    row |= {"data": "npz:images.npz", "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20, "seed": 0}
    row |= {"precision": "float32", "attack": "PGD"}
    file = _in(tmp_path / "results") / "leaderboard-cifar10-Linf.csv"
    file.write_bytes(csv_bytes(_COLUMNS, [row]))
    before = file.read_bytes()
    board = ("leaderboard", "--local", "--data", "npz:images.npz", "--only", "Wong2020Fast")
    assert ccf(*board)[0] == 0
    assert file.read_bytes() == before  # the same, and all of it is there
    code, out, _ = ccf(*board, "--limit", 5, "--eps", "4/255")
    assert code == 0
    assert "results/leaderboard-cifar10-Linf-eps4of255-step1of255-limit5.csv" in out
    assert file.read_bytes() == before
