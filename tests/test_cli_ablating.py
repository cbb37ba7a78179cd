"""ablate as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bad_inputs.cases import ends_in_one_line
from support.commands import Ccf

QUICK = ("--steps", 1, "--limit", 100)


def test_all_pairs_clean_and_a_few_attacked(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    code, out, err = ccf("ablate", digits_run, *QUICK, "--strongest", 1, "--out", "mine")
    assert (code, err) == (0, "")
    described = json.loads((tmp_path / "mine.json").read_text())
    assert len(described["pairs"]) == 45
    assert len(described["attacked"]) == 1
    assert described["attacked"][0]["pair"] == described["pairs"][0]["pair"]
    assert described["count"] == max(1, described["features"] // 20)
    for text in ("45 pairs, 100 clean images of digits", "shared by the pair", "Spearman", "under attack (PGD-1"):
        assert text in out
    assert f"{described['mean_change']['shared']['rest']:+.2f}" in out
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_json_alone_and_a_pair_by_name(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    options = (*QUICK, "--features", 3, "--pair", "3,8", "--pair", "1,7", "--json", "--out", "again.json")
    code, out, err = ccf("ablate", digits_run, *options)
    assert (code, err) == (0, "")
    described = json.loads(out)
    assert described == json.loads((tmp_path / "again.json").read_text())
    assert [pair["pair"] for pair in described["attacked"]] == [["3", "8"], ["1", "7"]]
    assert described["count"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"again.json", "again.png"}


def test_clean_attacks_nothing(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    code, out, _ = ccf("ablate", digits_run, "--clean", "--limit", 100)
    assert code == 0
    assert "under attack" not in out
    (file,) = (tmp_path / "results").glob("*-ablation.json")
    described = json.loads(file.read_text())
    assert (described["attacked"], described["threat"]) == ([], None)


BAD = {
    "a pair of one": (["--pair", "3"], "--pair: expected two classes such as cat,dog"),
    "an unknown class": (["--pair", "3,ten"], "--pair: expected a class's name or its index below 10, found 'ten'"),
    "a class and itself": (["--pair", "3,3"], "--pair: expected two classes, found 3 twice"),
    "a pair to attack on clean images": (["--pair", "3,8", "--clean"], "expected --clean or --pair, found both"),
    "no features": (["--features", "0"], "--features: expected at least 1, found 0"),
    "too many features": (["--features", "999"], "--features: expected at most half of the head's"),
    "no head": (["python:training.own_models:Headless", "--data", "digits"], "probabilities"),
    "one image": (["--limit", "1"], "expected two classes with images or more, found fewer; raise --limit"),
    "a job of several processes": ([], "in one process, found a job of 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(
    ccf: Ccf, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2" if "processes" in case else "1")
    arguments, message = BAD[case]
    model = [] if any(argument.startswith("python:") for argument in arguments) else [digits_run]
    code, out, err = ccf("ablate", *model, *arguments)
    assert out == ""
    ends_in_one_line(code, err.splitlines(keepends=True)[-1], message)
    assert not list(tmp_path.iterdir())
