"""The pictures of README, drawn by the package from committed files alone: `python tests/benchmarks/gallery.py`.

``docs/results/overfit_small`` is what ``ccf train overfit_small`` left: log, recipe, and the results of some epochs.
The curves are those of its ``ccf report``, in a Chromium.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from playwright.sync_api import sync_playwright

from ccf_plugin import CrossClassResult, compare
from ccf_plugin.drawing import figure_bytes, new_figure
from ccf_plugin.measuring.ablation_result import Ablation, Dose
from ccf_plugin.measuring.pictures import draw_ablation, draw_comparison
from ccf_plugin.report.page import build_report

ROOT = Path(__file__).parents[2]
RUN = ROOT / "docs" / "results" / "overfit_small"
PICTURES = ROOT / "docs" / "pictures"
ABLATION = ROOT / "tests" / "benchmarks" / "results" / "ablation_resnet18.json"
BEST, EPOCHS = 13, (4, 13, 20, 40)


def best() -> bytes:
    """C at the most robust epoch."""
    figure = new_figure(5.6, 5.0)
    result = CrossClassResult.load(RUN / "probe" / f"{BEST:03}")
    result.plot(figure.subplots(), title=f"C at the most robust epoch\n{result.title()}")
    return figure_bytes(figure, ".png")


def matrices() -> bytes:
    """C along training."""
    figure = new_figure(9.0, 8.4)
    for ax, epoch in zip(figure.subplots(2, 2).flat, EPOCHS, strict=True):
        result = CrossClassResult.load(RUN / "probe" / f"{epoch:03}")
        result.plot(ax, title=f"epoch {epoch}: {result.title()}")
    return figure_bytes(figure, ".png")


def difference() -> bytes:
    """C of the best epoch, of the last, and their difference."""
    best, last = (CrossClassResult.load(RUN / "probe" / f"{epoch:03}") for epoch in (BEST, EPOCHS[-1]))
    titles = (f"epoch {BEST}, the most robust", f"epoch {EPOCHS[-1]}, the last")
    return figure_bytes(draw_comparison(compare(best, last), titles=titles, difference_scale=(-0.5, 0.5)), ".png")


def ablation() -> bytes:
    """What ``ccf ablate`` drew of the trained ResNet-18, from its JSON."""
    written = json.loads(ABLATION.read_text("utf-8"))
    pairs = [
        SimpleNamespace(
            correlation=pair["correlation"],
            removals={"shared": SimpleNamespace(change=SimpleNamespace(**pair["removals"]["shared"]["change"]))},
        )
        for pair in written["pairs"]
    ]
    spearman = written["spearman"]
    doses = [Dose(**dose) for dose in written["doses"]]
    drawn: Any = SimpleNamespace(
        doses=doses, count=written["count"], features=written["features"], pairs=pairs, spearman=spearman
    )
    return figure_bytes(draw_ablation(cast(Ablation, drawn), "a trained ResNet-18, clean images"), ".png")


def curves() -> bytes:
    """RA, CAS and CAS by chance along the epochs, as the report shows them."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder, "report.html")
        page_file.write_text(build_report([RUN]), "utf-8")
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 760, "height": 1200}, device_scale_factor=1.5)
        page.goto(page_file.as_uri())
        page.wait_for_selector("#curves .main-svg")
        picture = page.locator("#curves").screenshot()
        browser.close()
    return picture


if __name__ == "__main__":
    for draw in (best, matrices, difference, ablation, curves):
        (PICTURES / f"{draw.__name__}.png").write_bytes(draw())
