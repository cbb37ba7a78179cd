"""The page of a study, from its folder alone: claims and verdicts, figure, table, machines. And what is kept of it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ccf_plugin.drawing import drop_figure, new_figure
from ccf_plugin.errors import InputError
from ccf_plugin.files import write_atomically, write_together
from ccf_plugin.measuring.finished_runs import FinishedRun, by_name
from ccf_plugin.measuring.study_results import claims_table, differences_table, study_table
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.environment import read_environment
from ccf_plugin.runs.layout import ENVIRONMENT, LOG, RECIPE, RECORDS, STUDY, STUDY_FILES, result_of
from ccf_plugin.runs.study_file import read_study

MOST_BYTES = 2_000_000  # of what is kept of a study
_SERIES = {"test RA": "test_robust_accuracy", "CAS": "cas"}


def write_page(study: Path, into: Path) -> list[Path]:
    """Write ``into``/<name>.md and .png, and ``into``/<name>/ with what is kept: logs, matrices, records, no weights.

    Raises:
        InputError: no study with a finished run is in the folder; what would be kept takes 2 MB or more.
    """
    described = read_study(study)
    _finished(study, described)
    name = described["name"]
    kept = into / name
    if kept.resolve() != study.resolve():
        _keep(study, kept)
    page, picture = build_page(kept)
    files = {into / f"{name}.md": page.encode(), into / f"{name}.png": picture}
    write_together(files)
    return [*files, kept]


def build_page(study: Path) -> tuple[str, bytes]:
    """The page of a study's folder as Markdown, and its figure as a PNG; the page looks for it beside itself."""
    described = read_study(study)
    runs = _finished(study, described)
    return "\n".join(_lines(study, described, runs)), _picture(described, runs)


def _finished(study: Path, described: Mapping[str, Any]) -> list[FinishedRun]:
    finished = [run for run in described["runs"] if run["status"] == "finished"]
    if not finished:
        raise InputError(f"expected a study with a finished run in {study}, found none; go on with it first")
    return [FinishedRun.read(run["name"], run["seed"], study / run["folder"]) for run in finished]


def _keep(study: Path, kept: Path) -> None:
    described = read_study(study)
    contents = {kept / name: (study / name).read_bytes() for name in STUDY_FILES}
    results: dict[Path, CrossClassResult] = {}
    for run in _finished(study, described):
        to = kept / run.folder.name
        contents |= {to / name: (run.folder / name).read_bytes() for name in (RECIPE, ENVIRONMENT, LOG)}
        for record in sorted((run.folder / RECORDS).glob("*.npz")):
            contents[to / RECORDS / record.name] = record.read_bytes()
        for epoch in ("best", run.rows[-1].epoch):
            if result_of(run.folder, epoch, run.suffix).with_suffix(".json").is_file():
                results[result_of(to, epoch, run.suffix)] = CrossClassResult.load(
                    result_of(run.folder, epoch, run.suffix)
                )
    if kept.exists():
        if not (kept / STUDY).is_file():
            raise InputError(f"expected a free place for what is kept of the study, found other files in {kept}")
        shutil.rmtree(kept)
    for folder in {path.parent for path in (*contents, *results)}:
        folder.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_atomically(path, content)
    for stem, result in results.items():
        result.save(stem)
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    if size >= MOST_BYTES:
        raise InputError(
            f"expected less than {MOST_BYTES / 1e6:g} MB to be kept of a study, found {size / 1e6:.1f} MB in {kept}; "
            "evaluate less often (evaluate.every), or on fewer images (data.test_limit)"
        )


def _lines(study: Path, described: Mapping[str, Any], runs: Sequence[FinishedRun]) -> Iterator[str]:
    name = described["name"]
    yield f"# {described['title']}"
    yield ""
    number = len(described["runs"])
    if not described["finished"]:
        yield f"**Not finished: {len(runs)} of {number} runs.**"
        yield ""
    if described["claims"]:
        yield claims_table(described).markdown().decode()
        yield (
            "A claim is held, or not held, where a test finds its margin above, or below, 0 (two-sided p < 0.05); "
            f"else it is undecided. Stated on {_days(described)}, before the first run, but for those marked."
        )
        yield ""
    yield f"![RA and CAS along the epochs]({name}.png)"
    yield ""
    yield study_table(described).markdown().decode()
    yield "Mean ± standard deviation over seeds; Δ is best − last; in the figure the bands are the range over seeds."
    yield ""
    if described["differences"]:
        yield differences_table(described).markdown().decode()
    yield "```bash"
    yield shlex.join(map(str, described["command"]))
    yield "```"
    yield ""
    yield from _machines(runs)
    yield ""
    files = ", ".join(f"[{file}]({name}/{file})" for file in STUDY_FILES)
    yield f"Files, in `{name}/`: {files}; the runs' folders without weights."
    yield ""


def _days(described: Mapping[str, Any]) -> str:
    days = sorted({claim["stated"][:10] for claim in described["claims"] if claim["stated_before"]})
    return " and ".join(days) or "no day"


def _machines(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """What the runs ran on, each machine once."""
    found: dict[str, list[str]] = {}
    for run in runs:
        first = read_environment(run.folder)
        for environment in (first, *first.get("resumed", [])):
            versions = environment.get("versions", {})
            named = ", ".join(
                f"{name} {versions[name]}" for name in ("torch", "torchattacks", "ccf_plugin") if name in versions
            )
            threads = "1 thread" if environment.get("threads") == 1 else f"{environment.get('threads')} threads"
            machine = (
                f"{environment.get('device')}, {threads}, precision {environment.get('precision')}; "
                f"Python {environment.get('python')}, {named}"
            )
            where = found.setdefault(machine, [])
            if run.folder.name not in where:
                where.append(run.folder.name)
    for machine, names in found.items():
        yield f"Ran on {machine}" + ("." if len(found) == 1 else f": {', '.join(names)}.")
    seconds = sum(row.seconds for run in runs for row in run.rows)
    yield f"All epochs together took {seconds / 60:.0f} minutes, beside other work where there was some."


def _picture(described: Mapping[str, Any], runs: Sequence[FinishedRun]) -> bytes:
    """RA and CAS along the epochs: a line for the mean of a run's seeds, a band for their range."""
    figure = new_figure(10, 3.6)
    for ax, (label, column) in zip(figure.subplots(1, 2), _SERIES.items(), strict=True):
        for place, (name, seeds) in enumerate(by_name(runs).items()):
            _draw(ax, f"C{place % 10}", name, seeds, column)
        ax.set_xlabel("epoch")
        ax.set_title(label)
        ax.grid(alpha=0.3)
    figure.axes[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    figure.axes[0].legend(fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    drop_figure(figure)
    return buffer.getvalue()


def _draw(ax: Any, colour: str, name: str, seeds: Sequence[FinishedRun], column: str) -> None:
    known: dict[int, list[float]] = {}
    for run in seeds:
        for row in run.rows:
            value = getattr(row, run.column(column))
            if value is not None:
                known.setdefault(row.epoch, []).append(value)
    epochs = [epoch for epoch, values in sorted(known.items()) if len(values) == len(seeds)]
    values = np.array([known[epoch] for epoch in epochs]).reshape(len(epochs), -1)
    if len(epochs):
        ax.plot(epochs, values.mean(1), color=colour, label=name, marker="." if len(epochs) < 3 else None)
        ax.fill_between(epochs, values.min(1), values.max(1), color=colour, alpha=0.2, linewidth=0)
