"""The page's words and tables, against figures computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.written_runs import WriteRun

from ccf_plugin.report.words import (
    against_published,
    along_epochs,
    describe_saliency,
    environment_rows,
    recipe_differences,
    summarise,
)
from ccf_plugin.runs.reading import RunFiles, Track, read_runs
from ccf_plugin.training.recipe_files import load_recipe


def test_published_figures_belong_to_their_own_file_alone() -> None:
    assert load_recipe("preact_linf").published is not None
    assert load_recipe("preact_linf_kdswa").published is None  # builds on it
    assert load_recipe("cifar_small").published is None
    changed = load_recipe("preact_linf", ["attack.eps=4/255", "seed=1"]).published
    assert changed is not None
    assert changed.changed == ["attack.eps=4/255", "seed=1"]
    assert load_recipe("preact_linf", ["seed=1"]).flat() == load_recipe("preact_linf").flat() | {"seed": 1}


def test_a_run_beside_what_was_published(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=30, every=10, best=20)])
    table = against_published(run, run.tracks[0])
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert table["columns"][1:4] == ["clean accuracy", "RA", "CAS"]
    assert table["columns"][4:] == [
        *("published RA", "published CAS", "AWP's log clean accuracy", "AWP's log RA"),
        *("Rice et al.'s log clean accuracy", "Rice et al.'s log RA"),
    ]
    # RA is 0.48 - 0.3 * 10 / 30 = 38 % at epoch 10, published are 36.9 %; at the best it is 48 % against 47.8 %.
    assert rows["10"][1] == "38.0 %"
    assert rows["10"][3] == "36.9 % (here +1.1)"
    assert rows["best (20)"][3] == "47.8 % (here +0.2)"
    assert rows["last (30)"][3] == "42.5 % (here \N{MINUS SIGN}4.5)"
    assert rows["190 (not evaluated)"] == ["–", "–", "–", "42.8 %", "9.1", "", "", "", ""]
    assert rows["best (20)"][6] == "52.8 % (here \N{MINUS SIGN}4.8)"
    assert table["standing"].startswith(
        "The best RA, 48.0 %, stands +0.2 points from the 47.8 % of the source above and \N{MINUS SIGN}4.8 points from "
        "the 52.8 % of AWP's log and \N{MINUS SIGN}5.5 points from the 53.5 % of Rice et al.'s log. "
    )
    assert "names no attack" in table["standing"]
    assert table["changed"] == ["optim.epochs=30"]


def test_without_published_figures_the_table_has_the_measured_ones(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("own", recipe="cifar_small", epochs=4, best=2)])
    table = against_published(run, run.tracks[0])
    assert [row[0] for row in table["rows"]] == ["best (2)", "last (4)"]
    assert table["columns"] == ["epoch", "clean accuracy", "RA", "CAS"]
    assert table["source"] is None


def test_published_figures_stand_beside_the_averaged_weights_of_a_run_that_averages(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("wake", recipe="preact_l2_wake", epochs=4, best=2, averaged=True)])
    raw, averaged = (against_published(run, track) for track in run.tracks)
    assert (raw["source"], raw["columns"][4:]) == (None, [])
    assert (raw["is_output"], averaged["is_output"]) == (False, True)
    assert averaged["columns"][4:] == ["published clean accuracy", "published RA"]


def test_a_run_in_one_sentence(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=12, every=2, best=4)])
    text = summarise(run, run.tracks[0])
    assert "best at epoch 4 (clean accuracy 73.3 %, RA 48.0 %, CAS" in text
    assert "by test robust accuracy; last evaluated at epoch 12 (clean accuracy 80.0 %, RA 28.0 %" in text
    assert "robust overfitting at epochs 8 to 12; CAS falling at epochs 8 to 12." in text
    (calm,) = read_runs([write_run("calm", epochs=2, best=2)])
    assert "no alarm in the log" in summarise(calm, calm.tracks[0])


def test_what_moved_adds_up_in_words(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", recipe="preact_linf_wake", epochs=8, best=4, averaged=True, evidence=True)])
    raw, averaged = run.tracks
    best, last = run.rows[3], run.rows[7]
    steps = [(getattr(last, name) or 0) - (getattr(best, name) or 0) for name in ("cas", "cas_null", "cas_excess")]
    assert steps[0] == pytest.approx(steps[1] + steps[2], abs=1e-3)
    cas, chance, beyond = (f"\N{MINUS SIGN}{-step:.1f}" for step in steps)
    text = summarise(run, raw)
    assert f"from the best epoch to the last CAS moved by {cas}: by chance {chance}, beyond chance {beyond}; " in text
    # 1.1 + 2 / epoch is 1.6 at epoch 4 and 1.35 at epoch 8
    shared = f"\N{MINUS SIGN}{1 - (last.shared or 0) / (best.shared or 0):.0%}".replace("%", " %")
    assert f"the shared part by {shared} and the squared lengths by \N{MINUS SIGN}16 %, in variances" in text
    assert "by chance" not in summarise(run, averaged)  # of the averaged weights the log has no such figures
    assert "shared part" not in summarise(run, averaged)


def test_spans_of_alarms_skip_what_was_calm(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=12, every=2, best=2)])
    noisy = [replace(row, alarm="CAS falling" if row.epoch in (2, 6, 8, 12) else "") for row in run.rows]
    track = Track("x", "", noisy, run.tracks[0].best, run.tracks[0].matrices)
    assert summarise(run, track).endswith("; CAS falling at epochs 2, 6 to 8, 12.")


def test_a_run_that_was_never_evaluated_says_so(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=2)])
    blind = [replace(row, test_clean_accuracy=None, test_robust_accuracy=None, cas=None) for row in run.rows]
    track = Track("x", "", blind, None, run.tracks[0].matrices)
    assert summarise(run, track) == "x: 2 epochs, none of them evaluated."
    assert ["best (not evaluated)", "–", "–", "–"] in [row[:4] for row in against_published(run, track)["rows"]]
    assert along_epochs(track)["rows"] == []


def test_the_curves_as_a_table_have_what_was_measured(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=4, every=2, best=2)])
    table = along_epochs(run.tracks[0])
    assert table["columns"] == ["epoch", "train loss", "train RA", "clean accuracy", "RA", "CAS", "alarm"]
    assert [row[0] for row in table["rows"]] == ["2 (best)", "4"]
    assert table["rows"][0][1:5] == ["2.000", "50.0 %", "75.0 %", "48.0 %"]


def test_recipes_side_by_side_show_only_what_differs(write_run: WriteRun) -> None:
    runs: list[RunFiles] = read_runs(
        [
            write_run("a", epochs=2, overrides=("attack.eps=4/255",)),
            write_run("b", recipe="preact_linf_awp", epochs=2),
        ]
    )
    table = recipe_differences(runs)
    assert table["columns"] == ["key", "a", "b"]
    assert {row[0]: row[1:] for row in table["rows"]} == {
        "attack.eps": ["4/255", "8/255"],
        "awp.gamma": ["–", "0.01"],
        "awp.kind": ["–", "awp"],
        "awp.start_epoch": ["–", "0"],
    }
    assert ("versions torch", "2") in environment_rows(runs[0])
    assert ("command", "ccf train") in environment_rows(runs[0])


def test_saliency_in_words(tmp_path: Path) -> None:
    found = {
        "examples": [{"index": 7, "class": "cat", "best": "cat", "last": "dog"}],
        "pair": {"classes": ["cat", "dog"], "correlation": 0.524, "features": [{"feature": 30, "share": 0.0804}]},
    }
    (tmp_path / "one.json").write_text(json.dumps(found))
    assert describe_saliency(tmp_path / "one.png").endswith(" cat 7: cat, dog.")
    assert describe_saliency(tmp_path / "one-features.png").endswith(" C[cat, dog] = 0.52: 30 (+0.080).")
    for name, text in (("none.png", None), ("other.png", "[]"), ("cut.png", "{")):
        if text is not None:
            (tmp_path / name).with_suffix(".json").write_text(text)
        assert describe_saliency(tmp_path / name) == ""
