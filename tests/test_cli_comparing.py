"""compare and saliency as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs.cases import ends_in_one_line
from support.commands import RANDOM_WEIGHTS, Ccf
from training.own_models import Named, Small

from ccf_plugin.probe import CrossClassResult
from ccf_plugin.probe.confidence import mcnemar
from ccf_plugin.zoo.datasets import load_data

QUICK = ("--steps", 2, "--limit", 60)


def test_a_run_s_best_against_its_last(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    code, out, err = ccf("compare", digits_run, "--steps", 2, "--limit", 200, "--bootstrap", 20, "--out", "mine")
    assert (code, err) == (0, "")
    for text in ("clean accuracy", "RA (PGD-2)", "CAS", "95% interval", "I-CAS", "pairs that lost most", "gained most"):
        assert text in out
    described = json.loads((tmp_path / "mine.json").read_text())
    low, high = described["bootstrap"]["difference"]
    assert low <= described["difference"]["cas"] <= high
    first, second = (CrossClassResult.load(tmp_path / f"mine-{letter}") for letter in "ab")
    assert described["difference"]["cas"] == pytest.approx(first.cas - second.cas)
    assert described["first"]["cas"] == first.cas
    assert f"{first.cas - second.cas:+.2f}" in out
    test = described["accuracy_tests"]["robust_accuracy"]
    right = [result.correct for result in (first, second)]
    assert test["p"] == mcnemar(*right).p
    assert f"p = {test['p']:.2g} (McNemar)" in out
    assert described["first"]["intervals"]["robust_accuracy"] == list(first.interval())
    low, high = described["paired"]["excess"]["difference"]
    assert low < described["difference"]["cas_excess"] < high
    surviving = described["paired"]["pairs"]["surviving"]
    assert f"{surviving} of 45 pairs of classes differ" in out
    negative = np.triu((first.matrix < 0) & (second.matrix < 0)).sum()
    assert described["negative_in_both"] == negative > 0
    assert f"C of {negative} of 45 pairs is negative in both" in out
    assert "By chance: with the entries of each class attribution permuted." in out
    for pair in described["lost"] + described["gained"]:
        low, high = pair["band"]
        assert low < pair["first"] - pair["second"] < high
        assert pair["survives"] == (not low <= 0 <= high)
    shown = [float(line.split()[5]) for line in out.splitlines() if re.match(r" \d – \d ", line)]
    lost, gained = (
        sum(max(p[key], 0) * sign for key, sign in (("first", 1), ("second", -1)))
        for p in (described["lost"][0], described["gained"][0])
    )
    assert shown[:5] == sorted(shown[:5], reverse=True)
    assert (shown[0], shown[5]) == (pytest.approx(lost, abs=0.006), pytest.approx(gained, abs=0.006))
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")

    # the saved results give the same comparison, and nothing is measured again
    code, out, err = ccf("compare", "mine-a", "mine-b.npz", "--json", "--out", "again")
    assert (code, err) == (0, "")
    again = json.loads(out)
    assert again == json.loads((tmp_path / "again.json").read_text())
    assert again["difference"] == described["difference"]
    assert {path.name for path in tmp_path.glob("again*")} == {"again.json", "again.png"}


BEGINNINGS = {".json": b"{", ".pdf": b"%PDF", ".svg": b"<?xml", ".png": b"\x89PNG", ".tex": b"% needs", ".md": b"|"}


@pytest.mark.parametrize(
    ("arguments", "endings"),
    [
        (("--out", "both", "--format", "pdf,tex, SVG"), {".pdf", ".tex", ".svg"}),
        (("--out", "both.pdf"), {".pdf"}),
        (("--out", "both.pdf", "--format", ".md"), {".md"}),
    ],
)
def test_pictures_and_tables_are_what_their_names_say(
    ccf: Ccf, tmp_path: Path, arguments: tuple[str, ...], endings: set[str]
) -> None:
    for name, accuracy in (("one", 0.75), ("two", 0.5)):
        CrossClassResult(np.eye(3), np.ones((3, 2)), np.full(3, 20), accuracy=accuracy).save(tmp_path / name)
    code, out, err = ccf("compare", "one", "two", *arguments)
    assert (code, err) == (0, "")
    written = {path.suffix: path.read_bytes() for path in tmp_path.glob("both*")}
    assert set(written) == endings | {".json"}
    assert [ending for ending, content in written.items() if not content.startswith(BEGINNINGS[ending])] == []
    assert all(f"both{ending}" in out for ending in written)


@pytest.mark.parametrize("formats", ["jpg", "png,,bmp", ""])
def test_a_format_that_there_is_not_is_said_before_anything_is_measured(ccf: Ccf, tmp_path: Path, formats: str) -> None:
    for name in ("one", "two"):
        CrossClassResult(np.eye(3), np.ones((3, 2)), np.full(3, 20)).save(tmp_path / name)
    code, _, err = ccf("compare", "one", "two", "--format", formats)
    assert (code, err) == (
        2,
        f"ccf: --format: expected some of png, pdf, svg, tex, md, csv, with commas between, found {formats!r}\n",
    )


def test_two_models_of_one_name_are_told_apart(ccf: Ccf, digits_run: Path) -> None:
    arguments = ("saliency", digits_run / "last.safetensors", digits_run / "last.safetensors", "--indices", "3")
    code, out, _ = ccf(*arguments, *QUICK, "--out", "s")
    assert code == 0
    assert out.index("-a says") < out.index("-b says")


def test_results_of_ones_own_loop_have_an_accuracy_that_is_no_ra(ccf: Ccf, tmp_path: Path) -> None:
    for name, accuracy in (("one", 0.75), ("two", 0.5)):
        CrossClassResult(np.eye(3), np.ones((3, 2)), np.full(3, 20), accuracy=accuracy).save(tmp_path / name)
    code, out, err = ccf("compare", "one", "two", "--out", "both")
    assert (code, err) == (0, "")
    assert " accuracy " in out
    assert "75.0%" in out
    assert "+25.0 points" in out
    assert "RA" not in out


def test_an_entry_of_the_output_is_chosen_for_both(ccf: Ccf, tmp_path: Path) -> None:
    spec = "python:training.own_models:Named"
    chosen = ("--data", "digits", "--clean", "--limit", 20, "--output", "two")
    code, _, err = ccf("compare", spec, spec, *chosen, "--out", "both")
    assert code == 0
    assert set(err.splitlines()) == {f"ccf: note: {spec} {RANDOM_WEIGHTS}"}
    heads = [CrossClassResult.load(tmp_path / f"both-{letter}").head for letter in "ab"]
    assert [head.name for head in heads if head is not None] == ["second", "second"]

    arguments = ("--indices", "3,5", "--pair", "3,8", "--out", "seen", "--head", "second")
    code, _, err = ccf("saliency", spec, spec, *chosen, *arguments)
    assert code == 0
    assert set(err.splitlines()) == {f"ccf: note: {spec} {RANDOM_WEIGHTS}"}
    described = json.loads((tmp_path / "seen.json").read_text())
    # the two commands read the images in other batches, whose float32 features other kernels may round otherwise
    expected = CrossClassResult.load(tmp_path / "both-a").matrix[3, 8]
    assert described["pair"]["correlation"] == pytest.approx(expected, abs=1e-5)
    images = load_data("digits", splits=("test",), test_limit=20).test.images[[3, 5]].float() / 255  # type: ignore[union-attr]
    with torch.no_grad():
        predicted = Named().eval()(images)["two"].argmax(1).tolist()
    assert [example["best"] for example in described["examples"]] == [str(label) for label in predicted]


def test_an_entry_of_an_output_that_has_none_is_told_in_one_line(ccf: Ccf) -> None:
    entries, alone = "python:training.own_models:Named", "python:training.own_models:Small"
    quick = ("--data", "digits", "--limit", 20, "--output", "two")
    for arguments in (
        ("compare", entries, alone, "--clean"),
        ("probe", alone, "--clean"),
        ("evaluate", alone, "--steps", 1),
    ):
        code, _, err = ccf(*arguments, *quick)
        assert code == 0, err
        told = [line for line in err.splitlines() if not line.endswith(RANDOM_WEIGHTS)]
        assert told == [f"ccf: note: output 'two' is not used: {alone} returns one tensor"]


def test_settings_that_change_nothing_are_told(ccf: Ccf, digits_run: Path) -> None:
    useless = ("--clean", "--precision", "bf16", "--no-pretrained")
    code, _, err = ccf("probe", digits_run, "--limit", 20, *useless)
    assert code == 0
    assert err.splitlines() == [
        "ccf: note: precision bf16 is not used: it is the attack's, and the images are clean",
        f"ccf: note: no random weights are taken: {digits_run} has those of its file or code",
    ]


def test_a_run_s_saved_results_are_called_by_their_run(ccf: Ccf, tmp_path: Path) -> None:
    for run in ("kd-0", "madry-0"):
        (tmp_path / run / "probe").mkdir(parents=True)
        CrossClassResult(np.eye(3), np.ones((3, 2)), np.full(3, 20), accuracy=0.5).save(
            tmp_path / run / "probe" / "best"
        )
    code, out, _ = ccf("compare", "madry-0/probe/best", "kd-0/probe/best.npz", "--format", "tex")
    assert code == 0
    assert "madry-0-best" in out
    assert (tmp_path / "results" / "madry-0-best-against-kd-0-best-clean.tex").is_file()


def test_saved_results_of_two_input_sizes_are_refused(ccf: Ccf, tmp_path: Path) -> None:
    for name, side in (("one", 32), ("two", 224)):
        data = {"name": "cifar10", "split": "test", "count": 60, "input_size": [3, side, side]}
        CrossClassResult(np.eye(3), np.ones((3, 2)), np.full(3, 20), data=data, accuracy=0.5).save(tmp_path / name)
    code, _, err = ccf("compare", "one", "two")
    ends_in_one_line(
        code, err, "found input size 3×32×32 and 3×224×224; measure one of the models again under the other result's"
    )


def test_a_bare_checkpoint_names_all_that_take_weights(ccf: Ccf, tmp_path: Path) -> None:
    torch.save(Small().state_dict(), tmp_path / "bare.pt")
    code, _, err = ccf("compare", "bare.pt", "bare.pt")
    takers = "preact_resnet18, narrow_preact_resnet18, timm:name or python:package.module:factory"
    ends_in_one_line(code, err, f"load {takers} with --checkpoint bare.pt")


BAD = {
    "one thing that is no run": (["compare", "nowhere"], "expected two models, or one run folder"),
    "a result that is not there": (["compare", "absent.npz", "{run}"], "expected the result file absent.npz"),
    "an attack on one side": (["compare", "clean", "attacked"], "attack none and PGD"),
    "results of other classes": (["compare", "clean", "three"], "classes 10 and 3"),
    "options for what is measured already": (["compare", "clean", "clean", "--eps", "4/255"], "with --eps"),
    "one resample": (["compare", "{run}", "--bootstrap", "1"], "--bootstrap: expected 2 or more"),
    "colours the wrong way round": (["compare", "clean", "clean", "--vmin", "2"], "expected vmin below vmax"),
    "saliency of a result": (["saliency", "clean", "{run}"], "a saved result, which has no weights"),
    "a head that nothing needs": (["saliency", "{run}", "--head", "linear"], "--head beside --pair"),
    "a head of what is measured already": (
        ["compare", "clean", "clean", "--head", "fc", "--output", "1"],
        "--head, --output",
    ),
    "a head that is no layer": (["compare", "{run}", "--head", "linea"], "did you mean 'linear'"),
    "a pair of one": (["saliency", "{run}", "--pair", "3"], "--pair: expected two classes"),
    "an unknown class": (
        ["saliency", "{run}", "--class", "cat"],
        "--class: expected a class's name or its index below 10",
    ),
    "indices in words": (["saliency", "{run}", "--indices", "three"], "--indices: expected numbers"),
    "class and indices": (["saliency", "{run}", "--indices", "3", "--class", "3"], "--class or --indices"),
    "a job of several processes": (["compare", "{run}"], "in one process, found a job of 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(
    ccf: Ccf, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    threat = {"attack": "PGD", "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20}
    CrossClassResult(np.eye(10), np.ones((10, 2)), np.full(10, 6)).save(tmp_path / "clean")
    CrossClassResult(np.eye(10), np.ones((10, 2)), np.full(10, 6), threat=threat).save(tmp_path / "attacked")
    CrossClassResult(np.eye(3), np.ones((3, 2)), np.full(3, 20)).save(tmp_path / "three")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    if "processes" in case:
        monkeypatch.setenv("WORLD_SIZE", "2")
    arguments, message = BAD[case]
    code, out, err = ccf(*(argument.format(run=digits_run) for argument in arguments))
    assert out == ""
    ends_in_one_line(code, err, message)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saliency_of_a_run(ccf: Ccf, digits_run: Path, tmp_path: Path) -> None:
    arguments = (
        "--eps",
        "20/255",
        "--steps",
        3,
        "--count",
        4,
        "--pair",
        "3,8",
        "--features",
        3,
        "--out",
        "s/here",
        "--format",
        "pdf",
    )
    code, out, err = ccf("saliency", digits_run, *arguments)
    assert (code, err) == (0, "")
    described = json.loads((tmp_path / "s" / "here.json").read_text())
    assert len(described["examples"]) == 4
    for example in described["examples"]:
        assert example["best"] == example["class"] != example["last"]
        assert f"│ {example['index']} " in out
    assert described["pair"]["classes"] == ["3", "8"]
    assert len(described["pair"]["features"]) == 3
    assert f"3 – 8: C = {described['pair']['correlation']:.2f}" in out
    assert "attack: PGD-3, Linf, eps 20/255, step 5/255, on each model itself" in " ".join(out.split())
    for name in ("here.pdf", "here-features.pdf"):
        assert (tmp_path / "s" / name).read_bytes().startswith(b"%PDF")
