from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.zoo.class_lists import CIFAR10_CLASSES
from ccf_plugin.zoo.datasets import ImageData, Split, load_data

CPU = torch.device("cpu")


def make_folder(root: Path, splits: dict[str, dict[str, int]], *, mode: str = "RGB", size: int = 8) -> Path:
    """Image folders; the n-th image of class number c is filled with 10 c + n."""
    for split, classes in splits.items():
        for c, (name, count) in enumerate(sorted(classes.items())):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                Image.new(mode, (size, size), (10 * c + n,) * len(mode)).save(folder / f"{n:04d}.png")
    return root


def fills(split: Split | None) -> list[int]:
    assert split is not None
    return [int(image.flatten()[0]) for image in split.images]


def test_digits_are_the_same_everywhere() -> None:
    data = load_data("digits")
    assert data.train is not None
    assert data.test is not None
    assert (data.train.images.shape, data.test.images.shape) == ((1347, 1, 8, 8), (450, 1, 8, 8))
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.uint8, torch.int64)
    assert data.test.labels.bincount().tolist() == [45] * 10
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 255)
    assert data.classes == tuple("0123456789")
    weights = torch.arange(450 * 64, dtype=torch.int64).view(450, 1, 8, 8) % 1009
    assert int((data.test.images.long() * weights).sum()) == 1_124_019_401
    again = load_data("digits", splits=["test"])
    assert again.train is None
    assert again.test is not None
    assert torch.equal(again.test.images, data.test.images)


def test_batches_are_exactly_the_pixels_over_255() -> None:
    split = Split(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), torch.arange(4))
    batches = list(split.batches(3, CPU))
    assert [len(labels) for _, labels in batches] == [3, 1]
    images = torch.cat([images for images, _ in batches])
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert images.dtype == torch.float32
    assert np.array_equal(images.flatten().numpy(), expected)
    with pytest.raises(InputError, match="batch size"):
        next(split.batches(0, CPU))


def test_folders_and_limits(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": {"b": 3, "a": 2}, "test": {"a": 4, "b": 4}})
    (tmp_path / "test" / "a" / ".hidden").write_text("no image")
    spec = f"folder:{tmp_path}"
    data = load_data(spec)
    assert (data.name, data.classes) == (spec, ("a", "b"))
    assert fills(data.train) == [0, 1, 10, 11, 12]
    assert data.train is not None
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.train.images.shape == (5, 3, 8, 8)
    assert fills(load_data(spec, train_per_class=2).train) == [0, 1, 10, 11]
    assert fills(load_data(spec, test_limit=3).test) == [0, 1, 10], "the remainder goes to the first classes"
    assert fills(load_data(spec, test_limit=100).test) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert load_data(spec, splits=["test"]).train is None


def test_only_kept_images_are_decoded(tmp_path: Path) -> None:
    make_folder(tmp_path, {"test": {"a": 2, "b": 2}})
    (tmp_path / "test" / "b" / "0001.png").write_bytes(b"damaged")
    assert fills(load_data(f"folder:{tmp_path}", test_limit=2).test) == [0, 10]
    with pytest.raises(InputError, match=r"b/0001\.png: expected an image"):
        load_data(f"folder:{tmp_path}")


def test_grey_folders_have_one_channel_unless_one_image_is_coloured(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": {"a": 2}, "test": {"a": 1}}, mode="L")
    data = load_data(f"folder:{tmp_path}")
    assert data.train is not None
    assert data.train.images.shape == (2, 1, 8, 8)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "test" / "a" / "0000.png")
    data = load_data(f"folder:{tmp_path}")
    assert data.train is not None
    assert data.test is not None
    assert data.train.images.shape == (2, 3, 8, 8)
    assert data.train.images[1].unique().tolist() == [1]
    assert data.test.images[0, :, 0, 0].tolist() == [1, 2, 3]


def test_preprocessing_resizes(tmp_path: Path) -> None:
    make_folder(tmp_path / "folder", {"test": {"a": 1}}, size=8)
    Image.new("RGB", (5, 9)).save(tmp_path / "folder" / "test" / "a" / "other.png")
    folder = load_data(f"folder:{tmp_path / 'folder'}", preprocess=lambda image: image.resize((4, 6)))
    digits = load_data("digits", splits=["test"], test_limit=10, preprocess=lambda image: image.resize((16, 16)))
    assert folder.test is not None
    assert digits.test is not None
    assert folder.test.images.shape == (2, 3, 6, 4)
    assert digits.test.images.shape == (10, 1, 16, 16)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_downscaling_takes_the_means_of_squares_whatever_holds_the_images(factor: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
    (tmp_path / "test" / "a").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "test" / "a" / f"{number}.png")
    blocks = pixels.astype(np.float64).reshape(4, 16 // factor, factor, 24 // factor, factor, 3)
    expected = np.floor(blocks.mean((2, 4)) + 0.5).transpose(0, 3, 1, 2)
    for spec in (f"folder:{tmp_path}", save_npz(tmp_path, x=pixels, y=np.zeros(4, dtype=np.int64))):
        small = load_data(spec, downscale=factor).test
        assert small is not None
        assert isinstance(small.images, torch.Tensor)
        assert np.array_equal(small.images.numpy(), expected)
        cropped = load_data(spec, downscale=factor, preprocess=lambda image: image.crop((1, 0, 3, 2))).test
        assert cropped is not None
        assert torch.equal(cropped.images[:, :, :2], small.images[:, :, :2, 1:3])


def test_a_split_that_is_absent_is_none(tmp_path: Path) -> None:
    make_folder(tmp_path, {"test": {"a": 1}})
    assert load_data(f"folder:{tmp_path}").train is None


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "expected .*train/<class> or .*test/<class>, found nothing"),
        ({"holdout": {"a": 1}}, "found holdout"),
        ({"train": {"a": 1, "b": 1}, "test": {"a": 1, "c": 1}}, "the same classes in train and test, differ: b, c"),
        ({"test": {"a": 1, "b": 0}}, "test/b: expected images of this class, found none"),
        ({"test": {}}, "one folder per class, found none"),
    ],
)
def test_folders_that_are_not_as_described(splits: dict[str, dict[str, int]], message: str, tmp_path: Path) -> None:
    make_folder(tmp_path, splits)
    for split in splits:
        (tmp_path / split).mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message) as caught:
        load_data(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_mixed_sizes_and_wide_images_are_named(tmp_path: Path) -> None:
    make_folder(tmp_path, {"test": {"a": 1}})
    Image.new("RGB", (9, 8)).save(tmp_path / "test" / "a" / "wide.png")
    with pytest.raises(InputError, match=r"0000\.png of 8×8 and .*wide\.png of 9×8"):
        load_data(f"folder:{tmp_path}")
    Image.new("I;16", (8, 8)).save(tmp_path / "test" / "a" / "wide.png")
    with pytest.raises(InputError, match=r"wide\.png: expected an image of 8 bits"):
        load_data(f"folder:{tmp_path}")


def save_npz(path: Path, **arrays: Any) -> str:
    np.savez(path / "data.npz", **arrays)
    return f"npz:{path / 'data.npz'}"


def test_npz(tmp_path: Path) -> None:
    x = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    y = np.array([1, 0, 2, 1])
    data = load_data(save_npz(tmp_path, x=x, y=y))
    assert data.train is None
    assert data.test is not None
    assert data.classes == ("0", "1", "2")
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), x)
    assert data.test.labels.tolist() == [1, 0, 2, 1]
    limited = load_data(data.name, test_limit=3).test
    assert limited is not None
    assert limited.labels.tolist() == [1, 0, 2]
    grey = load_data(save_npz(tmp_path, x=x[..., 0], y=y.astype(np.uint8), classes=["a", "b", "c", "d"]))
    assert grey.test is not None
    assert (grey.test.images.shape, grey.classes) == ((4, 1, 2, 3), ("a", "b", "c", "d"))
    both = load_data(save_npz(tmp_path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2]))
    assert both.train is not None
    assert both.test is not None
    assert (len(both.train), len(both.test), len(both.classes)) == (4, 2, 3)
    assert load_data(both.name, splits=["test"]).classes == both.classes


X = np.zeros((3, 4, 4, 3), dtype=np.uint8)
Y = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X / 255, "y": Y}, "expected x of uint8 in 0..255, found float64"),
        (
            {"x": X.transpose(0, 3, 1, 2), "y": Y},
            r"found \(3, 3, 4, 4\); move the channels: x\.transpose\(0, 2, 3, 1\)",
        ),
        ({"x": X[0, 0], "y": Y}, "of shape"),
        ({"x": X, "y": Y[:2]}, r"expected y of 3 integers, one per image of x, found int64 of shape \(2,\)"),
        ({"x": X, "y": Y / 2}, "found float64"),
        ({"x": X}, "found x"),
        ({"x": X, "y": Y - 1}, "labels of 0 and above in y, found -1"),
        ({"x": X, "y": Y, "classes": ["a", "b"]}, r"labels 0 to 1 \(see classes\), found 2"),
        ({"pixels": X, "kinds": Y}, "x_train/y_train or x/y, found kinds, pixels"),
        ({"x": X, "y": np.array([0, "a", None], dtype=object)}, "damaged or pickled"),
    ],
)
def test_npz_that_is_not_as_described(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(save_npz(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04 cut short", pickle.dumps([1])])
def test_files_that_are_no_npz(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"data\.npz: expected"):
        load_data(f"npz:{path}")


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("cifar1", {}, "expected digits, cifar10, .*did you mean 'cifar10'"),
        ("folder:", {}, "unknown"),
        ("imagnet", {}, "did you mean 'imagenet'"),
        ("digits", {"splits": ["tst"]}, "did you mean 'test'"),
        ("digits", {"test_limit": 0}, "test_limit: expected at least 1"),
        ("digits", {"train_per_class": -1}, "train_per_class: expected at least 1"),
        ("digits", {"downscale": 0}, "downscale: expected at least 1"),
        ("digits", {"downscale": 3}, "downscale: expected a divisor of the images' 8×8 pixels, found 3"),
    ],
)
def test_unknown_specs(spec: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(spec, **arguments)


def test_real_cifar_images(outside_data: Path, tmp_path: Path) -> None:
    with tarfile.open(outside_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(("0000.jpg", "0001.jpg")):
                archive.extract(member, tmp_path, filter="data")
    data = load_data(f"folder:{tmp_path}", test_limit=13)
    assert data.train is not None
    assert data.test is not None
    assert data.classes == CIFAR10_CLASSES
    assert data.train.images.shape == (20, 3, 32, 32)
    assert data.test.labels.bincount().tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    lossless = load_data(f"npz:{outside_data / 'cifar10_test1000.npz'}").test
    assert lossless is not None
    # The test images of a class are in their official order, so the first of each is among the lossless ones.
    first = lossless.images[lossless.labels == 0][0].float()
    assert (data.test.images[0].float() - first).abs().mean() < 10


def test_missing_cifar_says_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"data/cifar-10-batches-py, found nothing; pass download=True"):
        load_data("cifar10", root=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_failed_cifar_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(url: str, download_root: str, filename: str, **_: Any) -> None:
        Path(download_root).mkdir(parents=True)
        Path(download_root, filename).write_bytes(b"half of it")
        raise OSError("connection reset\nby peer")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", half)
    with pytest.raises(UnavailableError, match=r"could not download cifar100 .*connection reset by peer") as caught:
        load_data("cifar100", root=tmp_path / "new" / "data", download=True)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_cifar_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny CIFAR-10 in torchvision's format, with the checks of its checksums off."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for i, (name, _) in enumerate([*CIFAR10.train_list, *CIFAR10.test_list]):
        rows = np.full((2, 3072), i, dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [i, i + 1]}))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data: ImageData = load_data("cifar10", root=tmp_path)
    assert data.train is not None
    assert data.test is not None
    assert (data.train.images.shape, data.test.images.shape) == ((10, 3, 32, 32), (2, 3, 32, 32))
    assert data.train.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert data.classes == tuple("abcdefghij")
