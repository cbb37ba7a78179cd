"""evaluate and leaderboard as a user meets them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_inputs.cases import ends_in_one_line
from support.commands import Ccf, ended, start, wait_until

from ccf_plugin.zoo.models import load_model


def test_an_evaluation_says_on_how_many_images(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", digits_run, "--limit", 30, "--steps", 2, "--steps", 3)
    code, out, err = ccf(*arguments)
    assert (code, err) == (0, "")
    for text in ("30 test images of digits", "clean accuracy", "PGD-2 accuracy", "PGD-3 accuracy", "Linf, eps 8/255"):
        assert text in out
    (file,) = (tmp_path / "results").iterdir()
    assert file.name.endswith("-evaluation-Linf-8of255.json")
    code, out, err = ccf(*arguments, "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed["images"] == 30
    assert printed["accuracies"] == json.loads(file.read_text())["accuracies"]


def test_autoattack_from_the_command_line(ccf: Ccf, digits_run: Path) -> None:
    """Every image falls to its first attack at this radius, so that it is quick."""
    arguments = ("--limit", 10, "--steps", 5, "--eps", "0.5", "--autoattack", "--out", "here.json", "--seed", 1)
    code, out, err = ccf("evaluate", digits_run, *arguments)
    assert (code, err) == (0, "")
    assert "AutoAttack accuracy" in out
    assert "points more than AutoAttack; over 10 points would suggest gradient masking" in " ".join(out.split())


@pytest.mark.slow
def test_a_killed_evaluation_is_continued(digits_run: Path, tmp_path: Path, ccf: Ccf) -> None:
    arguments = ["evaluate", str(digits_run), "--steps", "60", "--batch-size", "15", "--out", "here"]
    file = tmp_path / "here.json"

    def has_begun() -> bool:
        return file.exists() and "PGD-60" in json.loads(file.read_text())["progress"]

    with ended(start(*arguments, cwd=tmp_path)) as process:
        wait_until(has_begun, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "ccf: interrupted; run it again to continue after the last finished batch\n"
    done = json.loads(file.read_text())["progress"]["PGD-60"]["batches"]
    assert 1 <= done < 30
    code, _, _ = ccf(*arguments, "--json")
    assert code == 0
    assert json.loads(file.read_text())["progress"]["PGD-60"]["batches"] == 30


def test_a_leaderboard_from_files(ccf: Ccf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("gdown.download", fail)
    name, absent = "Rade2021Helper_R18_extra", "Wong2020Fast"
    path = tmp_path / "models" / "cifar10" / "Linf" / f"{name}.pt"
    path.parent.mkdir(parents=True)
    torch.save(load_model(f"robustbench:{name}", pretrained=False).model.state_dict(), path)
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(20) % 10)
    arguments = ("leaderboard", "--data", "npz:images.npz", "--steps", 1, "--only", name, "--only", absent)
    code, out, err = ccf(*arguments)
    assert (code, err) == (0, "")
    for text in (f"{name}: RA ", "57.7%", f"{absent}: could not download", "1 could not be measured", "(0 to go)"):
        assert text in out
    file = tmp_path / "results" / "leaderboard-cifar10-Linf.csv"
    assert len(file.read_text().splitlines()) == 3
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = ccf(*arguments)
    assert code == 0
    assert f"{name}: RA" not in out, "measured already"
    assert f"{absent}: could not download" in out


BAD = {
    "a data set that RobustBench lacks": (
        ["leaderboard", "--dataset", "cifar11"],
        "no dataset 'cifar11'; it has cifar10",
    ),
    "corruptions": (["leaderboard", "--threat", "corruptions"], "expected threat Linf or L2, found corruptions"),
    "no images for the leaderboard": (["leaderboard"], "--download"),
    "another evaluation in the file": (["evaluate", "{run}", "--limit", "9", "--out", "other"], "--restart"),
    "no steps": (["evaluate", "{run}", "--steps", "0", "--out", "new"], "--steps: expected at least 1, found 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(ccf: Ccf, digits_run: Path, tmp_path: Path, case: str) -> None:
    (tmp_path / "other.json").write_text("{}")
    arguments, message = BAD[case]
    code, out, err = ccf(*(argument.format(run=digits_run) for argument in arguments))
    assert out == ""
    ends_in_one_line(code, err, message)
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]
    assert (tmp_path / "other.json").read_text() == "{}"
