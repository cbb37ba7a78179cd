"""The table of all models, against figures computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.written_runs import WriteRun

from ccf_plugin.probe.confidence import wilson
from ccf_plugin.report.curves import drawn_metrics, lines, means, metric_data
from ccf_plugin.report.overview import UNSELECTED, Overview, overview
from ccf_plugin.runs.log import log_bytes, read_log
from ccf_plugin.runs.reading import RunFiles, read_runs
from ccf_plugin.runs.seeds import by_seed
from ccf_plugin.runs.selection import selection_free_accuracy

MINUS = "\N{MINUS SIGN}"


def _table(runs: list[RunFiles], baseline: str | None = None) -> Overview:
    return overview(runs, by_seed(runs), baseline)


def _logged(folder: Path, **figures: list[float]) -> Path:
    """The run with other figures in its log, an entry for each epoch."""
    rows = [
        replace(row, **{name: values[place] for name, values in figures.items()})
        for place, row in enumerate(read_log(folder))
    ]
    (folder / "log.csv").write_bytes(log_bytes(rows, averaged=False, validated=False))
    return folder


@pytest.fixture(scope="module")
def seeds(write_run: WriteRun) -> list[RunFiles]:
    """Two methods of three seeds, whose third is missing of the second."""
    robust = {"pgd": [(0.50, 0.40), (0.52, 0.44), (0.54, 0.42)], "ls": [(0.53, 0.50), (0.51, 0.47)]}
    recipes = {"pgd": "preact_linf", "ls": "preact_linf_ls"}
    return read_runs(
        [
            _logged(
                write_run(f"{name}-{seed}", recipe=recipes[name], epochs=2, best=1, overrides=(f"seed={seed}",)),
                test_robust_accuracy=list(figures),
                cas=[10.0 + seed, 8.0],
            )
            for name, of_seeds in robust.items()
            for seed, figures in enumerate(of_seeds)
        ]
    )


def test_a_run_has_its_best_and_its_last_epoch_with_intervals(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=30, every=10, best=20)])
    table = _table([run])
    assert table.columns == ["model", "epoch", "RA", "clean accuracy", "CAS", "alarms"]
    best, last = table.rows
    assert (best.name, best.at, last.at) == ("run", "best (20)", "last (30 of 30)")
    low, high = (100 * bound for bound in wilson(480, 1000))
    assert best.cells[0] == f"48.0 % ({low:.1f} to {high:.1f})"
    assert best.cells[3] == ""
    assert table.paired == {}


def test_wilsons_interval_by_hand(write_run: WriteRun) -> None:
    """Of 100 images 48: centre (48 + z²/2) / (100 + z²), half width z √(48 · 52 / 100 + z²/4) / (100 + z²)."""
    (run,) = read_runs([write_run("run", epochs=2, best=2, count=100)])
    z = 1.959964
    centre, half = (48 + z**2 / 2) / (100 + z**2), z * (48 * 52 / 100 + z**2 / 4) ** 0.5 / (100 + z**2)
    assert _table([run]).rows[0].cells[0] == f"48.0 % ({100 * (centre - half):.1f} to {100 * (centre + half):.1f})"


def test_ra_without_selection_stands_beside_ra(write_run: WriteRun) -> None:
    folder = write_run("chosen", epochs=6, best=3, evidence=True)
    accuracy = selection_free_accuracy(folder, read_log(folder), "test_robust_accuracy")
    assert accuracy is not None
    table = _table(read_runs([folder]))
    assert table.columns[2:4] == ["RA", UNSELECTED]
    assert [row.cells[1] for row in table.rows] == [f"{100 * accuracy:.1f} %", "–"]


def test_seeds_have_mean_and_deviation(seeds: list[RunFiles]) -> None:
    rows = {(row.name, row.at): row for row in _table(seeds).rows if row.kind == "mean"}
    pgd = rows["pgd, mean ± sd of 3 seeds", "best"]
    assert pgd.cells[0] == "52.0 ± 2.0 %"  # of 50, 52, 54
    assert pgd.cells[2] == "11.0 ± 1.0"  # of 10, 11, 12
    assert rows["pgd, mean ± sd of 3 seeds", "last"].cells[0] == "42.0 ± 2.0 %"
    assert rows["ls, mean ± sd of 2 seeds", "best"].cells[0] == "52.0 ± 1.4 %"  # of 51, 53: √2
    assert len(_table(seeds).rows) == 2 * 5 + 2 * 2


def test_methods_are_compared_at_the_seeds_that_both_have(seeds: list[RunFiles]) -> None:
    paired = _table(seeds).paired
    assert paired["baseline"] == "pgd"
    assert paired["columns"][:4] == ["method", "epoch", "seeds", "Δ RA"]
    best, last = paired["rows"]
    assert best[:4] == ["ls", "best", "2", "+1.0 ± 2.8 points"]  # 53 - 50 and 51 - 52: mean 1, sd √8
    assert last[:4] == ["ls", "last", "2", "+6.5 ± 4.9 points"]  # 50 - 40 and 47 - 44: mean 6.5, sd 3.5 √2
    assert last[5] == "+0.0 ± 0.0"
    other = _table([replace(run, method=run.name.split("-")[0]) for run in seeds], baseline="ls").paired
    assert (other["baseline"], other["rows"][0][3]) == ("ls", f"{MINUS}1.0 ± 2.8 points")


def test_one_seed_each_has_neither(seeds: list[RunFiles]) -> None:
    table = _table([seeds[0], seeds[3]])
    assert [row.kind for row in table.rows] == ["run"] * 4
    assert table.paired == {}


def test_a_run_that_was_never_evaluated_says_so(write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("run", epochs=2)])
    rows = [replace(row, test_clean_accuracy=None, test_robust_accuracy=None, cas=None) for row in run.rows]
    blind = replace(run, tracks=[replace(run.tracks[0], rows=rows, best=None)])
    (row,) = _table([blind]).rows
    assert (row.at, set(row.cells)) == ("none evaluated", {"–"})


def test_alarms_stand_at_their_epoch(write_run: WriteRun) -> None:
    table = _table(read_runs([write_run("run", epochs=12, every=2, best=4)]))
    assert [row.cells[-1] for row in table.rows] == ["", "robust overfitting; CAS falling"]


def test_curves_of_seeds_are_means_with_bands(seeds: list[RunFiles]) -> None:
    tracks = [run.tracks[0] for run in seeds]
    metrics = drawn_metrics(tracks)
    pgd, ls = means(by_seed(seeds), metrics, tracks)
    assert pgd["epoch"] == [1, 2]
    assert pgd["curves"]["test_robust_accuracy"] == pytest.approx([0.52, 0.42])
    assert pgd["bands"]["test_robust_accuracy"] == [pytest.approx([0.50, 0.54]), pytest.approx([0.40, 0.44])]
    assert ls["curves"]["cas"] == pytest.approx([10.5, 8.0])
    assert pgd["best"] == [1, 1, 1]
    apart = lines(seeds, metrics)
    low, high = wilson(500, 1000)
    assert apart[0]["bands"]["test_robust_accuracy"][0] == [round(low, 4), round(high, 4)]
    assert list(apart[0]["bands"]) == ["test_robust_accuracy"]


def test_a_mean_ends_with_the_shortest_seed_and_skips_what_one_lacks(
    write_run: WriteRun, seeds: list[RunFiles]
) -> None:
    longer = read_runs([write_run("pgd-9", epochs=3, best=1, overrides=("seed=9", "optim.epochs=2"))])
    rows = [replace(row, cas=None) if row.epoch == 1 else row for row in longer[0].rows]
    recipe = seeds[0].recipe | {"seed": 9}
    other = replace(longer[0], recipe=recipe, tracks=[replace(longer[0].tracks[0], rows=rows)])
    runs = [seeds[0], other]
    tracks = [run.tracks[0] for run in runs]
    (line,) = means(by_seed(runs), drawn_metrics(tracks), tracks)
    assert line["epoch"] == [1, 2]
    assert line["curves"]["cas"][0] is None
    assert line["bands"]["cas"][0] is None
    assert line["curves"]["cas"][1] is not None


def test_each_axis_has_a_first_figure(seeds: list[RunFiles]) -> None:
    described = metric_data(drawn_metrics([run.tracks[0] for run in seeds]))
    assert [metric["name"] for metric in described if metric["first"]] == ["test_robust_accuracy", "cas", "train_loss"]
