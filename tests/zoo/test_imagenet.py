"""ImageNet and Tiny-ImageNet, made small at the places where the real ones lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.zoo.datasets import ImageData, Split, load_data
from ccf_plugin.zoo.readers.imagenet import readable_names, rearrange_validation

WNIDS = ("n01443537", "n01629819", "n04465501")
NAMES = ("goldfish", "European fire salamander", "tractor")
VAL = (1, 0, 2, 2, 1, 0)  # the class of val_0, val_1, …; their order is not the classes'


def save(path: Path, value: int, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(path, quality=95)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The data root with tiny-imagenet-200 as its archive unpacks; train/n01629819 has a grey image."""
    folder = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for n in range(2):
            mode = "L" if (label, n) == (1, 0) else "RGB"
            save(folder / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", 40 * label + 10 * n, mode)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for n in range(len(VAL)):
        save(folder / "val" / "images" / f"val_{n}.JPEG", 150 + 10 * n)
    lines = [f"val_{n}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n" for n, label in enumerate(VAL)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    save(folder / "test" / "images" / "test_0.JPEG", 7)
    return tmp_path


def fills(split: Split | None) -> list[int]:
    assert split is not None
    return [int(image.flatten()[0]) for image in split.images]


def labels(split: Split | None) -> list[int]:
    assert split is not None
    return split.labels.tolist()


def same(first: ImageData, second: ImageData) -> bool:
    return first.classes == second.classes and all(
        a is not None and b is not None and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in ((first.train, second.train), (first.test, second.test))
    )


def test_the_official_folders_are_read_as_they_are(tiny: Path) -> None:
    data = load_data("tinyimagenet", root=tiny)
    assert (data.name, data.classes) == ("tinyimagenet", NAMES)
    assert (fills(data.train), labels(data.train)) == ([0, 10, 40, 50, 80, 90], [0, 0, 1, 1, 2, 2])
    assert (fills(data.test), labels(data.test)) == ([160, 200, 150, 190, 170, 180], [0, 0, 1, 1, 2, 2])
    assert data.train is not None
    assert data.train.images.shape == (6, 3, 64, 64)
    assert data.train.images[2].unique().tolist() == [40], "the grey image has its value in all three channels"
    assert fills(load_data("tinyimagenet", root=tiny, test_limit=4).test) == [160, 200, 150, 170]
    assert load_data("tinyimagenet", root=tiny, splits=["test"]).train is None


def test_three_channels_where_every_image_that_is_read_is_grey(tiny: Path) -> None:
    for n in range(len(VAL)):
        save(tiny / "tiny-imagenet-200" / "val" / "images" / f"val_{n}.JPEG", n, "L")
    test = load_data("tinyimagenet", root=tiny, splits=["test"]).test
    assert test is not None
    assert test.images.shape == (6, 3, 64, 64)


def test_the_fixer_makes_class_folders_and_changes_no_data(tiny: Path) -> None:
    before = load_data("tinyimagenet", root=tiny)
    assert rearrange_validation(tiny) == 6
    val = tiny / "tiny-imagenet-200" / "val"
    assert sorted(path.relative_to(val).as_posix() for path in val.rglob("*.JPEG")) == [
        *("n01443537/images/val_1.JPEG", "n01443537/images/val_5.JPEG", "n01629819/images/val_0.JPEG"),
        *("n01629819/images/val_4.JPEG", "n04465501/images/val_2.JPEG", "n04465501/images/val_3.JPEG"),
    ]
    assert [label for _, label in ImageFolder(str(val)).samples] == [0, 0, 1, 1, 2, 2]
    assert same(load_data("tinyimagenet", root=tiny), before)
    assert rearrange_validation(tiny) == 0, "a second time there is nothing to do"
    (val / "val_annotations.txt").unlink()  # other programs' rearrangers remove it
    assert rearrange_validation(tiny) == 0
    assert same(load_data("tinyimagenet", root=tiny), before)


def test_an_interrupted_fixer_loses_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_data("tinyimagenet", root=tiny)
    moved: list[Path] = []
    replace = Path.replace

    def until_killed(self: Path, target: Path) -> Path:
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(self)
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", until_killed)
        rearrange_validation(tiny)
    assert same(load_data("tinyimagenet", root=tiny), before)
    assert rearrange_validation(tiny) == 3
    assert same(load_data("tinyimagenet", root=tiny), before)
    assert not (tiny / "tiny-imagenet-200" / "val" / "images").exists()


def test_folders_that_other_programs_have_rearranged(tiny: Path) -> None:
    before = load_data("tinyimagenet", root=tiny)
    rearrange_validation(tiny)
    folder = tiny / "tiny-imagenet-200"
    for part in ("train", "val"):
        for wnid in WNIDS:
            for image in list((folder / part / wnid / "images").iterdir()):
                image.rename(image.parents[1] / image.name)
            (folder / part / wnid / "images").rmdir()
            (folder / part / wnid / f"{wnid}_boxes.txt").unlink(missing_ok=True)
    assert same(load_data("tinyimagenet", root=tiny), before)
    (folder / "val" / "val_annotations.txt").unlink()
    assert same(load_data("tinyimagenet", root=tiny), before)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (
            "".join(f"val_{9 + place}.JPEG\t{wnid}\t0\t0\n" for place, wnid in enumerate(WNIDS)),
            "expected val_9.JPEG, which val_annotations.txt names",
        ),
        ("val_0.JPEG\tn01443537\nval_0.JPEG\tn01629819\n", "expected each image once, found 'val_0.JPEG' twice"),
        ("", "expected a line for each image, found none"),
        ("val_0.JPEG n01443537\n", "expected lines of file, tab, wnid"),
        ("../../secret\tn01443537\n", "expected lines of file, tab, wnid"),
        ("val_0.JPEG\t..\n", "expected lines of file, tab, wnid"),
        ("val_0.JPEG\tn01443537\nval_1.JPEG\tn01443538\n", "expected the same classes in train and test"),
        ("é", "expected text"),
    ],
)
def test_damaged_annotations_are_refused(tiny: Path, annotations: str, message: str) -> None:
    (tiny / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_bytes(annotations.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        load_data("tinyimagenet", root=tiny)
    assert "\n" not in str(caught.value)


def test_the_fixer_moves_nothing_where_an_image_is_missing(tiny: Path) -> None:
    images = tiny / "tiny-imagenet-200" / "val" / "images"
    (images / "val_3.JPEG").unlink()
    with pytest.raises(InputError, match=r"expected val_3\.JPEG"):
        rearrange_validation(tiny)
    assert len(list(images.iterdir())) == 5
    with pytest.raises(UnavailableError, match=r"unpack http.*tiny-imagenet-200\.zip"):
        rearrange_validation(tiny / "elsewhere")


def test_imagenet_with_a_models_own_resizing(tmp_path: Path) -> None:
    for label, wnid in enumerate(WNIDS):
        save(tmp_path / "imagenet" / "val" / wnid / f"ILSVRC2012_val_{label}.JPEG", 50 * label, size=(30 + label, 40))
    data = load_data(
        "imagenet", root=tmp_path, splits=["test"], preprocess=lambda image: image.resize((16, 16)), test_limit=2
    )
    assert (data.classes, data.train) == (NAMES, None)
    assert (fills(data.test), labels(data.test)) == ([0, 50], [0, 1])
    with pytest.raises(InputError, match="expected images of one size"):
        load_data("imagenet", root=tmp_path, splits=["test"])


@pytest.mark.parametrize(
    ("name", "place", "remedy"),
    [
        ("tinyimagenet", "tiny-imagenet-200", r"unpack http://cs231n\.stanford\.edu/tiny-imagenet-200\.zip in "),
        ("imagenet", "imagenet", r"https://image-net\.org/download"),
    ],
)
def test_what_is_missing_is_said_with_where_to_get_it(tmp_path: Path, name: str, place: str, remedy: str) -> None:
    with pytest.raises(UnavailableError, match=f"expected .*{place}/train or .*{place}/val, found nothing; .*{remedy}"):
        load_data(name, root=tmp_path)
    (tmp_path / place / "train").mkdir(parents=True)
    with pytest.raises(UnavailableError, match=f"expected .*{place}/val, found .*{place} without it"):
        load_data(name, root=tmp_path, splits=["test"])
    with pytest.raises(InputError, match="expected one folder per class, found none"):
        load_data(name, root=tmp_path, splits=["train"])
    shutil.rmtree(tmp_path / place)


def test_class_names() -> None:
    assert readable_names(WNIDS) == NAMES
    assert readable_names(["n02012849", "n03126707", "n00000000"]) == (
        *("crane (n02012849)", "crane (n03126707)"),
        "n00000000",
    )
