"""Folders and arrays as they come out of archives: other files among the images, other names, other forms of labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.datasets import ImageData, load_data


def load(spec: str, **options: Any) -> tuple[ImageData, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_data(spec, **options)
    notes = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert not any("\n" in note for note in notes)
    return data, notes


def image(path: Path, value: int = 7, suffix_of: str = "png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2), value).save(path, format=suffix_of)


def text(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no image")


# A file that lies about, and what the note calls it; None: there is no note.
LITTER: dict[str, tuple[str, str | None]] = {
    "Windows' thumbnails": ("test/a/Thumbs.db", None),
    "Windows' settings": ("test/a/desktop.ini", None),
    "Windows' settings in capitals": ("test/a/Desktop.ini", None),
    "macOS's": ("test/a/.DS_Store", None),
    "macOS's forks": ("test/a/._0.png", None),
    "an archiver's, in a class": ("test/a/__MACOSX/0.png", None),
    "an archiver's, beside the classes": ("test/__MACOSX/a/0.png", None),
    "an archiver's, beside the splits": ("__MACOSX/test/a/0.png", None),
    "Windows', beside the classes": ("test/Thumbs.db", None),
    "a checkpoint folder of Jupyter": ("test/.ipynb_checkpoints/0.png", None),
    "a table": ("test/a/labels.csv", "a file that is no image left out: labels.csv"),
    "a text": ("test/b/deep/readme.txt", "a file that is no image left out: readme.txt"),
    "a text without a suffix": ("test/a/LICENSE", "a file that is no image left out: LICENSE"),
    "annotations": ("test/a/0.xml", "a file that is no image left out: 0.xml"),
    "a table beside the classes": ("test/labels.csv", "files beside the class folders are left out: test/labels.csv"),
    "a text beside the splits": ("readme.txt", None),
}


@pytest.mark.parametrize("kind", LITTER)
def test_what_is_no_image_is_left_out_and_said_once(kind: str, tmp_path: Path) -> None:
    path, says = LITTER[kind]
    for name, value in (("a/0.png", 1), ("b/0.png", 2), ("b/deep/0.png", 3)):
        image(tmp_path / "test" / name, value)
    text(tmp_path / path)
    data, notes = load(f"folder:{tmp_path}")
    assert data.classes == ("a", "b")
    assert data.test is not None
    assert data.test.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert notes == ([] if says is None else [f"folder:{tmp_path}: {says}"])


def test_many_files_that_are_no_images_are_one_note(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "abc":
            image(tmp_path / split / name / "0.png")
            text(tmp_path / split / name / f"{name}.csv")
    _, (note,) = load(f"folder:{tmp_path}")
    assert note.endswith("6 files that are no image left out: a.csv, b.csv, c.csv, a.csv, b.csv, c.csv")


def test_images_are_known_by_their_content_where_their_names_do_not_say_so(tmp_path: Path) -> None:
    for name in ("0", "1.dat", "2.JPG_original", "3.PNG"):
        image(tmp_path / "test" / "a" / name)
    data, notes = load(f"folder:{tmp_path}")
    assert data.test is not None
    assert (len(data.test), notes) == (4, [])


# The folders that hold a class folder, what is taken as the test split, and the note.
SPLITS: dict[str, tuple[list[str], str | None, str | None]] = {
    "test": (["train", "test"], "test", None),
    "test before validation": (["train", "val", "test"], "test", None),
    "val": (["train", "val"], "val", "no test split: val is taken for it"),
    "validation": (["train", "validation"], "validation", "no test split: validation is taken for it"),
    "valid": (["train", "valid"], "valid", "no test split: valid is taken for it"),
    "validation before val": (["val", "validation"], "validation", "no test split: validation is taken for it"),
    "val alone": (["val"], "val", "no test split: val is taken for it"),
    "capitals": (["Train", "Test"], "Test", None),
    "training and testing": (["Training", "Testing"], "Testing", None),
    "train alone": (["train"], None, None),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_folders_of_splits(kind: str, tmp_path: Path) -> None:
    names, test, says = SPLITS[kind]
    for value, name in enumerate(names):
        image(tmp_path / name / "a" / "0.png", value)
    data, notes = load(f"folder:{tmp_path}")
    shown = {split: int(part.images.max()) for split, part in (("train", data.train), ("test", data.test)) if part}
    train = {"train": 0} if names[0].lower().startswith("train") else {}
    assert shown == train | ({} if test is None else {"test": names.index(test)})
    assert notes == ([] if says is None else [f"folder:{tmp_path}: {says}"])
    assert load(f"folder:{tmp_path}", splits=list(shown)[:1])[1] == (notes if "train" not in shown else [])


def test_class_folders_without_splits_are_the_test_split(tmp_path: Path) -> None:
    for value, name in enumerate(map(str, range(11))):
        image(tmp_path / name / "0.png", value)
    text(tmp_path / "readme.txt")
    data, notes = load(f"folder:{tmp_path}")
    assert data.train is None
    assert data.test is not None
    assert data.test.images[:, 0, 0, 0].tolist() == data.test.labels.tolist() == list(range(11))
    spec = f"folder:{tmp_path}"
    assert notes == [
        f"{spec}: no train or test folder: all images are taken as the test split",
        f"{spec}: files beside the class folders are left out: readme.txt",
    ]
    with pytest.raises(InputError, match=r"expected .*train/<class>, found 0, 1, 10, .*; check the path"):
        load_data(spec, splits=["train"])


X = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2)
Y = np.array([2, 0, 1, 2])
_MEDMNIST = {f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels")}

# The names of the images and labels of train and of test in a file, and those that are there beside them.
KEYS: dict[str, tuple[tuple[str, str] | None, tuple[str, str] | None, set[str], str | None]] = {
    "x, y": (None, ("x", "y"), set(), None),
    "X, Y": (None, ("X", "Y"), set(), None),
    "X, y": (None, ("X", "y"), set(), None),
    "images, labels": (None, ("images", "labels"), set(), None),
    "image, label": (None, ("image", "label"), set(), None),
    "data, targets": (None, ("data", "targets"), set(), None),
    "data, labels": (None, ("data", "labels"), set(), None),
    "numpy's own names": (None, ("arr_0", "arr_1"), set(), None),
    "x, y beside others": (None, ("x", "y"), {"images", "labels", "ids"}, None),
    "x_train, x_test": (("x_train", "y_train"), ("x_test", "y_test"), set(), None),
    "X_train, X_test": (("X_train", "y_train"), ("X_test", "y_test"), set(), None),
    "train_x, test_x": (("train_x", "train_y"), ("test_x", "test_y"), set(), None),
    "x_train, x": (("x_train", "y_train"), ("x", "y"), set(), None),
    "MedMNIST": (("train_images", "train_labels"), ("test_images", "test_labels"), _MEDMNIST, None),
    "train and val": (("train_images", "train_labels"), ("val_images", "val_labels"), set(), "no test split: val"),
    "validation alone": (None, ("x_validation", "y_validation"), set(), "no test split: validation"),
    "train alone": (("train_data", "train_targets"), None, set(), None),
}


@pytest.mark.parametrize("kind", KEYS)
def test_arrays_by_their_usual_names(kind: str, tmp_path: Path) -> None:
    train, test, beside, says = KEYS[kind]
    arrays = {name: np.full((1, 1, 1), 99) for name in beside}
    for pair, images in ((train, X), (test, X + 100)):
        arrays |= dict(zip(pair, (images, Y[:, None] if kind == "MedMNIST" else Y), strict=True)) if pair else {}
    arrays |= {name: Y for name in beside if name.startswith("val_labels")}
    np.savez(tmp_path / "data.npz", **arrays)
    data, notes = load(f"npz:{tmp_path / 'data.npz'}")
    for pair, part, images in ((train, data.train, X), (test, data.test, X + 100)):
        assert (part is None) == (pair is None)
        shown = np.empty((0, 2, 2)) if part is None else part.images[:, 0].numpy()
        assert np.array_equal(shown, np.empty((0, 2, 2)) if pair is None else images)
        assert pair is None or (part is not None and part.labels.tolist() == Y.tolist())
    assert [note.partition(": ")[2].startswith(says or "") for note in notes] == [True] * (says is not None)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["images", "img", "labels"], "expected one array of images, found images, img; leave the others out"),
        (["data", "labels", "target"], "expected one array of labels of data, found labels, target"),
        (["test_images"], "expected test_labels, an integer per image of test_images, found test_images"),
        (["X_test"], "expected y_test, an integer per image of X_test"),
        (["arr_0"], "expected arr_1, an integer per image of arr_0"),
        (["pixels", "kinds"], "expected arrays x_train/y_train or x/y, found kinds, pixels; rename them"),
        (["y"], "expected arrays x_train/y_train or x/y, found y; rename them"),
    ],
)
def test_arrays_whose_names_do_not_say_what_they_are(names: list[str], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **dict.fromkeys(names, X))
    with pytest.raises(InputError, match=says):
        load_data(f"npz:{tmp_path / 'data.npz'}")


ONE_HOT = np.eye(3)[Y]
LABELS: dict[str, tuple[Any, list[str]]] = {
    "a row": (Y, []),
    "a column": (Y[:, None], []),
    "a column of bytes": (Y[:, None].astype(np.uint8), []),
    "one-hot floats": (ONE_HOT, ["one-hot"]),
    "one-hot integers": (ONE_HOT.astype(int), ["one-hot"]),
    "one-hot truth values": (ONE_HOT == 1, ["one-hot"]),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("form", ["npz", "python", "tensor"])
def test_labels_in_other_forms(kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, says = LABELS[kind]
    np.savez(tmp_path / "data.npz", x=X, y=labels)
    given = torch.from_numpy(np.asarray(labels)) if form == "tensor" else labels
    returned: Callable[[str], Any] = lambda split: (X, given) if split == "test" else None  # noqa: E731
    monkeypatch.setattr("zoo.own_data.stripes", returned)
    spec = f"npz:{tmp_path / 'data.npz'}" if form == "npz" else "python:zoo.own_data:stripes"
    data, notes = load(spec)
    assert data.test is not None
    assert (data.test.labels.tolist(), data.classes) == (Y.tolist(), ("0", "1", "2"))
    assert [what in note for note, what in zip(notes, says, strict=True)] == [True] * len(says)


@pytest.mark.parametrize(("first", "says"), [(0, []), (1, ["begin at 1, and classes count from 0"]), (2, [])])
def test_labels_that_count_from_one_are_noted(first: int, says: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=Y + first)
    _, notes = load(f"npz:{tmp_path / 'data.npz'}")
    assert [what in note for note, what in zip(notes, says, strict=True)] == [True] * len(says)


def test_one_hot_columns_without_an_image_are_classes_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=np.eye(5)[Y])
    data, (note,) = load(f"npz:{tmp_path / 'data.npz'}")
    assert data.classes == ("0", "1", "2", "3", "4")
    assert note.endswith("y of one-hot rows (4, 5) taken as class numbers")
    np.savez(tmp_path / "data.npz", x=X, y=np.eye(5)[Y], classes=["a", "b", "c"])
    with pytest.raises(InputError, match=r"expected labels 0 to 2 \(see classes\), found 4"):
        load_data(f"npz:{tmp_path / 'data.npz'}")


@pytest.mark.parametrize(
    "labels",
    [
        np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]),
        np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0]]),
        np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]),
        np.array([[0, 2, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]),
        np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, -1]]),
        np.array([[0.0, 1.0, np.nan], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        np.eye(3)[Y][:, :, None],
    ],
)
def test_rows_of_labels_that_are_not_one_hot_are_refused(labels: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=labels)
    with pytest.raises(InputError, match=r"expected y of 4 integers, one per image of x, found .* of shape \(4, 3"):
        load_data(f"npz:{tmp_path / 'data.npz'}")


@pytest.mark.parametrize(("highest", "is_noted"), [(1, True), (16, True), (63, True), (64, False), (255, False)])
def test_arrays_of_another_scale_are_noted(highest: int, is_noted: bool, tmp_path: Path) -> None:
    images = np.zeros((100, 2, 2), np.uint8)
    images[0, 0, 0] = highest
    names = [b"a", "é".encode(), b"c", b"d"]
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(100) % 4, classes=np.array(names))
    data, notes = load(f"npz:{tmp_path / 'a.npz'}")
    assert data.classes == ("a", "é", "c", "d")
    assert [f"images is {highest} at most, and white is 255" in note for note in notes] == [True] * is_noted
