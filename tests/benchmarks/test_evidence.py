"""The figures of docs/results/evidence.md are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ccf_plugin.probe import CrossClassResult
from ccf_plugin.runs.alarms import alarms
from ccf_plugin.runs.log import read_log

from .alarm_delays import delays

ROOT = Path(__file__).parents[2]
RESULTS, RUN = Path(__file__).parent / "results", ROOT / "docs" / "results" / "overfit_small"
LOGS = sorted(RUN.parent.rglob("log.csv"))
PAGE = (ROOT / "docs" / "results" / "evidence.md").read_text(encoding="utf-8")


def numbers(row: str) -> list[float]:
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in re.findall(r"[\N{MINUS SIGN}-]?\d+(?:\.\d+)?", row)]


@pytest.mark.parametrize("epoch", [4, 13, 20, 40])
def test_what_fell_along_the_run(epoch: int) -> None:
    result = CrossClassResult.load(RUN / "probe" / f"{epoch:03}")
    (row,) = re.findall(rf"^\| {epoch}(?:,[^|]*)? \|(.*)\|$", PAGE, re.M)
    units = result.in_logit_units
    assert units is not None
    figures = [100 * (result.robust_accuracy or 0), result.cas, result.null.cas_mean, result.cas_excess]
    figures += [result.shared_part, units["shared_part"], (result.lengths**2).sum(), (units["lengths"] ** 2).sum()]
    for shown, figure, digits in zip(numbers(row), figures, [1] * 4 + [2] * 4, strict=True):
        assert shown == pytest.approx(figure, abs=0.51 * 10**-digits)


def test_what_fell_is_beyond_other_images() -> None:
    (sentence,) = re.findall(r"intervals of CAS beyond chance are (.*), so", PAGE)
    found = []
    for epoch in (4, 13, 20, 40):
        interval = CrossClassResult.load(RUN / "probe" / f"{epoch:03}").interval("cas_excess")
        assert interval is not None
        found += interval
    assert numbers(sentence) == pytest.approx(found, abs=0.051)


def test_the_figures_of_the_catastrophic_run_are_its_log_s() -> None:
    page = (ROOT / "docs" / "results" / "small-runs.md").read_text(encoding="utf-8")
    rows = {row.epoch: row for row in read_log(RUN.with_name("laptop") / "co-0")}
    names = ("train_robust_accuracy", "train_attacked_accuracy", "test_robust_accuracy")
    for epoch in (2, 3, 30):
        shares = [f"{getattr(rows[epoch], name):.1%}".replace("%", " %") for name in names]
        cells = [str(epoch), *shares, f"{rows[epoch].cas:.1f}", f"{rows[epoch].cas_excess:.1f}"]
        assert f"| {' | '.join(cells)} |" in page
    named = [epoch for epoch, row in rows.items() if "catastrophic overfitting" in row.alarm]
    assert named == [*range(3, 31)]


def test_the_alarm_comes_after_the_best_epoch_of_the_committed_run() -> None:
    """What the alarms' page says of their delay on a real log."""
    rows = read_log(RUN)
    best = max(rows, key=lambda row: row.test_robust_accuracy or 0.0)
    alarmed = [row.epoch for row in rows if "robust overfitting" in row.alarm]
    assert (best.epoch, alarmed[0], alarmed[-1]) == (13, 20, rows[-1].epoch)


def test_the_delays_of_real_runs_are_those_of_their_committed_logs() -> None:
    described = json.loads((RESULTS / "alarm_delays.json").read_text(encoding="utf-8"))
    assert described == {run: delays(read_log(ROOT / run)) for run in described}
    assert not any(alarm["came_back"] for run in described.values() for alarm in run["alarms"].values())
    kinds = [{"catastrophic overfitting", "robust overfitting"} & run["alarms"].keys() for run in described.values()]
    assert max(map(len, kinds)) == 1  # no run has both names


def test_simulated_runs_are_seldom_alarmed_and_seldom_misnamed() -> None:
    described = json.loads((RESULTS / "false_alarms.json").read_text(encoding="utf-8"))
    assert max(row["share_with_an_alarm"] for row in described["rows"] if not row["fall_in_points"]) == 1 / 200
    named = {row["kind"]: row["share_called_catastrophic"] for row in described["names"]}
    assert named == {"ordinary, 1.0": 0.0, "ordinary, 0.9": 0.005, "ordinary, 0.8": 0.11, "catastrophic": 1.0}
    twice = {row["kind"]: row["share_called_so_twice_in_a_row"] for row in described["names"]}
    assert twice == {"ordinary, 1.0": 0.0, "ordinary, 0.9": 0.005, "ordinary, 0.8": 0.035, "catastrophic": 1.0}
    lost = {row["kind"]: row["name_lost_per_run"] for row in described["names"]}
    assert lost["catastrophic"] == 0.07


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.parent.name)
def test_the_committed_logs_have_the_alarms_of_this_version(log: Path) -> None:
    rows = read_log(log.parent)
    assert [row.alarm for row in rows] == ["; ".join(alarms(rows[:place], row)) for place, row in enumerate(rows)]


def test_what_the_statistics_cost() -> None:
    described = json.loads((RESULTS / "null_overhead.json").read_text(encoding="utf-8"))
    assert described["share_of_a_clean_pass"] < 0.01


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("resnet18", "[ResNet-18](resnet18.md), 512 features, clean"),
        ("narrow", "best epoch of `overfit_small`, 128 features, clean"),
        ("narrow_attacked", "the same under PGD-20"),
    ],
)
def test_cas_beside_chance_and_random_heads(name: str, row: str) -> None:
    found = json.loads((RESULTS / "chance_and_gauge.json").read_text(encoding="utf-8"))[name]
    (shown,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", PAGE, re.M)
    figures = [found["cas"], found["by_chance"], found["by_chance_sd"]]
    figures += [found["random_heads"]["mean"], found["random_heads"]["sd"]]
    assert numbers(shown) == pytest.approx(figures, abs=0.051)


def test_cas_of_one_classifier_written_differently() -> None:
    found = json.loads((RESULTS / "chance_and_gauge.json").read_text(encoding="utf-8"))["resnet18"]
    page = (ROOT / "docs" / "results" / "resnet18.md").read_text(encoding="utf-8")
    added, rotated = (
        numbers(re.findall(rf"^\| {what}.*\|(.*)\|$", page, re.M)[0])
        for what in ("the mean features added to all rows of W", "features rotated")
    )
    row_added = found["row_added"].values()
    assert added == pytest.approx([min(row_added), max(row_added)], abs=0.051)
    assert rotated == pytest.approx([found["rotated"]["mean"], found["rotated"]["sd"]], abs=0.051)


@pytest.mark.parametrize(
    ("replaced_by", "columns"),
    [
        ("their means over all images", ("mean", "without, means")),
        ("their medians", ("median", "without, means")),
        ("their means over the other classes' images", ("mean of the others'", "without, means")),
        ("0", ("0", "without, 0")),
        ("their means over the pair's images", ("mean of the pair's", "without, means")),
    ],
)
def test_what_an_ablations_accuracy_depends_on(replaced_by: str, columns: tuple[str, str]) -> None:
    rows = json.loads((RESULTS / "ablation_definitions.json").read_text(encoding="utf-8"))["rows"]
    points = {(row["attack met"], row["replaced by"]): row["points"] for row in rows}
    figures = [
        points[attack_met, columns[0]][kind]
        for attack_met in ("the whole network", columns[1])
        for kind in ("pair against rest", "own against other")
    ]
    (row,) = re.findall(rf"^\| {re.escape(replaced_by)} \|(.*)\|$", PAGE, re.M)
    assert numbers(row) == pytest.approx(figures, abs=0.051)
