"""Hugging Face's data sets: as ``save_to_disk`` wrote them, and those of the hub, asked for downloads alone."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import Ccf, sets
from support.runs import NETWORK

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.zoo import streaming
from ccf_plugin.zoo.datasets import ImageData, check_spec, load_data
from ccf_plugin.zoo.streaming import StreamedImages

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog", "ship"]


@pytest.fixture(autouse=True)
def _quiet_hf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(values: list[int], labels: list[Any], *, mode: str = "RGB", **columns: Any) -> Any:
    """A data set of images that are filled with ``values``."""
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}
    given = {"picture": [Image.new(mode, (3, 2), (value,) * len(mode)) for value in values], "kind": labels}
    for name, (feature, column) in columns.items():
        features[name], given[name] = feature, column
    return datasets.Dataset.from_dict(given, features=datasets.Features(features))


def saved(path: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits).save_to_disk(path)
    return f"hf:{path}"


def load(spec: str, **options: Any) -> tuple[ImageData, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_data(spec, **options)
    return data, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def test_columns_are_found_by_their_types_and_the_order_stays(tmp_path: Path) -> None:
    note = (datasets.Value("string"), ["a", "b", "c", "d"])
    number = (datasets.Value("int64"), [9, 9, 9, 9])
    spec = saved(
        tmp_path / "set",
        train=rows([10, 20, 30, 40], [2, 0, 1, 0], note=note, number=number),
        test=rows([50, 60, 70, 80], [1, 1, 0, 2], note=note, number=number),
    )
    data, notes = load(spec)
    assert (data.name, data.classes, notes) == (spec, tuple(NAMES), [])
    assert data.train is not None
    assert data.test is not None
    assert (data.train.images.shape, data.train.images.dtype) == ((4, 3, 2, 3), torch.uint8)
    assert data.train.images[:, 0, 0, 0].tolist() == [10, 20, 30, 40]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([2, 0, 1, 0], [1, 1, 0, 2])
    limited, _ = load(spec, test_limit=3, train_per_class=1, classes=["ship", "dog", "cat"])
    assert limited.train is not None
    assert limited.test is not None
    assert (limited.train.labels.tolist(), limited.train.images[:, 0, 0, 0].tolist()) == ([0, 2, 1], [10, 20, 30])
    assert (limited.test.labels.tolist(), limited.test.images[:, 0, 0, 0].tolist()) == ([1, 2, 0], [50, 70, 80])


def test_images_that_do_not_fit_are_decoded_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = saved(tmp_path / "set", test=rows([10, 20, 30, 40], [2, 0, 1, 0], mode="L"))
    memory, _ = load(spec)
    monkeypatch.setattr(streaming, "host_bytes", lambda: 1.0)
    streamed, _ = load(spec)
    assert memory.test is not None
    assert streamed.test is not None
    assert isinstance(streamed.test.images, StreamedImages)
    for one, other in zip(
        *(list(data.test.batches(3, torch.device("cpu"))) for data in (memory, streamed) if data.test), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert memory.test.images.shape == (4, 1, 2, 3)


# The splits of a data set with the first of their labels, which of them is the test split, and the notes.
SPLITS: dict[str, tuple[dict[str, int], str | None, list[str]]] = {
    "test": ({"train": 0, "test": 0, "validation": 0}, "test", []),
    "validation": ({"train": 0, "validation": 0}, "validation", ["no test split: validation is taken for it"]),
    "val": ({"train": 0, "val": 0}, "val", ["no test split: val is taken for it"]),
    "a test split without labels": (
        {"train": 0, "validation": 0, "test": -1},
        "validation",
        ["test has no labels", "no test split: validation is taken for it"],
    ),
    "train alone": ({"train": 0}, None, []),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_splits(kind: str, tmp_path: Path) -> None:
    splits, test, says = SPLITS[kind]
    spec = saved(tmp_path / "set", **{name: rows([10 * n], [label]) for n, (name, label) in enumerate(splits.items())})
    data, notes = load(spec)
    assert data.train is not None
    assert [int(part.images.max()) for part in (data.train, data.test) if part] == [
        10 * list(splits).index(name) for name in ("train", test) if name
    ]
    assert notes == [f"{spec}: {note}" for note in says]
    assert load(spec, splits=["train"])[1] == []


@pytest.mark.parametrize(("recorded", "split"), [("train", "train"), ("test", "test"), ("validation", "test")])
def test_one_split_alone(recorded: str, split: str, tmp_path: Path) -> None:
    part = rows([10, 20], [0, 1])
    part._split = datasets.NamedSplit(recorded)
    part.save_to_disk(tmp_path / "set")
    data, _ = load(f"hf:{tmp_path / 'set'}")
    assert [name for name in ("train", "test") if getattr(data, name) is not None] == [split]


def test_rows_that_belong_to_no_split_are_the_test_split(tmp_path: Path) -> None:
    rows([10, 20], [0, 1]).save_to_disk(tmp_path / "set")
    data, (note,) = load(f"hf:{tmp_path / 'set'}")
    assert data.train is None
    assert note.endswith("no splits: all images are taken as the test split")


FINE = (datasets.ClassLabel(names=["tabby", "hound", "ketch", "liner"]), [3, 0])
MASKS = (datasets.Image(), [Image.new("L", (3, 2), value) for value in (1, 2)])
NUMBER = (datasets.Value("int32"), [1, 0])


@pytest.mark.parametrize(
    ("columns", "behind", "classes", "labels", "red"),
    [
        ({"fine": FINE}, "#label=fine", ("tabby", "hound", "ketch", "liner"), [3, 0], 10),
        ({"fine": FINE}, "#label=kind", tuple(NAMES), [2, 1], 10),
        ({"mask": MASKS}, "#image=mask", tuple(NAMES), [2, 1], 1),
        ({"mask": MASKS, "fine": FINE}, "#image=picture#label=kind", tuple(NAMES), [2, 1], 10),
        ({"number": NUMBER}, "#label=number", ("0", "1"), [1, 0], 10),
    ],
)
def test_of_several_columns_one_is_named(
    columns: dict[str, Any], behind: str, classes: tuple[str, ...], labels: list[int], red: int, tmp_path: Path
) -> None:
    spec = saved(tmp_path / "set", test=rows([10, 20], [2, 1], **columns)) + behind
    data, _ = load(spec)
    assert data.test is not None
    assert (data.name, data.classes, data.test.labels.tolist()) == (spec, classes, labels)
    assert int(data.test.images[0, 0, 0, 0]) == red


def _without_types() -> Any:
    return datasets.Dataset.from_dict({"pixels": [[1, 2]], "label": [0]})


def _without_class_label() -> Any:
    return rows([1], [0], label=(datasets.Value("int64"), [0])).remove_columns("kind")


BAD: dict[str, tuple[Any, str, str]] = {
    "two columns of labels": (
        lambda: rows([1, 2], [0, 1], fine=FINE),
        "",
        r"expected one column of type ClassLabel, found kind, fine; name it: hf:.*/set#label=COLUMN",
    ),
    "two columns of images": (
        lambda: rows([1, 2], [0, 1], mask=MASKS),
        "",
        r"type Image, found picture, mask; name it",
    ),
    "no image": (_without_types, "", r"expected one column of type Image, found pixels \(List\), label \(int64\)"),
    "no ClassLabel": (_without_class_label, "", r"type ClassLabel, found picture .*label \(int64\); name it"),
    "a column that is not there": (lambda: rows([1], [0]), "#label=fine", r"in #label=fine, found picture"),
    "an image that is none": (lambda: rows([1], [0]), "#image=kind", r"expected a column of type Image in #image=kind"),
    "another choice": (lambda: rows([1], [0]), "#lable=kind", r"found 'lable=kind'; did you mean 'label'"),
    "a missing label": (
        lambda: rows([1, 2], [0, None]),
        "",
        "expected a label in kind for each image, found none for 1",
    ),
    "some labels of -1": (lambda: rows([1, 2], [0, -1]), "", "expected labels of 0 and above in test column kind"),
    "a missing image": (lambda: _broken(None), "", r"/set, test image 1: expected an image"),
    "a broken image": (lambda: _broken({"bytes": b"hi", "path": None}), "", r"/set, test image 1: expected an image"),
}


def _broken(second: object) -> Any:
    good = {"bytes": (Path(__file__).parents[2] / "docs" / "pictures" / "theory.png").read_bytes(), "path": None}
    return datasets.Dataset.from_dict(
        {"picture": [good, second], "kind": [0, 1]},
        features=datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}),
    )


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_said_in_one_line(kind: str, tmp_path: Path) -> None:
    make, behind, says = BAD[kind]
    spec = saved(tmp_path / "set", test=make()) + behind
    with pytest.raises(InputError, match=says) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "gone.png", ""])
def test_a_path_inside_the_data_that_is_no_file_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not saved: save_to_disk would read the device to its end.
    data = datasets.DatasetDict(test=_broken({"bytes": None, "path": path}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: data)
    with pytest.raises(InputError, match=r"hf:owner/set, test image 1: expected an image"):
        load_data("hf:owner/set")


def test_splits_of_other_columns_are_refused(tmp_path: Path) -> None:
    other = rows([1], [0]).cast_column("kind", datasets.ClassLabel(names=NAMES[::-1]))
    spec = saved(tmp_path / "set", train=rows([1], [0]), test=other)
    with pytest.raises(InputError, match="alike in all splits, found others in test"):
        load_data(spec)


def test_a_folder_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder that save_to_disk wrote, found another; .* use folder:"):
        load_data(f"hf:{tmp_path}")
    with pytest.raises(InputError, match=r"found nothing there; check the path"):
        load_data(f"hf:{tmp_path / 'gone'}")
    with pytest.raises(InputError, match="unknown"):
        check_spec("hf:")


def test_without_a_download_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, bool]] = []

    def load_dataset(name: str, config: str | None) -> Any:
        asked.append((name, config, datasets.config.HF_HUB_OFFLINE))
        return datasets.DatasetDict(test=rows([10, 20], [0, 1]))

    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(
        UnavailableError, match=r"hf:nobody/nothing: expected it in datasets' cache.*pass download=True"
    ):
        load_data("hf:nobody/nothing")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("hf:owner/set#config=small")[0].classes == tuple(NAMES)
    load("hf:owner/set", download=True)
    assert asked == [("owner/set", "small", True), ("owner/set", None, before)]
    assert before is datasets.config.HF_HUB_OFFLINE


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnavailableError, match=r"datasets.* in a clone of ccf_plugin: pip install '\.\[hf\]'"):
        load_data("hf:owner/set")


def test_a_run_trains_on_it_and_is_probed(ccf: Ccf, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 24).tolist()
    spec = saved(tmp_path / "set", train=rows(values, [0, 1, 2] * 8), validation=rows(values[:6], [2, 1, 0] * 2))
    settings = [*NETWORK, f"data.name={spec}", "optim.epochs=1", "attack.steps=1", "evaluate.steps=1"]
    settings += ["data.augmentation=none", "optim.batch_size=8", "probe.pictures=false"]
    code, _, err = ccf("train", "digits", *sets(settings), "--out", "run")
    assert (code, err) == (0, f"ccf: note: {spec}: no test split: validation is taken for it\n")
    code, out, err = ccf("probe", "run", "--clean", "--json")
    assert code == 0, err
    assert '"ship"' in out
