"""Ablations in the page, against the committed one of a ResNet-18."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.written_runs import WriteRun

from ccf_plugin.errors import InputError
from ccf_plugin.report.ablations import find_ablations
from ccf_plugin.runs.reading import read_runs

RESNET = Path(__file__).parents[1] / "benchmarks" / "results" / "ablation_resnet18.json"
MINUS = "\N{MINUS SIGN}"


def test_an_ablation_is_described_by_its_figures() -> None:
    (shown,) = find_ablations([], [RESNET])
    content = json.loads(RESNET.read_text())
    assert shown["what"] == (
        "26 of 512 features before linear replaced by their means; 45 pairs, 1000 clean test images of "
        "npz:cifar10_test1000.npz"
    )
    assert shown["counts"] == [6, 13, 26, 52, 104][: len(shown["counts"])]
    rest, between = shown["margins"]
    assert rest["curves"][0]["values"] == [dose["rest"]["shared"] for dose in content["doses"]]
    assert between["curves"][1]["values"] == [dose["between"]["specific"] for dose in content["doses"]]
    first, second, *_ = shown["table"]["rows"]
    assert first == [
        *("shared by the pair", f"{MINUS}1.75", f"{MINUS}0.33", f"{MINUS}0.2 points", f"{MINUS}0.0 points"),
        *(f"{MINUS}0.2 points", ""),
    ]
    assert second[-1] == "0.004; 3e-13"
    assert shown["ranks"].startswith("+0.75 with the pair against the rest and +0.05 with")
    (attacked,) = shown["attacked"]
    assert attacked["name"].endswith("C = 0.50") or "under PGD-20, Linf, eps 1/255" in attacked["name"]
    assert attacked["rows"][0][0] == "nothing"


def test_those_in_the_run_s_folder_are_found_and_other_files_are_not(write_run: WriteRun) -> None:
    folder = write_run("run", epochs=1)
    (folder / "ablation").mkdir()
    for place in (folder / "shared.json", folder / "ablation" / "more.json"):
        shutil.copy(RESNET, place)
    (folder / "broken.json").write_text("{")
    (folder / "list.json").write_text("[]")
    found = find_ablations(read_runs([folder]))
    assert [ablation["name"] for ablation in found] == ["run, more", "run, shared"]


@pytest.mark.parametrize("change", [{"doses": 3}, {"mean_change": {}}, {"pairs": None}, {"data": {}}])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "ablation.json"
    file.write_text(json.dumps(json.loads(RESNET.read_text()) | change))
    with pytest.raises(InputError, match="expected the JSON that `ccf ablate` writes in") as refused:
        find_ablations([], [file])
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none that can be read"):
        find_ablations([], [tmp_path / "none.json"])
