"""Which label a class gets: by its folder's number or text, or by a file of names; and what is said of a doubt."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.provenance import images_fingerprint
from ccf_plugin.zoo.class_lists import CIFAR10_CLASSES, CIFAR100_CLASSES
from ccf_plugin.zoo.classes import in_order, order_in_doubt, order_of_known_list, read_class_names
from ccf_plugin.zoo.datasets import ImageData, load_data


def folders(root: Path, names: Sequence[str | bytes]) -> str:
    """One test image for each class, whose red and green are its place in ``names``; made in another order."""
    for place in random.Random(0).sample(range(len(names)), len(names)):
        folder = root / "test" / os.fsdecode(names[place])
        folder.mkdir(parents=True)
        Image.new("RGB", (2, 2), (*divmod(place, 256), 0)).save(folder / "a.png")
    return f"folder:{root}"


def load(spec: str, classes: Path | Sequence[str] | None = None) -> tuple[ImageData, list[int], list[str]]:
    """The data, the place that the image of each label shows, and the notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_data(spec, splits=["test"], classes=classes)
    assert data.test is not None
    shown = [256 * red + green for red, green, *_ in data.test.images[:, :, 0, 0].tolist()]
    by_label = sorted(zip(data.test.labels.tolist(), shown, strict=True))
    assert [label for label, _ in by_label] == list(range(len(data.classes)))
    notes = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return data, [place for _, place in by_label], notes


IMAGENET_V2 = [str(number) for number in range(1000)]

# Names in the order that is right, and what the note says of a doubt (None: no note).
ORDERS: dict[str, tuple[list[str], str | None]] = {
    "0 to 11": ([str(number) for number in range(12)], None),
    "0 to 999, as ImageNetV2's": (IMAGENET_V2, None),
    "padded alike": ([f"{number:03}" for number in range(12)], None),
    "padded to two digits": ([f"{number:02}" for number in range(101)], None),
    "words": (["Zebra", "ant", "bee"], None),
    "CIFAR-10's names": (list(CIFAR10_CLASSES), None),
    "wnids": (["n01440764", "n01443537", "n02012849"], None),
    "numbers from 1": ([str(number) for number in range(1, 13)], "not 0, 1, 2, … without a gap"),
    "numbers with a gap": (["0", "1", "2", "10", "11"], "not 0, 1, 2, … without a gap"),
    "padded beside not": (["0", "01", "2", "10"], "some numbers are padded with zeros and some are not"),
    "one number in two spellings": (["0", "01", "1", "2"], "some numbers are padded"),
    "numbers and words": (["2", "10", "other"], "whole numbers, which come first, stand beside other names"),
    "names of two cases": (["Cat", "cat", "dog"], "differ by case alone (Cat, cat)"),
    "numbers inside names": (["c0", "c1", "c10", "c2"], "numbers inside names count as text"),
    "Unicode's digits are words": (["٢", "²"], None),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_folders_have_labels_in_the_order_that_their_names_mean(kind: str, tmp_path: Path) -> None:
    names, doubt = ORDERS[kind]
    names = sorted(names) if kind == "Unicode's digits are words" else names
    data, places, notes = load(folders(tmp_path, names))
    assert data.classes == tuple(names)
    assert places == list(range(len(names)))
    assert len(notes) == (doubt is not None)
    assert (doubt or "") in "".join(notes)
    assert all(f"taken: {', '.join(names[:4])}" in note and "\n" not in note for note in notes)


def test_several_doubts_are_one_note() -> None:
    doubt = order_in_doubt(in_order(["1", "02", "B10", "b10", "b9"]))
    assert doubt is not None
    assert doubt.count("; ") == 3


def test_the_order_of_folders_does_not_depend_on_the_file_system() -> None:
    names = [*map(str, range(30)), "a", "B", "007", "x10"]
    for seed in range(20):
        assert in_order(random.Random(seed).sample(names, len(names))) == in_order(names)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"b\na\nc\n", ["b", "a", "c"]),
        (b"b\na\nc", ["b", "a", "c"]),
        (b"b\r\na\r\nc\r\n\r\n", ["b", "a", "c"]),
        (b"\xef\xbb\xbfb\na\nc\n\n\n", ["b", "a", "c"]),
        ("猫\n a b \nc\n".encode(), ["猫", "a b", "c"]),
    ],
)
def test_a_file_of_names(content: bytes, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    assert read_class_names(tmp_path / "names.txt") == expected


# The data's own names, the file's, and from them the names of the labels and which class each is.
GIVEN: dict[str, tuple[list[str], list[str], list[str], list[int]]] = {
    "another order": (["a", "b", "c"], ["c", "a", "b"], ["c", "a", "b"], [2, 0, 1]),
    "the same order": (["a", "b"], ["a", "b"], ["a", "b"], [0, 1]),
    "names for numbers": ([*map(str, range(11))], [*"abcdefghijk"], [*"abcdefghijk"], [*range(11)]),
    "numbers in another order": (["0", "1", "2", "10"], ["10", "2", "1", "0"], ["10", "2", "1", "0"], [3, 2, 1, 0]),
    "two classes of one name": (
        ["0", "1", "2"],
        ["crane", "gull", "crane"],
        ["crane (0)", "gull", "crane (2)"],
        [0, 1, 2],
    ),
    "names of two cases": (["Cat", "cat"], ["cat", "Cat"], ["cat", "Cat"], [1, 0]),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("form", ["folder", "npz"])
def test_a_file_gives_order_and_names(kind: str, form: str, tmp_path: Path) -> None:
    own, given, expected, places = GIVEN[kind]
    (tmp_path / "names.txt").write_text("\n".join(given) + "\n", encoding="utf-8")
    if form == "folder":
        spec = folders(tmp_path / "data", own)
    else:
        images = np.zeros((len(own), 2, 2, 3), np.uint8)
        images[:, :, :, 1] = np.arange(len(own))[:, None, None]
        np.savez(tmp_path / "data.npz", x=images, y=np.arange(len(own)), classes=own)
        spec = f"npz:{tmp_path / 'data.npz'}"
    for classes in (tmp_path / "names.txt", given):
        data, found, notes = load(spec, classes)
        assert (data.classes, found, notes) == (tuple(expected), places, [])


def test_labels_without_names_get_those_of_the_file(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "data.npz", x=np.arange(3, dtype=np.uint8)[:, None, None] + np.zeros((2, 2), np.uint8), y=[2, 1, 0]
    )
    data = load_data(f"npz:{tmp_path / 'data.npz'}", classes=["a", "b", "c", "d"])
    assert data.classes == ("a", "b", "c", "d")
    assert data.test is not None
    assert data.test.labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["a", "b"], r"the 3 classes of folder:.* in their order \(a, b, c\), found 2 names \(missing: c\)"),
        (["a", "b", "d"], r"found 3 names \(not theirs: d; missing: c\)"),
        (["a", "b", "c", "c"], r"found 4 names \(twice: c\)"),
    ],
)
def test_other_names_than_the_folders_are_refused(given: list[str], says: str, tmp_path: Path) -> None:
    spec = folders(tmp_path, ["a", "b", "c"])
    with pytest.raises(InputError, match=says) as caught:
        load_data(spec, classes=given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("own", "given"), [(["0", "1"], ["1", "2"]), (["0", "1"], ["a", "b", "c"]), (["0", "x"], ["a", "b"])]
)
def test_names_that_do_not_fit_the_numbers_are_refused(own: list[str], given: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="correct the names"):
        load_data(folders(tmp_path, own), classes=given)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "found no such file"),
        (b"", "found nothing"),
        (b"\n \n", "found nothing"),
        (b"a\n\nb\n", "found none in line 2"),
        (b"caf\xe9\nb\n", "expected text in UTF-8"),
        (b"a\0\nb\n", "bytes that are no text"),
        (b"a" * 10_000_001, "10,000,001 bytes"),
    ],
)
def test_files_that_hold_no_names(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        load_data("digits", classes=path)
    assert "\n" not in str(caught.value)


def test_a_known_list_in_another_order_is_said(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo

    table = ImageNetInfo()
    wnids = table.label_names()
    words = [table.label_name_to_description(wnid).split(",")[0] for wnid in wnids]
    assert order_of_known_list(CIFAR10_CLASSES) is None
    assert order_of_known_list(CIFAR10_CLASSES[::-1]) == "CIFAR-10"
    assert order_of_known_list(["airplane", "automobile"]) is None
    assert [order_of_known_list(names) for names in (wnids, words, IMAGENET_V2)] == [None, None, None]
    assert order_of_known_list(wnids[::-1]) == "ImageNet"
    assert order_of_known_list(sorted(word.replace(" ", "_") for word in words)) == "ImageNet"
    assert len(set(CIFAR100_CLASSES)) == 100
    assert order_of_known_list([name.replace("_", " ").title() for name in CIFAR100_CLASSES]) is None
    assert order_of_known_list(CIFAR100_CLASSES[::-1]) == "CIFAR-100"
    tutorial = ["plane", "car", *CIFAR10_CLASSES[2:]]
    assert [order_of_known_list(names) for names in (tutorial, sorted(tutorial))] == [None, "CIFAR-10"]
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert [order_of_known_list(names) for names in (digits, sorted(digits))] == [None, "MNIST"]
    fashion = ["T-shirt_top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle_boot"]
    assert [order_of_known_list(names) for names in (fashion, sorted(fashion))] == [None, "Fashion-MNIST"]
    names = [*CIFAR10_CLASSES[1:], CIFAR10_CLASSES[0]]
    np.savez(tmp_path / "data.npz", x=np.zeros((10, 2, 2, 3), np.uint8), y=np.arange(10), classes=names)
    with pytest.warns(UserWarning, match="doubtful order") as caught:
        load_data(f"npz:{tmp_path / 'data.npz'}")
    note = str(caught[0].message)
    assert "they are CIFAR-10's in another order than its own" in note
    assert "taken: automobile, bird" in note


def test_names_of_folders_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    names = [b"caf\xe9", b"caf\xc3\xa9", b"\xff\xfe", b"tea"]
    data, places, notes = load(folders(tmp_path, names))
    assert [data.classes[places.index(place)] for place in range(4)] == [r"caf\xe9", "café", r"\xff\xfe", "tea"]
    (note,) = notes
    assert "not UTF-8" in note
    assert note.isprintable()
    assert all(name.encode("utf-8") for name in data.classes)


def test_images_on_disk_have_a_fingerprint_whatever_their_folders_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccf_plugin.zoo.streaming.host_bytes", lambda: 1.0)
    prints = []
    for name in (b"caf\xe9", b"caf\xe8"):
        data = load_data(folders(tmp_path / str(len(prints)), [name, b"tea"]))
        assert data.test is not None
        assert not isinstance(data.test.images, torch.Tensor)
        prints.append(images_fingerprint(data.test))
    assert len(set(prints)) == 2


def test_a_path_that_is_not_utf8_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="expected a name in UTF-8"):
        load_data("folder:caf\udce9")
