"""One file adds a source of models and a form of data: whatever lists, checks, loads or trains them follows."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from support.commands import Ccf
from support.runs import PLUGIN

from ccf_plugin.errors import InputError
from ccf_plugin.runs import metrics
from ccf_plugin.runs.metrics import METRICS
from ccf_plugin.training.objectives import OBJECTIVES
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.zoo.datasets import check_spec, load_data
from ccf_plugin.zoo.models import build_model, check_name, load_model
from ccf_plugin.zoo.readers import READERS, Reader, register_reader
from ccf_plugin.zoo.sources import SOURCES, Source, register_source
from ccf_plugin.zoo.specs import find, forms

ENTRIES = Path(__file__).parents[1] / "support" / "plugin.py"


@pytest.fixture
def _entries() -> Iterator[None]:
    """What importing the file does, and undone."""
    with patch.dict(SOURCES), patch.dict(READERS), patch.dict(OBJECTIVES), patch.object(metrics, "METRICS", [*METRICS]):
        runpy.run_path(str(ENTRIES))
        yield


@pytest.mark.usefixtures("_entries")
def test_a_new_source_loads_and_builds() -> None:
    loaded = load_model("mine:large")
    assert (loaded.spec, loaded.num_classes, loaded.data) == ("mine:large", 3, "dots:6")
    assert loaded.model(torch.rand(2, 1, 5, 6)).shape == (2, 3)
    network = build_model("mine:small", num_classes=7, input_size=(3, 2, 2), mean=[0.5] * 3, std=[1.0] * 3)
    assert network(torch.rand(4, 3, 2, 2)).shape == (4, 7)
    check_name("mine:large")


@pytest.mark.usefixtures("_entries")
def test_new_data_are_read_and_limited() -> None:
    data = load_data("dots:7", train_per_class=1, test_limit=4)
    assert (data.name, data.classes) == ("dots:7", ("left", "middle", "right"))
    assert data.train is not None
    assert data.test is not None
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 2], [0, 1, 2, 0])
    assert data.train.images.shape == (3, 1, 5, 6)
    assert [int(image.argmax()) for image in data.train.images] == [0, 7, 14]
    check_spec("dots:7")


@pytest.mark.usefixtures("_entries")
@pytest.mark.parametrize(
    ("function", "spec", "message"),
    [
        (check_name, "mine:tiny", "expected mine:small or mine:large"),
        (load_model, "mine:tiny", "expected mine:small or mine:large"),
        (check_name, "mime:small", "expected .*mine:SIZE.*did you mean 'mine'"),
        (load_model, "mime:small", "no kind 'mime'; expected .*mine:SIZE.*did you mean 'mine'"),
        (check_name, "mine:", "is unknown"),
        (check_spec, "dots:many", "expected a number of images"),
        (check_spec, "dosts:3", "expected .*dots:COUNT.*did you mean 'dots'"),
    ],
)
def test_messages_know_new_entries(function: object, spec: str, message: str) -> None:
    assert callable(function)
    with pytest.raises(InputError, match=message) as caught:
        function(spec)
    assert "\n" not in str(caught.value)


def test_messages_do_not_know_entries_that_are_not_there() -> None:
    with pytest.raises(InputError, match="is unknown") as caught:
        check_name("mine:small")
    assert "mine:SIZE" not in str(caught.value)


@pytest.mark.usefixtures("_entries")
def test_a_recipe_of_new_entries_trains_and_its_run_is_probed(ccf: Ccf, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(PLUGIN)
    recipe = load_recipe("mine.toml")
    assert (recipe.model.name, recipe.data.name) == ("mine:small", "dots:12")
    with pytest.raises(InputError) as caught:
        load_recipe("mine.toml", ["model.name=mine:tiny", "data.name=dots:many"])
    faults = str(caught.value).splitlines()
    assert ["model.name" in faults[0], "data.name" in faults[1]] == [True, True]

    code, _, err = ccf("train", "mine.toml", "--out", "run")
    assert (code, err) == (0, "")
    code, out, err = ccf("probe", "run", "--clean", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["data"] == {"name": "dots:12", "split": "test", "count": 12, "input_size": [1, 5, 6]}
    assert json.loads(out)["class_names"] == ["left", "middle", "right"]
    code, out, err = ccf("probe", "mine:small", "--clean", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["data"]["count"] == 6


def test_a_prefix_is_taken_once() -> None:
    with patch.dict(SOURCES), patch.dict(READERS):
        for prefix in ("timm", "", "a:b"):
            with pytest.raises(InputError, match="a prefix without a colon that is not taken"):
                register_source(Source(prefix, "any"))
        with pytest.raises(InputError, match="not taken, found 'digits'"):
            register_reader(Reader("digits", "digits", READERS["npz"].read))
    assert SOURCES["timm"].form == "timm:name"


def test_specs_are_found_by_prefix_or_whole() -> None:
    table = {"digits": READERS["digits"], "npz": READERS["npz"]}
    expected = {"digits": "digits", "npz:a:b": "a:b"}
    for spec in ("digits", "npz:a:b", "npz:", "npz", "digits:x", ":x", ""):
        entry = find(table, spec)
        assert (entry and entry[1]) == expected.get(spec)
    assert forms(table) == "digits or npz:PATH"
    assert forms({"npz": READERS["npz"]}) == "npz:PATH"


def test_every_file_of_a_room_is_a_source_or_reader_of_its_own() -> None:
    """No list beside the files decides what exists: each registers what it holds."""
    import ccf_plugin.zoo.readers
    import ccf_plugin.zoo.sources

    for package, table in ((ccf_plugin.zoo.sources, SOURCES), (ccf_plugin.zoo.readers, READERS)):
        files = {path.stem for path in Path(str(package.__file__)).parent.glob("*.py")}
        homes = {
            function.__module__.rpartition(".")[2]
            for entry in table.values()
            for function in (getattr(entry, name, None) for name in ("load", "build", "read"))
            if function is not None
        }
        assert homes == files - {"__init__", "source", "reader"}
