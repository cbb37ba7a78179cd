"""Data of one's own, ``python:package.module:function``: read, limited, trained on, probed; only the user names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.commands import Ccf, sets
from support.runs import TINY

from ccf_plugin.errors import InputError
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.zoo.datasets import check_spec, load_data
from zoo import own_data

STRIPES = "python:zoo.own_data:stripes"


@pytest.fixture(autouse=True)
def _not_called_yet() -> None:
    own_data.called.clear()


def test_arrays_become_splits_within_their_limits() -> None:
    data = load_data(STRIPES, train_per_class=2, test_limit=4)
    assert (data.name, data.classes) == (STRIPES, ("left", "middle", "right"))
    assert data.train is not None
    assert data.test is not None
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 2, 0, 1, 2], [0, 1, 2, 0])
    expected, _ = own_data._stripes(18)
    assert torch.equal(data.train.images, torch.from_numpy(expected[:6, None]))
    assert own_data.called == ["train", "test"]


def test_only_the_split_that_is_asked_for_is_made_where_classes_have_names() -> None:
    assert load_data(STRIPES, splits=["test"]).train is None
    assert own_data.called == ["test"]


def test_classes_without_names_are_counted_over_both_splits() -> None:
    data = load_data("python:zoo.own_data:nameless", splits=["test"])
    assert (data.classes, data.train) == (("0", "1", "2", "3", "4"), None)
    assert own_data.called == ["test", "train"]
    assert load_data("python:zoo.own_data:nameless").classes == data.classes


def test_tensors_have_their_channels_first() -> None:
    data = load_data("python:zoo.own_data:tensors")
    assert data.train is None
    assert data.test is not None
    assert data.test.images.shape == (12, 3, 6, 9)
    grey, _ = own_data._stripes(12)
    for channel, shift in enumerate((0, 20, 40)):
        assert torch.equal(data.test.images[:, channel].int(), torch.from_numpy(grey).int() + shift)


def test_images_are_resized_as_a_model_asks() -> None:
    def shrink(image: Image.Image) -> Image.Image:
        assert (image.mode, image.size) == ("L", (9, 6))
        return image.resize((3, 2))

    data = load_data(STRIPES, splits=["test"], preprocess=shrink)
    assert data.test is not None
    assert data.test.images.shape == (12, 1, 2, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:", "is unknown"),
        ("python:zoo.own_data", "expected python:package.module:name"),
        ("python:zoo/own_data.py:stripes", "expected python:package.module:name"),
    ],
)
def test_a_spec_is_checked_by_its_form_alone(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_spec(spec)
    check_spec("python:no.such.module:function")


def test_a_file_that_names_code_as_data_needs_leave(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'base = "digits"\n[data]\nname = "{STRIPES}"\n')
    with pytest.raises(InputError, match=r"data.name: expected no code named by a file.*add allow_code=True"):
        load_recipe(str(tmp_path / "mine.toml"))
    assert load_recipe(str(tmp_path / "mine.toml"), allow_code=True).data.name == STRIPES
    assert own_data.called == []


def test_a_run_on_ones_own_data_is_trained_and_probed_and_runs_code_only_where_it_is_typed(
    ccf: Ccf, tmp_path: Path
) -> None:
    code, _, err = ccf("train", "digits", *sets([*TINY, f"data.name={STRIPES}", "optim.epochs=1"]), "--out", "run")
    assert (code, err) == (0, "")
    assert own_data.called == ["train", "test"]
    assert json.loads((tmp_path / "run" / "probe" / "001.json").read_text())["data"]["name"] == STRIPES

    own_data.called.clear()
    code, out, err = ccf("probe", "run", "--clean")
    assert (code, out) == (2, "")
    assert err == f"ccf: expected --data for run, found data of your own code; name it: --data {STRIPES}\n"
    code, _, err = ccf("compare", "run/probe/001", "run")
    assert code == 2
    assert err == f"ccf: expected no code named by a file, found {STRIPES}; if you trust it, add --data {STRIPES}\n"
    assert own_data.called == []

    code, out, err = ccf("probe", "run", "--clean", "--data", STRIPES, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["data"] == {"name": STRIPES, "split": "test", "count": 12, "input_size": [1, 6, 9]}
    assert json.loads(out)["class_names"] == ["left", "middle", "right"]
    assert own_data.called == ["test"]
    code, _, err = ccf("compare", "run/probe/001", "run", "--data", STRIPES)
    assert (code, err) == (0, "")
