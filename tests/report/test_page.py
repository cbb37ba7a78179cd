"""The page as a file: whole, small, closed to the outside and to what strangers put into names."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from support.written_runs import WriteRun

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.report.page import build_report
from ccf_plugin.runs.log import read_log
from ccf_plugin.runs.selection import selection_free_accuracy


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
    assert _data(page)["tracks"][0]["matrixEpochs"] == [1, 4, 6, 9]


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


def test_the_best_epochs_ra_without_selection_stands_beside_it(write_run: WriteRun) -> None:
    folder = write_run("chosen", epochs=6, best=3, evidence=True)
    accuracy = selection_free_accuracy(folder, read_log(folder), "test_robust_accuracy")
    assert accuracy is not None
    expected = f"both ways: {100 * accuracy:.1f} % (on the images that chose it: 48.0 %)."
    assert (
        f"chosen: RA of the best epoch, chosen on one half of the test images and measured on the other, {expected}"
        in (build_report([folder]))
    )
    assert "RA of the best epoch" not in build_report([write_run("unrecorded", epochs=6, best=3)])


def test_panels_and_confusions_are_told_where_they_are(write_run: WriteRun) -> None:
    plain, page = (build_report([write_run("run", epochs=2, evidence=evidence)]) for evidence in (False, True))
    for words in ("what of it is chance", "their squared lengths", 'id="confusion"', "Accuracy by class"):
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
