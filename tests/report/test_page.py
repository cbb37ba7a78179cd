"""The page as a file: whole, small, closed to the outside and to what strangers put into names."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.written_runs import WriteRun

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.report.page import build_report


class _Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def _data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_the_page_is_one_file_that_refers_to_nothing(write_run: WriteRun) -> None:
    page = build_report([write_run("long", epochs=200, every=4, best=108)])
    assert len(page.encode()) < 5_500_000  # 4.8 MB of it is plotly
    elements = _Elements(page).found
    assert not [attributes for _, attributes in elements if {"src", "href"} & attributes.keys()]
    assert not [tag for tag, _ in elements if tag in ("link", "iframe", "base", "object")]
    policy = next(attributes["content"] for tag, attributes in elements if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_a_run_of_many_classes_stays_small_and_says_what_it_leaves_out(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run("many", epochs=9, best=4, classes=tuple(f"n{index:08}" for index in range(200)))
    assert "probed epochs are in this page" not in build_report([folder])
    monkeypatch.setattr("ccf_plugin.report.matrices._CHARACTERS", 300_000)
    page = build_report([folder])
    assert "the matrices of 4 of 9 probed epochs are in this page" in page
    assert [state["epoch"] for state in _data(page)["tracks"][0]["states"]] == [1, 4, 6, 9]


def test_names_are_text_and_never_markup(write_run: WriteRun) -> None:
    hostile = "</script><script>alert(1)</script>"
    page = build_report([write_run("run", epochs=2, classes=("cat", hostile, "<b>dog</b>"), recipe="cifar_small")])
    assert hostile not in page
    assert "<b>dog" not in page
    assert _data(page)["classes"] == ["cat", hostile, "<b>dog</b>"]
    assert len([tag for tag, _ in _Elements(page).found if tag == "script"]) == 3


def test_notes_say_what_hinders_a_comparison(write_run: WriteRun) -> None:
    threat = {"attack": "PGD", "norm": "Linf", "eps": 4 / 255, "steps": 20}
    runs = [write_run("a", epochs=2), write_run("b", epochs=2, threat=threat)]
    page = build_report(runs)
    assert "a: PGD-20, Linf, eps 8/255, step 2/255; b: PGD-20, Linf, eps 4/255" in page
    assert "which flatters it" in page
    recipe = runs[0] / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("epochs = 2\n", "epochs = 30\n"))
    assert "a has 2 of 30 epochs" in build_report(runs[:1])


def test_other_pixels_of_the_same_name_are_noted(write_run: WriteRun) -> None:
    runs = [write_run("a", epochs=2), write_run("b", epochs=2)]
    note = "test images are of one name and number, and their pixels differ"
    assert note not in build_report(runs)
    for run in runs:
        for file in (run / "probe").glob("*.json"):
            file.write_text(file.read_text().replace('"provenance": {}', f'"provenance": {{"images": "{run.name}"}}'))
    assert note in build_report(runs)
    assert note not in build_report(runs[:1])


def test_panels_and_confusions_are_told_where_they_are(write_run: WriteRun) -> None:
    plain, page = (build_report([write_run("run", epochs=2, evidence=evidence)]) for evidence in (False, True))
    for words in (
        "what of it is chance",
        "their squared lengths",
        'id="confusion"',
        "Accuracy by class",
        "not selected",
    ):
        assert words in page
        assert words not in plain.split('<script type="application/json"')[0]


def test_saliency_pictures_are_shown_as_far_as_there_is_room(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run("seen", epochs=2)
    assert "heading-saliency" not in build_report([folder])
    (folder / "saliency").mkdir()
    (folder / "saliency" / "cat_3.png").write_bytes(b"\x89PNG" + bytes(100))
    (folder / "saliency" / "dog_5.png").write_bytes(b"\x89PNG" + bytes(8_000_000))
    page = build_report([folder])
    assert 'alt="seen: cat 3"' in page
    assert "dog 5" not in page
    assert "1 more pictures lie in" in page
    assert len(page.encode()) < 8_000_000


def test_every_figure_says_what_it_is(write_run: WriteRun) -> None:
    page = build_report([write_run("run", epochs=4, best=2, evidence=True)])
    measured = "RA under PGD-20, Linf, eps 8/255, step 2/255, 1000 test images of cifar10 (10 classes)"
    assert page.split("<main>")[0].count(measured) == 1
    shown = page.split("<main>")[1].split('<script type="application/json"')[0]
    assert shown.count(measured) == 3  # at the table of models, the curves, the accuracies by class
    (track,) = _data(page)["tracks"]
    assert track["measured"] == measured  # on each saved figure
    assert [state["title"].split(":")[0] for state in track["states"]] == [
        *("epoch 1", "epoch 2, the best", "epoch 3", "epoch 4")
    ]
    assert re.fullmatch(
        r"epoch 2, the best: RA = 48\.0 % \(44\.9 to 51\.1\), CAS = \d+\.\d", track["states"][1]["title"]
    )


def test_runs_of_seeds_share_curves_and_a_folder_of_runs_is_all_of_them(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(f"pgd-seed{seed}", epochs=2, best=2, overrides=(f"seed={seed}",), parent=tmp_path)
    write_run("ls", recipe="preact_linf_ls", epochs=2, best=2, parent=tmp_path)
    page = build_report([tmp_path])
    data = _data(page)
    assert [line["name"] for line in data["lines"]] == ["ls", "pgd-seed0", "pgd-seed1"]
    alone, shared = data["means"]
    assert alone == 0
    assert (shared["name"], shared["epoch"]) == ("pgd (2 seeds)", [1, 2])
    assert "pgd, mean ± sd of 2 seeds" in page
    assert 'id="apart"' in page
    assert "mean ± sd" not in build_report([tmp_path / "ls"]).split("<script")[0]


def test_a_log_of_an_earlier_version_is_shown_without_what_it_lacks(write_run: WriteRun) -> None:
    folder = write_run("old", epochs=4, best=2)
    lines = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    kept = [place for place, name in enumerate(lines[0]) if name not in ("instance_cas", "selected_by")]
    (folder / "log.csv").write_text("".join(",".join(line[place] for place in kept) + "\n" for line in lines))
    page = build_report([folder])
    assert "an earlier version wrote these logs" in page
    assert {metric["name"] for metric in _data(page)["metrics"]} == {
        *("train_robust_accuracy", "test_clean_accuracy", "test_robust_accuracy", "cas", "train_loss")
    }
    assert "CAS by chance" not in page.split('<script type="application/json"')[0]


@pytest.mark.slow
def test_a_thousand_classes_fit(write_run: WriteRun) -> None:
    names = tuple(f"n{index:08}" for index in range(1000))
    assert len(build_report([write_run("one", epochs=3, classes=names)]).encode()) < 8_000_000


def test_a_scale_upside_down_is_refused(write_run: WriteRun) -> None:
    folder = write_run("run", epochs=1)
    with pytest.raises(InputError, match="expected vmin below vmax, found 2 and 1"):
        build_report([folder], vmin=2)
    assert _data(build_report([folder], vmin=-0.5, vmax=0.5))["scale"] == [-0.5, 0.5]


def test_colours_are_the_papers_unless_told(write_run: WriteRun) -> None:
    def scale(name: str, **more: Any) -> object:
        return _data(build_report([write_run(name, epochs=1, **more)]))["scale"]

    hundred = tuple(f"class {index}" for index in range(100))
    assert scale("ten") == [0.0, 1.0]
    assert scale("clean", recipe="preact_standard", threat=None) == [0.0, 0.5]
    assert scale("hundred", classes=hundred) == [-0.75, 0.75]


def test_without_plotly_one_line_says_what_to_install(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run("run", epochs=1)
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UnavailableError, match="pip install plotly"):
        build_report([folder])
