"""study.json: a study's runs, claims and when they were stated, verdicts, table, paired differences; CSV and LaTeX."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ccf_plugin.files import json_bytes, write_together
from ccf_plugin.measuring.claims import Comparison, Figure, runs_of
from ccf_plugin.measuring.finished_runs import FinishedRun, NotMeasuredError, by_name
from ccf_plugin.measuring.verdicts import Judgement, judge
from ccf_plugin.runs.layout import DIFFERENCES, LATEX, STUDY, TABLE
from ccf_plugin.runs.metrics import metric_of
from ccf_plugin.runs.seeds import mean_and_sd
from ccf_plugin.runs.study_file import FORMAT, read_study
from ccf_plugin.tables import Cell, Table, Value


@dataclass(frozen=True)
class Column:
    """A column of a study's table: a figure, how it is called, and how it is written."""

    name: str
    heading: str
    column: str
    at: str

    def cell(self, figure: Mapping[str, Any] | None) -> Value:
        """Mean and standard deviation of a figure; empty where it was not measured."""
        form = ".3g" if self.column == "epoch" else metric_of(self.column).format
        return Value(None) if figure is None else Value(figure["mean"], form, figure["sd"])


COLUMNS = (
    Column("best_epoch", "best epoch", "epoch", "best"),
    Column("best_ra", "best RA", "test_robust_accuracy", "best"),
    Column("best_cas", "best CAS", "cas", "best"),
    Column("last_ra", "last RA", "test_robust_accuracy", "last"),
    Column("last_cas", "last CAS", "cas", "last"),
    Column("delta_ra", "ΔRA", "test_robust_accuracy", "delta"),
    Column("delta_cas", "ΔCAS", "cas", "delta"),
    Column("best_icas", "best I-CAS", "instance_cas", "best"),
    Column("last_icas", "last I-CAS", "instance_cas", "last"),
)
_COMPARED = ("best_ra", "last_ra", "delta_ra", "delta_cas")


@dataclass(frozen=True)
class Stated:
    """A claim and when it was stated: before the first run had a finished epoch, or after."""

    claim: str
    at: str
    before: bool
    withdrawn: bool = False

    @property
    def mark(self) -> str:
        """A hash of the claim and its time, by which an edited file is known."""
        return hashlib.sha256(f"{self.at} {self.before} {self.claim}".encode()).hexdigest()[:16]


def state_claims(folder: Path, claims: Sequence[str], *, has_begun: bool, now: datetime | None = None) -> list[Stated]:
    """The claims with the time at which each was stated first, as study.json has it; what it lacks is stated now.

    One that has gone from the study's file after the first run stays, marked as withdrawn.

    Args:
        folder: the study's.
        claims: those of its file.
        has_begun: whether one of its runs has a finished epoch.
    """
    known = {one.claim: one for one in _read_stated(folder)}
    at = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    stated = [known[claim] if claim in known else Stated(claim, at, not has_begun) for claim in claims]
    gone = [one for claim, one in known.items() if claim not in claims and has_begun]
    return stated + [Stated(one.claim, one.at, one.before, withdrawn=True) for one in gone]


def _read_stated(folder: Path) -> list[Stated]:
    if not (folder / STUDY).is_file():
        return []
    known = []
    for entry in read_study(folder)["claims"]:
        stated = Stated(entry["claim"], entry["stated"], entry["stated_before"])
        if entry["mark"] != stated.mark:  # somebody wrote into the file
            stated = Stated(stated.claim, stated.at, before=False)
        known.append(stated)
    return known


def describe_study(
    described: Mapping[str, Any],
    stated: Sequence[Stated],
    comparisons: Mapping[str, Sequence[Comparison]],
    runs: Sequence[FinishedRun],
) -> dict[str, Any]:
    """The content of study.json.

    Args:
        described: name, title, baseline, and ``runs`` with name, seed, label, folder and status.
        stated: its claims.
        comparisons: what each claim is true with.
        runs: the finished ones.
    """
    named = by_name(runs)
    unfinished = {
        name: [run["label"] for run in described["runs"] if run["name"] == name and run["status"] != "finished"]
        for name in {run["name"] for run in described["runs"]}
    }
    claims = []
    for one in stated:
        parts = [judge(part, named, _missing(part, unfinished)) for part in comparisons.get(one.claim, ())]
        claims.append(
            {
                "claim": one.claim,
                "verdict": _together(parts),
                "stated": one.at,
                "stated_before": one.before,
                "withdrawn": one.withdrawn,
                "mark": one.mark,
                "parts": [_plain(part) for part in parts],
            }
        )
    baseline = described["baseline"]
    differences = [
        {"run": name, "against": baseline, "figure": column.name, **_plain(judge(compared, named))}
        for name in named
        if name != baseline and baseline in named
        for column in COLUMNS
        if column.name in _COMPARED
        for compared in [_difference(name, baseline, column)]
    ]
    return {
        "format": FORMAT,
        **described,
        "finished": not any(unfinished.values()),
        "claims": claims,
        "table": [_row(name, of_name) for name, of_name in named.items()],
        "differences": differences,
    }


def save_study(folder: Path, study: Mapping[str, Any]) -> None:
    """Write study.json, the table as CSV and LaTeX, and the differences as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    table = study_table(study)
    write_together(
        {
            folder / STUDY: json_bytes(study),
            folder / TABLE: table.csv(),
            folder / LATEX: table.latex(),
            folder / DIFFERENCES: differences_table(study).csv(),
        }
    )


def study_table(study: Mapping[str, Any]) -> Table:
    """The figures of a study's runs, mean ± sd over seeds: of the averaged weights where a run averages."""
    rows = {row["run"]: row for row in study["table"]}
    columns = [column for column in COLUMNS if any(column.name in row["figures"] for row in study["table"])]
    runs: dict[str, list[str]] = {}
    for run in study["runs"]:
        runs.setdefault(run["name"], []).append(run["status"])
    has_seeds = any(len(statuses) > 1 for statuses in runs.values())
    headings = [*(["seeds"] if has_seeds else []), *(column.heading for column in columns)] or ["status"]
    filled: list[list[Cell]] = []
    for name, statuses in runs.items():
        row = rows.get(name)
        if row is None:
            filled.append([name, " and ".join(sorted(set(statuses))), *[None] * (len(headings) - 1)])
            continue
        done = row["seeds"] if row["seeds"] == len(statuses) else f"{row['seeds']} of {len(statuses)}"
        figures = [column.cell(row["figures"].get(column.name)) for column in columns]
        label = f"{name}, averaged weights" if row["averaged"] else name
        filled.append([label, *([done] if has_seeds else []), *figures])
    return Table(("run", *headings), filled)


def claims_table(study: Mapping[str, Any]) -> Table:
    """Each claim, its verdict, what decided it or kept it open, and whether it was stated before the runs."""
    return Table(("claim", "verdict", "by"), [claim_in_words(claim) for claim in study["claims"]])


def differences_table(study: Mapping[str, Any]) -> Table:
    """Each run's figures less those of the baseline; those of RA in points."""
    headings = {column.name: column for column in COLUMNS}
    rows: list[list[Cell]] = []
    for one in study["differences"]:
        column = headings[one["figure"]]
        unit = 100.0 if column.column == "test_robust_accuracy" else 1.0
        name = f"{column.heading}, points" if unit > 1 else column.heading
        mean = float(np.mean(one["margins"])) if one["margins"] else None
        figures = [mean, *(one["interval"] or (None, None))]
        values = [Value(None if value is None else unit * value, "+.2f") for value in figures]
        test = ", ".join(filter(None, [one["test"], one["why"]]))
        rows.append([one["run"], name, *values, Value(one["p"], ".2g"), test])
    return Table((f"less {study['baseline']}", "figure", "difference", "95 % from", "to", "p", "test"), rows)


def claim_in_words(claim: Mapping[str, Any]) -> tuple[str, str, str]:
    """A claim with when it was stated, where that was too late; its verdict; what decided it, or kept it open."""
    marks = [] if claim["stated_before"] else ["stated after"]
    marks += ["withdrawn"] if claim["withdrawn"] else []
    text = f"{claim['claim']} ({', '.join(marks)})" if marks else claim["claim"]
    parts = claim["parts"]
    grounds = [f"{part['text']}: {_grounds(part)}" if len(parts) > 1 else _grounds(part) for part in parts]
    return text, claim["verdict"], "; ".join(grounds)


def _grounds(part: Mapping[str, Any]) -> str:
    sides = ""
    if part["left"] is not None:
        sides = f"{part['left']:.4g} and {part['right']:.4g}"
    test = "" if part["p"] is None else f"{part['test']}, p = {part['p']:.2g}"
    return ", ".join(filter(None, [sides, test, part["why"]]))


def _row(name: str, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    figures = {}
    for column in COLUMNS:
        try:
            values = [run.value(Figure(name, column.column, column.at)) for run in runs]
        except NotMeasuredError:
            continue
        mean, sd = mean_and_sd(values) if len(values) > 1 else (values[0], None)
        figures[column.name] = {"mean": mean, "sd": sd, "values": values}
    return {"run": name, "seeds": len(runs), "averaged": bool(runs[0].suffix), "figures": figures}


def _difference(name: str, baseline: str, column: Column) -> Comparison:
    first, second = (Figure(run, column.column, column.at) for run in (name, baseline))
    return Comparison(f"{first} > {second}", first, second, 1)


def _missing(part: Comparison, unfinished: Mapping[str, Sequence[str]]) -> list[str]:
    return [label for name in runs_of(part) for label in unfinished.get(name, [name])]


def _together(parts: Sequence[Judgement]) -> str:
    verdicts = [part.verdict for part in parts]
    if "not held" in verdicts:
        return "not held"
    return "held" if verdicts and set(verdicts) == {"held"} else "undecided"


def _plain(judgement: Judgement) -> dict[str, Any]:
    described = asdict(judgement)
    return described | {name: list(described[name] or ()) or None for name in ("margins", "interval")}
