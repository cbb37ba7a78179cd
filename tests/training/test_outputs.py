"""Training of models whose output is no tensor alone: the run is that of the same network by hand, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.hosts import OUTPUTS, TAKEN
from support.runs import COLUMNS, SHORT, Quiet

from ccf_plugin.runs.log import read_log
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.run import Run

WAKE = ("average={kind='ema', decay=0.5}", "distill=[{teacher='average', weight=0.5, ramp=[1, 2], weight_after=1.0}]")
METHODS = {
    "standard": ("objective.loss=standard",),
    "madry": (),
    "trades": ("objective.loss=trades",),
    "mart": ("objective.loss=mart",),
    "awp": ("awp={gamma=0.01}",),
    "ensembling": ("ensembling={ramp=[0, 1]}",),
    "an average that teaches": WAKE,
}


def _trained(name: str, folder: Path, *more: str) -> Run:
    model = f"model={{name='python:support.hosts:{name}'}}"
    return train(load_recipe("digits", [model, *SHORT, "optim.epochs=2", *more]), folder, Quiet())


def _assert_same(run: Run, twin: Run) -> None:
    for file in ("last", "best"):
        first, second = (load_file(one.folder / f"{file}.safetensors") for one in (run, twin))
        assert {f"host.{key}": None for key in first}.keys() == second.keys()
        assert all(torch.equal(value, second[f"host.{key}"]) for key, value in first.items())
    for row, other in zip(read_log(run.folder), read_log(twin.folder), strict=True):
        timed = ("seconds", "images_per_second")
        assert [getattr(row, key) for key in COLUMNS if key not in timed] == [
            getattr(other, key) for key in COLUMNS if key not in timed
        ]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_one_of_hugging_faces(method: str, tmp_path: Path) -> None:
    run = _trained("hugging_face", tmp_path / "run", *METHODS[method])
    _assert_same(run, _trained("by_hand_hugging_face", tmp_path / "twin", *METHODS[method]))


@pytest.mark.parametrize("name", sorted(set(TAKEN) - {"hugging_face"}))
def test_each_host_is_trained(name: str, tmp_path: Path) -> None:
    chosen = [f"probe.output={OUTPUTS[name]}"] if name in OUTPUTS else []
    settings = ("optim.epochs=1", "objective.loss=trades", *WAKE)
    run = _trained(name, tmp_path / "run", *settings, *chosen)
    _assert_same(run, _trained(f"by_hand_{name}", tmp_path / "twin", *settings))


def test_it_teaches(tmp_path: Path) -> None:
    specs = "hugging_face", "by_hand_hugging_face"
    taught = [f"distill=[{{teacher='python:support.hosts:{spec}', weight=0.5}}]" for spec in specs]
    first, second, alone = (
        load_file(_trained("a_tuple", tmp_path / str(place), *settings).folder / "last.safetensors")
        for place, settings in enumerate([[taught[0]], [taught[1]], []])
    )
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(not torch.equal(value, alone[key]) for key, value in first.items())
