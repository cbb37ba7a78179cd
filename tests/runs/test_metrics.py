"""One entry in the table is a new figure: in the log, on the terminal and in the report."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from support.runs import Quiet, tiny

from ccf_plugin.probe import CrossClassResult
from ccf_plugin.report.page import build_report
from ccf_plugin.runs.log import EpochRow, log_bytes, read_log
from ccf_plugin.runs.metrics import METRICS, Metric, all_metrics, column_names, metric_of
from ccf_plugin.runs.reading import read_runs
from ccf_plugin.training.loop import train
from ccf_plugin.training.progress import ProgressReporter, closing_table
from ccf_plugin.training.run import Run

NORMALISED = Metric(
    "cas_normalised",
    "normalised CAS",
    ".4f",
    lambda result: result.cas_normalised,
    averaged=True,
    validation="shown",
    axis="normalised CAS",
    rounded=".3f",
)
COLUMNS = [
    "cas_normalised",
    "validation_cas_normalised",
    "cas_normalised_average",
    "validation_cas_normalised_average",
]


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    METRICS.append(NORMALISED)
    yield
    METRICS.remove(NORMALISED)


@pytest.fixture(scope="module")
def run(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = tiny("average={kind='ema', decay=0.5}", "data.validation=20", "data.train_per_class=8")
    return train(recipe, tmp_path_factory.mktemp("runs") / "run", Quiet())


def _cells(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO((run.folder / "log.csv").read_text())))


def test_the_log_has_it_after_the_columns_there_were(run: Run) -> None:
    rows = _cells(run)
    header = list(rows[0])
    assert header[-4:] == COLUMNS
    assert header.index("robust_fall_p") < header.index("train_clean_accuracy") < header.index(COLUMNS[0])
    for suffix in ("", "_average"):
        result = CrossClassResult.load(run.folder / "probe" / f"002{suffix}")
        assert rows[1][f"cas_normalised{suffix}"] == f"{result.cas_normalised:.6g}"
    assert all(0 < float(row["validation_cas_normalised"]) < 1 for row in rows)


def test_the_row_has_it_as_an_attribute(run: Run) -> None:
    for row, cells in zip(read_log(run.folder), _cells(run), strict=True):
        assert [getattr(row, name) for name in COLUMNS] == [float(cells[name]) for name in COLUMNS]
    assert [row.cas_normalised for row in run.rows] == [pytest.approx((row.cas or 0) / 90) for row in run.rows]


def test_the_terminal_shows_it(run: Run) -> None:
    console = Console(file=StringIO(), width=200)
    row = run.rows[1]
    with ProgressReporter(console) as reporter:
        reporter.epoch_finished(row)
    console.print(closing_table(run))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    line, *table = shown.splitlines()
    assert f" · normalised CAS {row.cas_normalised:.4f} · val normalised CAS " in line
    cells = {line.split("│")[1].strip(): line for line in table if line.startswith("│")}
    assert f"{run.rows[-1].cas_normalised:.4f}" in cells["last"]
    assert f"{run.rows[-1].cas_normalised_average:.4f}" in cells["last averaged"]


def test_the_report_draws_and_tabulates_it(run: Run) -> None:
    page = build_report([run.folder])
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    described = {metric["name"]: metric for metric in data["metrics"]}
    assert list(described)[-2:] == COLUMNS[:2]
    assert described["cas_normalised"]["axis"] == "normalised CAS"
    assert described["cas_normalised"]["format"] == ".4f"
    for track, suffix in zip(data["lines"], ("", "_average"), strict=True):
        logged = [float(row[f"cas_normalised{suffix}"]) for row in _cells(run)]
        assert track["curves"]["cas_normalised"] == logged
        assert f"<td>{logged[-1]:.3f}</td>" in page
    assert '<th scope="col">normalised CAS</th>' in page
    assert '<th scope="col">validation normalised CAS</th>' in page


def test_a_log_without_it_reads_as_one_of_before(run: Run) -> None:
    METRICS.remove(NORMALISED)
    try:
        rows = read_log(run.folder)
        assert "cas_normalised" not in column_names()
        assert [row.unknown["cas_normalised"] for row in rows] == [row["cas_normalised"] for row in _cells(run)]
        with pytest.raises(AttributeError, match="cas_normalised"):
            _ = rows[0].cas_normalised
        assert log_bytes(rows, averaged=True, validated=True) == (run.folder / "log.csv").read_bytes()
        assert [track.rows for track in read_runs([run.folder])[0].tracks] == [rows, rows]
    finally:
        METRICS.append(NORMALISED)


def test_no_column_is_there_twice() -> None:
    names = column_names()
    assert len(names) == len(set(names))
    assert {metric.name for metric in all_metrics()} < set(names)


def test_the_validation_images_figure_is_called_so() -> None:
    metric = metric_of("validation_robust_accuracy")
    assert (metric.label, metric.short, metric.split) == ("validation RA", "val RA", "validation")
    assert (metric.axis, list(metric.terminal)) == ("accuracy", ["line", "table"])
    hidden = metric_of("validation_clean_accuracy")
    assert (hidden.axis, list(hidden.terminal)) == (None, [])


def test_values_are_written_as_their_metric_says() -> None:
    accuracy, cas = metric_of("test_robust_accuracy"), metric_of("cas")
    assert [accuracy.on_terminal(0.4567), accuracy.in_report(0.4567)] == ["45.7%", "45.7 %"]
    assert [cas.on_terminal(12.345), cas.in_report(12.345)] == ["12.35", "12.3"]
    assert [accuracy.on_terminal(None), accuracy.in_report(None)] == ["", "–"]
    assert (accuracy.heading, accuracy.unit, cas.unit) == ("RA", 100, 1)


def test_a_row_knows_its_columns_and_no_others() -> None:
    given = {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "seconds": 3.0, "images_per_second": 4.0}
    row = EpochRow(**given, cas=5.0)
    assert (row.cas, row.cas_average, row.alarm) == (5.0, None, "")
    assert replace(row, cas=6.0, alarm="CAS falling") == EpochRow(**given, cas=6.0, alarm="CAS falling")
    assert replace(row, cas=None).cas is None
    with pytest.raises(TypeError, match=r"no columns of log\.csv: colour"):
        EpochRow(**given, colour=1.0)
    with pytest.raises(AttributeError, match="colour"):
        _ = row.colour


def test_the_terminals_bar_is_short_enough_for_80_columns() -> None:
    """Beside the bar there is room for three figures."""
    assert [metric.short or metric.label for metric in all_metrics() if "bar" in metric.terminal] == [
        "loss",
        "test RA",
        "CAS",
    ]
