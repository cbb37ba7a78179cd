"""``ccf theory`` as a user meets it: the table, the files, and what it refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from support.commands import run_here
from torch import Tensor

from ccf_plugin.theory import SyntheticModel

QUICK = ["--points", "2", "--samples", "20000"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("COLUMNS", "80")
    return run_here("theory", *arguments)


def test_the_table_states_the_agreement_and_the_files_hold_the_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, *QUICK, "--beta", "0.2", "--out", str(tmp_path / "new" / "theory.csv")) == 0
    shown = capsys.readouterr().out
    assert "ε₀ = 0.3307, ε₁ = 0.4557 (β = 0.2)" in shown
    assert "Closed forms, sampling and training agree" in shown
    assert "…" not in shown  # nothing cut off at 80 columns
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["theory.csv", "theory.json", "theory.png"]
    rows = list(csv.DictReader(StringIO((tmp_path / "new" / "theory.csv").read_text())))
    assert [(row["beta"], row["eps"]) for row in rows] == [
        (beta, eps) for beta in ("0", "0.2") for eps in ("0.166667", "0.333333")
    ]
    assert float(rows[2]["w2"]) == pytest.approx(1 - 0.8 * (1 / 3 + 0.6 / 3.141593**0.5), abs=1e-5)
    with Image.open(tmp_path / "new" / "theory.png") as figure:
        assert figure.size[0] > 1000


def test_json_is_all_that_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, *QUICK, "--beta", "0.3", "--json", "--out", str(tmp_path / "theory")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parameters"]["beta"] == 0.3
    assert printed["eps_0"] < 0.5 < printed["eps_1"]
    assert printed == json.loads((tmp_path / "theory.json").read_text())


def test_json_alone_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *QUICK, "--json") == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["samples"] == 20_000
    assert not list(tmp_path.iterdir())


def test_a_wrong_closed_form_ends_with_1_and_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As eq. (36) is printed: its variance doubled."""
    right = SyntheticModel.pairwise_probability

    def as_printed(self: SyntheticModel, weights: Tensor, eps: float) -> float:
        return right(replace(self, sigma=self.sigma * 2**0.5), weights, eps)

    monkeypatch.setattr(SyntheticModel, "pairwise_probability", as_printed)
    assert run(monkeypatch, *QUICK, "--out", str(tmp_path / "theory")) == 1
    captured = capsys.readouterr()
    assert "Closed forms, sampling and training DO NOT AGREE" in captured.out
    assert captured.err.startswith("ccf: expected closed forms, sampling and training to agree, found that they do not")
    assert captured.err.count("\n") == 1
    assert json.loads((tmp_path / "theory.json").read_text())["agreement"]["agrees"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigma", "2"], "sigma: expected below sqrt(pi K) mu = 1.772, found 2"),
        (["--beta", "0.5"], "beta: expected label smoothing from 0 to below 1/3, found 0.5"),
        (["--beta", "0"], "beta: expected label smoothing above 0"),
        (["--samples", "1"], "samples: expected 300 to"),
        (["--lam", "much"], "Invalid value for '--lam'"),
    ],
)
def test_bad_values_are_one_line_and_write_nothing(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run(monkeypatch, *arguments, "--out", str(tmp_path / "theory")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
