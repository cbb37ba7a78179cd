"""ccf probe with --seeds and --groups, and intervals beside accuracies, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bad_inputs.cases import ends_in_one_line
from support.commands import Ccf

from ccf_plugin.probe import CrossClassResult
from ccf_plugin.probe.confidence import wilson

QUICK = ("--steps", 1, "--limit", 40)


def test_accuracies_have_their_interval(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    code, out, err = ccf("probe", digits_run, *QUICK, "--out", "mine")
    assert (code, err) == (0, "")
    result = CrossClassResult.load(tmp_path / "mine")
    described = json.loads((tmp_path / "mine.json").read_text())
    for name in ("clean_accuracy", "robust_accuracy"):
        share = getattr(result, name)
        low, high = wilson(round(40 * share), 40)
        assert described["intervals"][name] == [low, high]
        assert f"{share:.1%} (95%: {low:.1%} to {high:.1%})" in out
    assert described["intervals"]["accuracy"] is None

    code, out, err = ccf("evaluate", digits_run, "--steps", 1, "--limit", 40, "--out", "evaluation")
    assert (code, err) == (0, "")
    described = json.loads((tmp_path / "evaluation.json").read_text())
    for name, share in described["accuracies"].items():
        low, high = described["intervals"][name]
        assert (low, high) == wilson(round(40 * share), 40)
        assert f"{share:.1%} (95%: {low:.1%} to {high:.1%})" in out


def test_seeds_are_repeats_of_single_measurements(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    code, out, err = ccf("probe", digits_run, *QUICK, "--seed", 4, "--seeds", 2, "--eps", "24/255", "--out", "both")
    assert (code, err) == (0, "")
    both = CrossClassResult.load(tmp_path / "both")
    for seed, repeat in zip((4, 5), both.repeats, strict=True):
        ccf("probe", digits_run, *QUICK, "--seed", seed, "--eps", "24/255", "--out", f"seed{seed}")
        single = CrossClassResult.load(tmp_path / f"seed{seed}")
        assert repeat == single.figures()
    mean, deviation = both.spread["cas"]
    assert f"{mean:.2f} ± {deviation:.2f}" in out
    assert "CAS, 2 seeds" in out
    assert single.repeats == ()


def test_groups_are_told_and_written(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    groups = "round: 0,6,8,9,3,5; straight: 1,7,4,2"
    code, out, err = ccf("probe", digits_run, *QUICK, "--groups", groups, "--out", "mine")
    assert (code, err) == (0, "")
    described = json.loads((tmp_path / "mine.json").read_text())["groups"]
    assert described["members"]["straight"] == ["1", "2", "4", "7"]
    assert described["within_minus_between"]["exact"]
    assert f"p = {described['within_minus_between']['p']:.2g} (all 210 arrangements)" in out
    assert "C against confusions" in out
    CrossClassResult.load(tmp_path / "mine")

    # other groups are another result
    for text in (groups, "cluster:3"):
        code, _, err = ccf("probe", digits_run, *QUICK, "--groups", text)
        assert (code, err) == (0, "")
    code, out, err = ccf("probe", digits_run, *QUICK, "--groups", "cluster:3", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["groups"]["within_minus_between"]["p"] is None
    assert len(list((tmp_path / "results").glob("*.json"))) == 2


BAD = {
    "a class in no group": (
        ["--groups", "1,2;3,4"],
        "--groups: expected a group for each of 10 classes, found none for",
    ),
    "a file that is not there": (["--groups", "absent.txt"], "--groups: expected cifar10, cifar100, cluster"),
    "groups of other data": (["--groups", "cifar10"], "--groups: expected a class's name or its index below 10"),
    "too many clusters": (["--groups", "cluster:10"], "a number of clusters from 2 to 9"),
    "seeds of clean images": (["--clean", "--seeds", "2"], "--seeds: expected an attack to repeat"),
    "no seed": (["--seeds", "0"], "--seeds"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(ccf: Ccf, digits_run: Path, tmp_path: Path, case: str) -> None:
    arguments, message = BAD[case]
    code, out, err = ccf("probe", digits_run, *arguments)
    assert out == ""
    ends_in_one_line(code, err, message)
    assert list(tmp_path.iterdir()) == []


_GAUGED = """
import torch
from torch import nn

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

def shifted():
    model = plain()
    model[3].weight.data += torch.linspace(-1, 2, 12)
    return model
"""


def test_a_centred_measurement_does_not_know_the_mean_row(ccf: Ccf, tmp_path: Path) -> None:
    (tmp_path / "gauged.py").write_text(_GAUGED)
    results = {}
    for name in ("plain", "shifted"):
        for centre in ((), ("--centre",)):
            out = f"{name}{len(centre)}"
            code, printed, _ = ccf(
                "probe", f"python:gauged:{name}", "--data", "digits", "--clean", "--limit", 40, *centre, "--out", out
            )
            assert code == 0
            assert ("a centred measurement is without it" in " ".join(printed.split())) is (not centre)
            results[out] = CrossClassResult.load(tmp_path / out)
    assert results["shifted1"].cas == pytest.approx(results["plain1"].cas, rel=1e-5)  # float32 logits
    assert abs(results["shifted0"].cas - results["plain0"].cas) > 1
    code, out, err = ccf("compare", "plain0", "plain1")
    assert (code, out) == (2, "")
    assert "centred False and True" in err
