"""The page in a real Chromium: what a reader sees, points at and walks through by keyboard."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from support.written_runs import WriteRun, confusion_at, matrix_at

from ccf_plugin.probe.confidence import wilson
from ccf_plugin.report.page import build_report
from ccf_plugin.runs.log import log_bytes, read_log
from ccf_plugin.runs.metrics import METRICS, Metric

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Open = Callable[..., Any]
DESKTOP = {"viewport": {"width": 1100, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
RESNET = Path(__file__).parents[1] / "benchmarks" / "results" / "ablation_resnet18.json"
SVG = "{http://www.w3.org/2000/svg}"
ALL_IN_VIEW = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: the system's, or that of ``playwright install chromium``."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium here; `playwright install chromium` or the system's package brings one")
        # Where tests run as root, Chromium starts only without its sandbox; the page is our own.
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with a class without samples; two runs, one of averaged weights; a hundred classes; hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    one = write_run("one", epochs=30, every=2, best=16, missing=3)
    two = write_run("two", recipe="preact_linf_wake", epochs=20, best=8, averaged=True)
    hundred = write_run("hundred", epochs=3, best=2, classes=tuple(f"class {index}" for index in range(100)))
    names = ("<img src=http://outside.test/x onerror=document.title='broken'>", "</script>", "<b>dog</b>")
    hostile = write_run("hostile", epochs=2, best=1, classes=names)
    three = write_run("three", epochs=20, best=8)
    evidence = write_run("evidence", epochs=30, best=16, evidence=True)
    seeds = [
        write_run(f"{name}-{seed}", recipe=recipe, epochs=20, best=8, evidence=True, overrides=(f"seed={seed}",))
        for name, recipe in (("pgd", "preact_linf"), ("ls", "preact_linf_ls"))
        for seed in range(3)
    ]
    shutil.copy(RESNET, evidence / "ablation.json")
    for name, runs in {
        "evidence": [evidence],
        "seeds": seeds,
        "one": [one],
        "two": [three, two],
        "hundred": [hundred],
        "hostile": [hostile],
        "single": [write_run("single", epochs=1, best=1)],
        "rising": [write_run("rising", epochs=6, best=6)],
    }.items():
        (folder / f"{name}.html").write_text(build_report(runs), encoding="utf-8")
    (folder / "more.html").write_text(_page_with_more_metrics(write_run), encoding="utf-8")
    return folder


def _page_with_more_metrics(write_run: WriteRun) -> str:
    """Of a run whose log has two figures more: one on an axis of its own, one on that of CAS."""
    more = [Metric("test_loss", "test loss", ".3f", axis="loss"), Metric("other_cas", "other CAS", ".2f", axis="CAS")]
    run = write_run("more", epochs=4, best=2)
    METRICS.extend(more)
    try:
        rows = [replace(row, test_loss=row.epoch / 4, other_cas=10.0 + row.epoch) for row in read_log(run)]
        (run / "log.csv").write_bytes(log_bytes(rows, averaged=False, validated=False))
        return build_report([run])
    finally:
        for metric in more:
            METRICS.remove(metric)


@pytest.fixture
def visit(browser: Any, pages: Path) -> Iterator[Open]:
    """Open a page. At the end: nothing was said on the console, and nothing was asked for but the page itself."""
    contexts, said, asked = [], [], []

    def visit(name: str, **options: Any) -> Any:
        context = browser.new_context(**(options or DESKTOP))
        contexts.append(context)
        context.set_default_timeout(120_000)  # a busy machine is slow, and no failure
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((pages / f"{name}.html").as_uri())
        page.wait_for_selector("#pairs .main-svg", state="attached")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)


def _shown(page: Any, figure: str) -> np.ndarray:
    matrix = page.evaluate(f"document.getElementById('{figure}').data[0].z")
    return np.array([[np.nan if value is None else value for value in row] for row in matrix])


def _expected(epoch: int, best: int, missing: int | None = None) -> np.ndarray:
    matrix = matrix_at(epoch, 10, best)
    if missing is not None:
        matrix[missing] = matrix[:, missing] = np.nan
    return matrix


def _hover(page: Any, figure: str, row: int, column: int) -> None:
    place = page.evaluate(
        """([id, i, j]) => {
             const plot = document.getElementById(id), box = plot.getBoundingClientRect(), all = plot._fullLayout;
             plot.scrollIntoView({ block: "center" });
             const now = plot.getBoundingClientRect();
             return [now.left + all._size.l + all.xaxis.l2p(j) + (all.xaxis._offset - all._size.l),
                     now.top + all.yaxis._offset + all.yaxis.l2p(i)];
           }""",
        [figure, row, column],
    )
    page.mouse.move(place[0] - 3, place[1] - 3)
    page.mouse.move(*place)


def _until(page: Any, expression: str) -> None:
    """Wait until it is true; playwright's own wait evaluates text inside the page, which the page forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{expression} never became true")


def test_the_slider_walks_through_the_epochs(visit: Open) -> None:
    page = visit("one")
    title, slider = page.locator("#matrix-title"), page.locator("#epoch")
    assert title.inner_text().startswith("epoch 16, the best: RA = 48.0 % (44.9 to 51.1), CAS = ")
    np.testing.assert_allclose(_shown(page, "matrix"), _expected(16, 16, 3), atol=1.6e-5)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert title.inner_text().startswith("epoch 18: RA = 46.0 %")
    assert str(slider.get_attribute("aria-valuetext")).startswith("epoch 18: RA")
    np.testing.assert_allclose(_shown(page, "matrix"), _expected(18, 16, 3), atol=1.6e-5)
    page.keyboard.press("Home")
    assert title.inner_text().startswith("epoch 2: ")
    page.get_by_role("button", name="Last epoch").click()
    assert title.inner_text().startswith("epoch 30: ")
    page.get_by_role("button", name="Best epoch").click()
    assert title.inner_text().startswith("epoch 16, the best")


def test_pointing_at_a_cell_names_its_classes_and_value(visit: Open) -> None:
    page = visit("one")
    value = f"{_expected(16, 16)[1, 9]:.3f}".replace("-", "\N{MINUS SIGN}")
    _hover(page, "matrix", 1, 9)
    page.wait_for_selector("#matrix .hoverlayer .hovertext")
    shown = page.locator("#matrix .hoverlayer").text_content()
    assert "automobile – truck" in shown
    assert value in shown
    assert page.locator("#matrix-cell").inner_text() == f"automobile – truck: {value}"


def test_the_cells_are_walked_by_keyboard_too(visit: Open) -> None:
    page = visit("one")
    page.locator("#matrix").focus()
    readout = page.locator("#matrix-cell")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    assert readout.inner_text().startswith("automobile – airplane: ")
    label = "document.querySelector('#matrix .hoverlayer').textContent.includes('automobile – airplane')"
    _until(page, label)
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert readout.inner_text() == "cat – airplane: none"  # the class without samples
    _until(page, f"!{label}")  # plotly draws and clears labels a moment later


def test_the_difference_of_any_two_epochs(visit: Open) -> None:
    page = visit("one")
    best, last = _expected(16, 16, 3), _expected(30, 16, 3)
    np.testing.assert_allclose(_shown(page, "difference"), best - last, atol=3.2e-5)
    gain = sum(np.nansum(matrix.clip(min=0)) - 9 for matrix in (best,)) - (np.nansum(last.clip(min=0)) - 9)
    negative = int((np.triu(best - last, 1) < -1e-4).sum())
    said = page.locator("#difference-title").inner_text()
    assert said.startswith(f"ΔCAS = {gain:.1f}; of 36 pairs {negative} are negative")
    cells = page.locator("#difference-table td").all_text_contents()
    parts = [float(cell.replace("\N{MINUS SIGN}", "-")) for cell in cells[1::2]]
    assert len(parts) == 36  # each pair once, so that CAS moves by twice their sum
    assert 2 * sum(parts) == pytest.approx(gain, abs=2 * 36 * 0.00051)
    page.locator("#first").select_option(label="epoch 2")
    page.locator("#second").select_option(label="epoch 4")
    np.testing.assert_allclose(_shown(page, "difference"), _expected(2, 16, 3) - _expected(4, 16, 3), atol=3.2e-5)
    scale = "((trace) => [trace.zmin, trace.zmax])(document.getElementById('difference').data[0])"
    assert page.evaluate(scale) == [0, 0.5]
    page.locator("#signs").select_option("both")
    assert page.evaluate(scale) == [-0.5, 0.5]


@pytest.mark.slow
def test_a_best_epoch_that_is_the_last_is_not_subtracted_from_itself(visit: Open) -> None:
    rising, single = visit("rising"), visit("single")
    section = rising.locator("section", has=rising.locator("#heading-difference"))
    assert "The best epoch is the last that has a matrix" in section.inner_text()
    np.testing.assert_allclose(_shown(rising, "difference"), _expected(6, 6) - _expected(1, 6), atol=3.2e-5)
    section = single.locator("section", has=single.locator("#heading-difference"))
    assert "one matrix alone" in section.inner_text()
    assert not single.locator("#difference").is_visible()
    assert not single.locator("#heading-pairs").is_visible()


def test_runs_side_by_side(visit: Open) -> None:
    page = visit("two")
    np.testing.assert_allclose(_shown(page, "difference"), 0, atol=3.2e-5)  # the best of one minus the best of two
    page.locator("#track").select_option(label="two, averaged weights")
    assert (
        page.locator("#matrix-title").inner_text().startswith("two, averaged weights, epoch 8, the best: RA = 49.0 %")
    )
    assert page.locator("#pairs-title").inner_text().startswith("two, averaged weights: ")
    legend = page.locator("#curves .legend").text_content()
    assert all(name in legend for name in ("three", "two, raw weights", "test RA", "robust overfitting", "published"))
    assert page.locator("#pairs-table tr").count() == 20


def test_figures_that_the_table_of_metrics_has_more_are_drawn(visit: Open) -> None:
    page = visit("more")
    traces = page.evaluate("document.getElementById('curves').data.map(({ name, y, yaxis }) => [name, y, yaxis])")
    drawn = {name: (values, axis) for name, values, axis in traces if values != [None]}
    assert drawn["test loss"] == ([0.25, 0.5, 0.75, 1], "y3")
    assert drawn["other CAS"] == ([11, 12, 13, 14], "y2")
    legend = page.locator("#curves .legend").text_content()
    assert "test loss" in legend
    assert "other CAS" in legend
    axes = "['yaxis', 'yaxis2', 'yaxis3'].map((name) => document.getElementById('curves')._fullLayout[name])"
    assert page.evaluate(f"{axes}.map((axis) => axis.title.text)") == ["accuracy", "CAS", "loss"]
    (first, top), (second, below), (bottom, third) = page.evaluate(f"{axes}.map((axis) => axis.domain)")
    assert [bottom, top] == pytest.approx([0, 1], abs=1e-9)
    assert bottom < third < second < below < first < top
    page.evaluate(ALL_IN_VIEW)
    columns = page.locator("#curves ~ details th[scope=col]").all_inner_texts()
    assert columns == ["epoch", "train loss", "train RA", "clean accuracy", "RA", "CAS", "loss", "other CAS", "alarm"]


@pytest.mark.slow
def test_the_confusions_and_accuracies_are_those_of_the_chosen_epoch(visit: Open) -> None:
    page = visit("evidence")
    title = page.locator("#confusion-title")
    attacked, clean = (confusion_at(*at) for at in ((16, 10, 100, 0.48), (30, 10, 100, 0.8)))
    right = np.trace(attacked)
    said = f"epoch 16, under attack: {right} of 1000 images are recognised, {right / 10:.1f}\N{NO-BREAK SPACE}%"
    assert title.text_content() == said
    np.testing.assert_allclose(_shown(page, "confusion"), attacked / 100)
    page.locator("#confusion").focus()
    page.keyboard.press("ArrowRight")
    taken = "airplane, taken for automobile: "
    assert page.locator("#confusion-cell").inner_text() == f"{taken}{attacked[0, 1] / 100:.3f}"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#confusion-cell").inner_text() == f"airplane, recognised: {attacked[0, 0] / 100:.3f}"
    page.get_by_role("button", name="Last epoch").click()
    page.locator("#confused").select_option("clean")
    np.testing.assert_allclose(_shown(page, "confusion"), clean / 100)
    page.evaluate(ALL_IN_VIEW)
    most = clean - np.diag(np.diag(clean))
    assert page.locator("#confusion-table td").first.inner_text() == str(most.max())
    cells = page.locator("#classes-table tr").first.locator("th, td").all_text_contents()
    low, high = (100 * bound for bound in wilson(int(clean[0, 0]), 100))
    gap = "\N{NO-BREAK SPACE}"
    assert cells[:3] == ["airplane", "100", f"{clean[0, 0]}.0{gap}% ({low:.1f} to {high:.1f})"]
    row = _expected(30, 16)[0]
    assert float(cells[4]) == pytest.approx(row[row > 0].sum() - 1, abs=0.006)
    assert page.locator("#matrix-cell").inner_text() == "Point at a cell, or walk with the arrow keys."


@pytest.mark.slow
def test_seeds_are_a_mean_with_a_band_until_each_run_is_wanted(visit: Open) -> None:
    page = visit("seeds")
    curves = "document.getElementById('curves')"
    names = f"{curves}.data.filter(({{ mode, x }}) => mode !== 'markers' && x.length > 1).map(({{ name }}) => name)"
    of_ra = [name for name in page.evaluate(names) if name and name.endswith("test RA")]
    assert of_ra == ["pgd (3 seeds): test RA", "ls (3 seeds): test RA"]
    filled = f"{curves}.data.filter(({{ fill, legendgroup }}) => fill && legendgroup === 'test_robust_accuracy').length"
    assert page.evaluate(filled) == 2
    page.locator("#apart").check()
    of_ra = [name for name in page.evaluate(names) if name and name.endswith("test RA")]
    assert len(of_ra) == 6
    visible = f"{curves}.data.filter(({{ visible, x }}) => visible !== 'legendonly' && x.length > 1)"
    groups = set(page.evaluate(f"{visible}.map(({{ legendgroup }}) => legendgroup)"))
    assert groups == {"test_robust_accuracy", "cas", "shared", "train_loss"}  # of many models one figure an axis


def test_chance_excess_and_lengths_are_drawn_and_hidden_by_the_legend(visit: Open) -> None:
    page = visit("evidence")
    traces = page.evaluate("document.getElementById('curves').data.map(({ name, yaxis }) => [name, yaxis])")
    axes = dict(map(tuple, reversed(traces)))
    assert (axes["CAS"], axes["CAS by chance"], axes["CAS beyond chance"]) == ("y2", "y2", "y2")
    assert (axes["shared part"], axes["squared lengths"]) == ("y4", "y4")
    assert axes["train loss"] == "y3"
    page.locator("#curves .legend .traces", has_text="CAS by chance").locator(".legendtoggle").click()
    hidden = "document.getElementById('curves').data.filter(({ visible }) => visible === 'legendonly')"
    _until(page, f"{hidden}.length === 2")  # the curve and its entry
    assert page.evaluate(f"{hidden}.map(({{ name }}) => name)") == ["CAS by chance"] * 2


@pytest.mark.slow
def test_each_panel_s_title_stays_beside_it(visit: Open) -> None:
    for device in (DESKTOP, PHONE):
        page = visit("evidence", **device)
        boxes = page.evaluate(
            """['ytitle', 'y2title', 'y3title', 'y4title'].map((name) => {
                 const { top, bottom } = document.querySelector(`#curves .${name}`).getBoundingClientRect();
                 return [top, bottom]; })"""
        )
        assert all(above[1] < below[0] for above, below in pairwise(boxes))


@pytest.mark.slow
def test_a_matrix_fills_its_place_after_the_page_was_widened(visit: Open) -> None:
    width = "document.querySelector('#matrix .heatmaplayer image').getBoundingClientRect().width"
    expected = visit("one").evaluate(width)
    page = visit("one", viewport=PHONE["viewport"])
    assert page.evaluate(width) < 0.8 * expected
    page.set_viewport_size(DESKTOP["viewport"])
    _until(page, f"Math.abs({width} - {expected}) <= 1")


@pytest.mark.slow
def test_a_hundred_classes_are_labelled_sparsely_until_one_looks_closer(visit: Open) -> None:
    page = visit("hundred")
    texts = "document.querySelectorAll('#matrix .xaxislayer-above text').length"
    assert 8 <= page.evaluate(texts) <= 16
    page.evaluate("Plotly.relayout('matrix', {'xaxis.range': [9.5, 20.5], 'yaxis.range': [20.5, 9.5]})")
    _until(page, f"{texts} === 11")
    assert page.evaluate("document.querySelector('#matrix .xaxislayer-above text').textContent") == "class 10"


def test_names_of_strangers_stay_text(visit: Open) -> None:
    page = visit("hostile")
    page.locator("#matrix").focus()
    page.keyboard.press("ArrowDown")
    assert "onerror" in page.locator("#matrix-cell").inner_text()
    page.evaluate(ALL_IN_VIEW)
    assert page.locator("img").count() == 0
    assert page.title() == "Cross-class features of hostile"


def _saved(page: Any, figure: str, inches: float) -> tuple[str, ElementTree.Element]:
    with page.expect_download() as download:
        page.locator(f"button[data-figure='{figure}'][data-inches='{inches}']").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    return download.value.suggested_filename, ElementTree.fromstring(text)


def _texts(svg: ElementTree.Element) -> dict[str, float]:
    """What is written in a picture, and how large, in points on paper."""
    width = float(svg.attrib["width"].removesuffix("in"))
    points = 72 * width / float(svg.attrib["viewBox"].split()[2])
    sizes = {}
    for text in svg.iter(f"{SVG}text"):
        size = re.search(r"font-size: ([\d.]+)px", text.attrib.get("style", ""))
        sizes[" ".join(text.itertext())] = float(size[1]) * points if size else 0.0
    return sizes


@pytest.mark.parametrize("inches", [3.25, 6.75])
@pytest.mark.slow
def test_a_saved_figure_is_one_for_a_paper(visit: Open, inches: float) -> None:
    """On a phone in dark mode: light, of a wide screen's layout, self-contained, named and large enough to read."""
    page = visit("evidence", color_scheme="dark", **PHONE)
    pictures = {}
    buttons = page.locator(f"button[data-inches='{inches}']").all()
    figures = [str(button.get_attribute("data-figure")) for button in buttons]
    assert figures == ["curves", "matrix", "confusion", "classes", "difference", "pairs", "ablation-0"]
    for figure in figures:
        name, svg = _saved(page, figure, inches)
        assert re.fullmatch(rf"[\w.-]+-{inches}in\.svg", name)
        assert svg.attrib["width"] == f"{inches}in"
        text = ElementTree.tostring(svg, encoding="unicode")
        assert not re.findall(r"(?:href|src)=\"(?!#)|url\((?!['\"&quot;]*#)", text)
        families = {family.split(",")[0].strip("'\" ") for family in re.findall(r"font-family: ([^;]+);", text)}
        assert families == {"Arial"}
        assert "sans-serif" in text
        sizes = _texts(svg)
        assert min(size for words, size in sizes.items() if words) >= 5
        words = " ".join(sizes)
        assert "RA under PGD-20" in words or "45 pairs" in words
        pictures[figure] = words
        background = svg.find(f"{SVG}rect")
        assert background is not None
        assert "rgb(255, 255, 255)" in background.attrib["style"]
    assert "evidence, epoch 16, the best: RA = " in pictures["matrix"]
    assert "CAS = " in pictures["matrix"]
    assert "C[i, j] (cosine)" in pictures["matrix"]
    assert "share of the true class's images" in pictures["confusion"]
    assert "difference of C[i, j]" in pictures["difference"]
    assert "best: RA = " in pictures["curves"]
    assert page.evaluate("document.getElementById('matrix').layout.width") < 400  # the page's own is as it was


@pytest.mark.slow
def test_the_cells_of_a_saved_matrix_are_shapes_of_its_values(visit: Open) -> None:
    page = visit("one")
    _, svg = _saved(page, "matrix", 6.75)
    assert svg.find(f".//{SVG}image") is None
    group = next(group for group in svg.iter(f"{SVG}g") if group.attrib.get("shape-rendering") == "crispEdges")
    cells = group.findall(f"{SVG}rect")
    matrix = _expected(16, 16, 3)
    blues = page.evaluate("document.getElementById('matrix').data[0].colorscale.map(([, colour]) => colour)")
    darkest, lightest = (colour.replace(" ", "") for colour in (blues[-1], blues[0]))
    left, top = (min(float(cell.attrib[name]) for cell in cells) for name in ("x", "y"))
    side = float(cells[0].attrib["height"])
    drawn = {}
    for cell in cells:
        i, j = round((float(cell.attrib["y"]) - top) / side), round((float(cell.attrib["x"]) - left) / side)
        drawn |= {(i, j + more): cell.attrib["fill"] for more in range(round(float(cell.attrib["width"]) / side))}
    assert drawn.keys() == {(i, j) for i, j in np.ndindex(10, 10) if not np.isnan(matrix[i, j])}
    assert all(drawn[i, i] == darkest for i in range(10) if i != 3)
    assert all(drawn[i, j] == lightest for i, j in drawn if matrix[i, j] <= 0)
    by_value = sorted(drawn, key=lambda place: matrix[place])
    reds = [int(re.findall(r"\d+", drawn[place])[0]) for place in by_value]
    assert reds == sorted(reds, reverse=True)


@pytest.mark.slow
def test_what_is_hidden_is_not_saved(visit: Open) -> None:
    page = visit("evidence")
    page.locator("#curves .legend .traces", has_text="CAS by chance").locator(".legendtoggle").click()
    _until(page, "document.getElementById('curves').data.some(({ visible }) => visible === 'legendonly')")
    words = _texts(_saved(page, "curves", 6.75)[1])
    assert "CAS beyond chance" in words
    assert "CAS by chance" not in words


@pytest.mark.slow
def test_print_loses_nothing(visit: Open) -> None:
    """All is opened, light, and as wide as the paper; afterwards the page is as it was."""
    width = 186  # mm, of A4 within the page's margins
    page = visit("seeds", color_scheme="dark", **DESKTOP)
    closed = page.locator("details:not([open])").count()
    assert closed > 6
    page.set_viewport_size({"width": round(width / 25.4 * 96), "height": 1000})
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    cut = page.evaluate(
        """[...document.querySelectorAll('table, pre, .plot, .scroll')].filter((one) => one.offsetParent && (
             one.getBoundingClientRect().right > document.documentElement.clientWidth + 1 ||
             (one.matches('pre, .scroll') && (one.scrollHeight > one.clientHeight + 1
               || one.scrollWidth > one.clientWidth + 1)))).map((one) => one.outerHTML.slice(0, 120))"""
    )
    assert cut == []
    recipe = page.locator("pre").first
    assert all(key in recipe.inner_text() for key in ("[attack]", "eps = ", "[checkpoints]"))
    assert page.evaluate("document.getElementById('curves')._fullLayout.paper_bgcolor") == "#ffffff"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.emulate_media(media="screen", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == closed
    assert page.evaluate("document.getElementById('curves')._fullLayout.paper_bgcolor") == "rgba(0,0,0,0)"


@pytest.mark.slow
def test_a_printed_page_is_a_pdf_of_all(visit: Open) -> None:
    """The browser itself says that it prints: the details are in the file, and closed again after it."""
    page = visit("one")
    page.evaluate(
        "window.opened = []; window.addEventListener('beforeprint', () => "
        "window.opened.push(document.querySelectorAll('details:not([open])').length))"
    )
    closed = page.locator("details:not([open])").count()
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate("window.opened") == [0]
    _until(page, f"document.querySelectorAll('details:not([open])').length === {closed}")


@pytest.mark.slow
def test_what_scrolls_says_so_and_can_be_reached_by_keyboard(visit: Open) -> None:
    for name, device, scrolls in (("one", DESKTOP, False), ("evidence", PHONE, True)):
        page = visit(name, **device)
        box = page.locator(".scroll").first
        _until(page, f"document.querySelector('.scroll').classList.contains('scrolls') === {str(scrolls).lower()}")
        assert page.locator(".caption", has_text="Best and last epoch").locator(".hint").is_visible() == scrolls
        assert box.get_attribute("tabindex") == ("0" if scrolls else None)
    recipe = page.locator("pre").first
    assert recipe.get_attribute("tabindex") == "0"
    recipe.focus()
    page.keyboard.press("End")
    _until(page, "document.querySelector('pre').scrollTop > 0")


@pytest.mark.slow
def test_an_ablation_is_drawn_by_dose(visit: Open) -> None:
    page = visit("evidence")
    doses = json.loads(RESNET.read_text())["doses"]
    data = "document.getElementById('ablation-0').data.map(({ name, x, y, xaxis }) => [name, x, y, xaxis])"
    traces = page.evaluate(data)
    assert len(traces) == 8
    assert traces[0] == [
        *("shared by the pair", [dose["count"] for dose in doses], [dose["rest"]["shared"] for dose in doses], "x")
    ]
    assert traces[7][2] == [dose["between"]["random"] for dose in doses]
    assert page.locator("#heading-ablation").is_visible()


@pytest.mark.parametrize(
    ("name", "scheme", "device"),
    [
        ("evidence", "light", DESKTOP),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("seeds", "dark", PHONE),
                ("one", "light", DESKTOP),
                ("one", "dark", PHONE),
                ("two", "dark", DESKTOP),
                ("two", "light", PHONE),
                ("seeds", "light", DESKTOP),
                ("hundred", "light", PHONE),
                ("hundred", "dark", DESKTOP),
                ("evidence", "dark", PHONE),
            )
        ),
    ],
)
def test_everybody_can_read_it(visit: Open, name: str, scheme: str, device: dict[str, Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = visit(name, color_scheme=scheme, **device)
    page.evaluate(ALL_IN_VIEW)
    assert page.evaluate("document.documentElement.scrollWidth") <= device["viewport"]["width"]
    violations = axe.Axe().run(page).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in violations] == []


def test_a_change_of_the_colour_scheme_is_followed(visit: Open) -> None:
    page = visit("one")
    ink = "document.getElementById('curves')._fullLayout.font.color"
    before = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    _until(page, f"{ink} !== '{before}'")
    assert page.evaluate("document.getElementById('matrix').data[0].zmax") == 1  # C keeps the paper's colours
