"""A study's file: what it plans, and every fault at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.studies import COMMON, write_study

from ccf_plugin.errors import InputError
from ccf_plugin.training.study import load_study, shipped_studies, sweep_study


def test_runs_are_recipe_changes_seeds_and_teachers(tmp_path: Path) -> None:
    runs = {
        "kd": {"distill": [{"teacher": "run:madry", "weight": 0.8}, {"teacher": "run:standard", "weight": 0.1}]},
        "madry": {"optim": {"lr": 0.05}},
        "standard": {"seeds": [7], "objective": {"loss": "standard"}},
        "more": {"model": {"weights": "run:madry"}},
    }
    study = load_study(str(write_study(tmp_path / "mine.toml", runs=runs)), ["threads=1"], tmp_path / "out")
    assert [member.folder.name for member in study.members] == [
        *("madry-0", "standard-7", "kd-0", "more-0"),
        *("madry-1", "kd-1", "more-1"),
    ]
    members = {member.folder.name: member for member in study.members}
    kd = members["kd-1"].recipe
    assert (kd.seed, kd.threads, kd.optim.epochs, kd.model.options["width"]) == (1, 1, 2, 2)
    assert [one.teacher for one in kd.distill] == [str(tmp_path / "out" / name) for name in ("madry-1", "standard-7")]
    assert members["more-1"].recipe.model.weights == str(tmp_path / "out" / "madry-1")
    assert members["madry-0"].recipe.optim.lr == 0.05
    assert members["madry-0"].recipe.optim.decay_epochs == [1]  # the common table's beside it
    assert (study.name, study.baseline) == ("mine", "kd")
    assert members["kd-1"].teachers == (tmp_path / "out" / "madry-1", tmp_path / "out" / "standard-7")


def test_a_study_may_have_its_recipe_s_name(tmp_path: Path) -> None:
    path = write_study(tmp_path / "digits.toml")
    assert load_study(str(path)).members[0].recipe.data.name == "digits"


def test_a_base_may_lie_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('base = "digits"\n[optim]\nepochs = 3\n')
    path = write_study(
        tmp_path / "mine.toml", common={"base": "other"}, runs={"a": {}, "b": {"base": "digits_fast"}}, claims=[]
    )
    epochs = {member.name: member.recipe.optim.epochs for member in load_study(str(path)).members}
    assert epochs == {"a": 3, "b": 14}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claim": []}, "claim: expected a known key, found 'claim'; did you mean 'claims'?"),
        ({"runs": {}}, "runs: expected"),
        ({"seeds": []}, "seeds: expected"),
        ({"seeds": [0, 0]}, "expected each seed once, found [0, 0]"),
        ({"seeds": ["a"]}, "seeds.0: expected"),
        ({"baseline": "md"}, "baseline: expected one of madry, kd, found 'md'"),
        (
            {"runs": {"a-b": {}}, "claims": []},
            "expected names of letters, digits and _ that claims can name, found 'a-b'",
        ),
        ({"runs": {"in": {}}, "claims": []}, "found 'in'"),
        ({"runs": {"a": {}, "A": {}}, "claims": []}, "names that differ in more than capitals"),
        ({"common": {}}, "runs.madry.base: expected a recipe's name or path"),
        ({"common": {**COMMON, "base": "digit"}}, "did you mean 'digits'"),
        ({"common": {**COMMON, "seed": 3}}, "expected seeds = [3], found seed"),
        ({"common": {**COMMON, "optim": {"epochz": 3}}}, "runs.madry: optim.epochz: expected a known key"),
        ({"claims": ["mdry.ra > 0"]}, "found 'mdry'; did you mean 'madry'?"),
        (
            {"claims": ["madry.ra_2 > 0 < madry.cas_50"]},
            "claim 'madry.ra_2 > 0 < madry.cas_50': expected an epoch of madry, 1 to 2, found 50",
        ),
        (
            {
                "common": {**COMMON, "optim": {"epochs": 5}, "evaluate": {"steps": 1, "every": 2}},
                "claims": ["madry.ra_2 < madry.ra_5", "madry.train_loss_3 > madry.clean_3"],
            },
            "madry.clean_3': expected an epoch at which madry is evaluated, a multiple of evaluate.every = 2, found 3",
        ),
        (
            {"runs": {"madry": {}, "kd": {"distill": [{"teacher": "run:mdry", "weight": 0.5}]}}},
            "found 'run:mdry'; did you mean",
        ),
        (
            {"runs": {"madry": {"seeds": [0, 2]}, "kd": {"distill": [{"teacher": "run:madry", "weight": 0.5}]}}},
            "expected a seed 1 of 'run:madry' too, found [0, 2]",
        ),
        (
            {
                "runs": {
                    "madry": {"distill": [{"teacher": "run:kd", "weight": 0.5}]},
                    "kd": {"distill": [{"teacher": "run:madry", "weight": 0.5}]},
                }
            },
            "without a circle, found madry → kd → madry",
        ),
        (
            {"runs": {"madry": {"objective": {"loss": "python:a.b:c"}}}, "claims": []},
            "expected no code named by a file",
        ),
        ({"runs": {"madry": {"seconds_per_epoch": "long"}}, "claims": []}, "seconds_per_epoch: expected a number"),
    ],
)
def test_a_fault_is_told_with_its_place(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_study(tmp_path / "mine.toml", **changes)
    with pytest.raises(InputError) as error:
        load_study(str(path))
    assert message in str(error.value)
    assert all(line.startswith(str(path)) for line in error.value.args)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    runs = {"madry": {"optim": {"lr": -1.0}}, "kd": {"attack": {"steps": 0}}}
    path = write_study(tmp_path / "mine.toml", runs=runs, claims=["a.ra > 0", "kd.rx > 0"], seeds=[0, 1, 2])
    with pytest.raises(InputError) as error:
        load_study(str(path))
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in error.value.args] == [
        *("runs.madry", "runs.kd"),
        *("claim 'a.ra > 0'", "claim 'kd.rx > 0'"),
    ]


def test_a_seed_for_all_runs_is_no_change(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="edit its seeds"):
        load_study(str(write_study(tmp_path / "mine.toml")), ["seed=3"])


def test_a_sweep_over_seeds_is_one_run_with_seeds(tmp_path: Path) -> None:
    study = sweep_study("digits", ["attack.eps=4/255,8/255", "seed=0,1"], [], tmp_path)
    assert [(member.name, member.seed, member.folder.name) for member in study.members] == [
        ("attack.eps=4/255", 0, "attack.eps=4_255,seed=0"),
        ("attack.eps=4/255", 1, "attack.eps=4_255,seed=1"),
        ("attack.eps=8/255", 0, "attack.eps=8_255,seed=0"),
        ("attack.eps=8/255", 1, "attack.eps=8_255,seed=1"),
    ]


@pytest.mark.parametrize("name", shipped_studies())
def test_every_shipped_study_loads_and_opens_with_its_story(name: str) -> None:
    study = load_study(name)
    assert study.claims
    text = shipped_studies()[name].read_text("utf-8").splitlines()
    assert text[1].startswith(f"# Command:   ccf study recipes/studies/{name}.toml")
    assert [line[2:].split(":")[0] for line in text[2:8] if line.startswith("# ") and line[2] != " "][-3:] == [
        *("Source", "Needs", "Measured"),
    ]
