"""study.json: when claims were stated, what an edited file is worth, and the tables."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.studies import made_run

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.claims import parse_claim
from ccf_plugin.measuring.study_results import (
    claim_in_words,
    describe_study,
    differences_table,
    save_study,
    state_claims,
    study_table,
)
from ccf_plugin.runs.layout import STUDY
from ccf_plugin.runs.study_file import read_study

FIRST, LATER = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2))
RA = "test_robust_accuracy"


def write(folder: Path, claims: list[str], *, has_begun: bool, now: datetime) -> list[tuple[str, bool, bool, str]]:
    """State these claims, save, and give them back as (claim, before, withdrawn, day)."""
    stated = state_claims(folder, claims, has_begun=has_begun, now=now)
    described = {"name": "s", "title": "s", "baseline": "a", "runs": [_run("a")]}
    save_study(
        folder, describe_study(described, stated, {one.claim: parse_claim(one.claim, ["a"]) for one in stated}, [])
    )
    return [(one.claim, one.before, one.withdrawn, one.at[:10]) for one in stated]


def _run(name: str, seed: int = 0, status: str = "waiting") -> dict[str, Any]:
    return {"name": name, "seed": seed, "label": f"{name}, seed {seed}", "folder": f"{name}-{seed}", "status": status}


def test_a_claim_is_stated_once_and_one_that_comes_late_is_marked(tmp_path: Path) -> None:
    one, two, three = "a.ra > 0", "a.cas > 0", "a.cas > 1"
    assert write(tmp_path, [one], has_begun=False, now=FIRST) == [(one, True, False, "2026-01-01")]
    assert write(tmp_path, [two], has_begun=False, now=LATER) == [(two, True, False, "2026-01-02")]  # nothing ran yet
    assert write(tmp_path, [three, two], has_begun=True, now=LATER) == [
        (three, False, False, "2026-01-02"),
        (two, True, False, "2026-01-02"),
    ]
    assert write(tmp_path, [two], has_begun=True, now=LATER)[1] == (three, False, True, "2026-01-02")
    words = [claim_in_words(claim) for claim in read_study(tmp_path)["claims"]]
    assert words[1][0] == f"{three} (stated after, withdrawn)"
    assert [word[1] for word in words] == ["undecided", "undecided"]
    assert words[0][2] == "not finished: a, seed 0"


def test_a_claim_that_somebody_wrote_into_the_file_was_stated_after(tmp_path: Path) -> None:
    write(tmp_path, ["a.ra > 0.5"], has_begun=False, now=FIRST)
    file = tmp_path / STUDY
    file.write_text(file.read_text().replace("a.ra > 0.5", "a.ra > 0.1"))
    assert write(tmp_path, ["a.ra > 0.1"], has_begun=True, now=LATER) == [("a.ra > 0.1", False, False, "2026-01-01")]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b"\xff", b'{"format": 1, "claims": {}, "runs": 3}'),
        b'{"format": 1, "claims": [{"claim": 3}], "runs": []}',
        b'{"format": 1, "claims": [], "runs": [{"name": "a", "folder": "../../etc"}]}',
        b'{"format": 99, "claims": [], "runs": []}',
    ],
)
def test_a_damaged_study_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / STUDY).write_bytes(content)
    with pytest.raises(InputError) as error:
        state_claims(tmp_path, [], has_begun=True)
    assert str(tmp_path / STUDY) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_tables_by_hand(tmp_path: Path) -> None:
    cas = {"a": [8.0, 6.0], "b_x": [5.0, 5.0]}
    runs = [
        made_run(tmp_path / f"{name}-{seed}", [{RA: 0.5, "cas": 10.0}, {RA: 0.4, "cas": last}], name=name, seed=seed)
        for name, values in cas.items()
        for seed, last in enumerate(values)
    ]
    listed = [_run(run.name, run.seed or 0, "finished") for run in runs] + [_run("c")]
    described = {"name": "s", "title": "s", "baseline": "a", "runs": listed}
    study = describe_study(described, [], {}, runs)
    rows = study_table(study).records()
    assert rows[0]["ΔCAS"] == pytest.approx(3.0)
    assert rows[0]["ΔCAS sd"] == pytest.approx(2**0.5)
    assert rows[1]["last CAS"] == 5.0
    assert rows[2]["seeds"] == "waiting"
    less = [row for row in differences_table(study).records() if row["figure"] == "ΔCAS"]
    assert [(row["less a"], row["difference"]) for row in less] == [("b_x", pytest.approx(2.0))]
    save_study(tmp_path, study)
    latex = (tmp_path / "table.tex").read_text()
    assert r"b\_x & 2 & 1 $\pm$ 0 & 50.0\% $\pm$ 0.0\% & 10.00 $\pm$ 0.00 &" in latex
    assert r"\toprule" in latex
    assert (
        (tmp_path / "table.csv").read_text().splitlines()[0].startswith("run,seeds,best epoch,best epoch sd,best RA,")
    )
    assert json.loads((tmp_path / STUDY).read_text())["finished"] is False
