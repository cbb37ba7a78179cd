"""Arrays and folders of images that cannot be what they are named as."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
from PIL import Image

from bad_inputs.cases import (
    FOLDER,
    HTML,
    NPZ,
    SET,
    Case,
    X,
    Y,
    bomb_npy,
    file,
    images,
    link,
    npz,
    npz_of,
    probe,
    zip_bomb,
)

ARRAYS = {
    "missing": Case(probe(NPZ), "expected an npz file, found nothing"),
    "a folder": Case(probe(NPZ), "found a folder", lambda folder: (folder / "data.npz").mkdir()),
    "a device": Case(probe(NPZ), "expected an npz file", lambda f: (f / "data.npz").symlink_to("/dev/zero")),
    "empty": Case(probe(NPZ), "damaged", file("data.npz", b"")),
    "a web page": Case(probe(NPZ), "damaged", file("data.npz", HTML)),
    "cut short": Case(
        probe(NPZ),
        "damaged",
        lambda f: (npz(x=X, y=Y)(f), (f / "data.npz").write_bytes((f / "data.npz").read_bytes()[:-99])),
    ),
    "one array": Case(probe(NPZ), "npz:data.npz: expected", lambda f: np.save((f / "data.npz").open("wb"), X)),
    "objects": Case(probe(NPZ), "pickled", npz(x=X, y=np.array([None] * 10, dtype=object))),
    "an array of an exabyte": Case(probe(NPZ), "npz:data.npz", npz_of({"x.npy": bomb_npy((1 << 60,)), "y.npy": b""})),
    "an array of 16 GB in 128 bytes": Case(
        probe(NPZ), "npz:data.npz", npz_of({"x.npy": bomb_npy((1 << 28, 8, 8)), "y.npy": b""})
    ),
    "a zip bomb's header": Case(probe(NPZ), "npz:data.npz", zip_bomb("data.npz", "x.npy", b"\0" * 999, 1 << 31)),
    "members that are no arrays": Case(probe(NPZ), "damaged", npz_of({"x": b"hello", "y": b"hello"})),
    "other names": Case(probe(NPZ), "found kinds, pixels", npz(pixels=X, kinds=Y)),
    "two arrays of images": Case(
        probe(NPZ), "expected one array of images, found images, img", npz(images=X, img=X, labels=Y)
    ),
    "images without their labels": Case(
        probe(NPZ), "expected test_labels, an integer per image of test_images", npz(test_images=X)
    ),
    "several labels an image": Case(probe(NPZ), "of shape (10, 3)", npz(x=X, y=np.ones((10, 3), int))),
    "floats": Case(probe(NPZ), "expected x of uint8", npz(x=X / 255, y=Y)),
    "channels first": Case(probe(NPZ), "(N, H, W, 1 or 3)", npz(x=np.zeros((10, 3, 8, 8), np.uint8), y=Y)),
    "a number": Case(probe(NPZ), "expected x of shape", npz(x=np.uint8(3), y=Y)),
    "no pixels": Case(probe(NPZ), "expected x of shape", npz(x=X[:, :0], y=Y)),
    "classes in one word": Case(probe(NPZ), "expected classes of one dimension", npz(x=X, y=Y, classes="abcdefghij")),
    "no images": Case(probe(NPZ), "expected", npz(x=X[:0], y=Y[:0])),
    "too few labels": Case(probe(NPZ), "expected y of 10 integers", npz(x=X, y=Y[:9])),
    "negative labels": Case(probe(NPZ), "labels of 0 and above", npz(x=X, y=Y - 1)),
    "labels of 10^18": Case(probe(NPZ), "label", npz(x=X, y=Y + 10**18)),
    "unsigned labels of 2^64": Case(probe(NPZ), "label", npz(x=X, y=np.full(10, 2**64 - 1, np.uint64))),
    "labels of the test split alone": Case(
        ["train", "digits", *SET, "--set", f"data.name={NPZ}"], "train and a test split", npz(x=X, y=Y)
    ),
    "classes too few": Case(probe(NPZ), "labels 0 to 1 (see classes)", npz(x=X, y=Y, classes=["a", "b"])),
    "classes in a table": Case(probe(NPZ), "classes", npz(x=X, y=Y, classes=[["a", "b"]] * 10)),
    "other images than the model's": Case(probe(NPZ), "refuses them", npz(x=np.zeros((10, 9, 9), np.uint8), y=Y)),
    "more classes than the model's": Case(
        probe(NPZ), "choose data to match", npz(x=np.zeros((11, 8, 8), np.uint8), y=np.arange(11))
    ),
}


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


PNG = _png_header(8, 8)

IMAGES = {
    "missing": Case(probe(FOLDER), "found no such folder"),
    "empty": Case(probe(FOLDER), "found nothing", lambda folder: (folder / "data").mkdir()),
    "a file": Case(probe(FOLDER), "found no such folder", file("data", b"hello")),
    "without classes": Case(probe(FOLDER), "one folder per class", file("data/test/a.png", PNG)),
    "a class without images": Case(
        probe(FOLDER), "expected images of this class", images(lambda f: (f / "data/test/empty").mkdir())
    ),
    "a class of text files": Case(
        probe(FOLDER),
        "data/test/more: expected images of this class, found notes.txt",
        images(file("data/test/more/notes.txt", b"hi")),
    ),
    "images without a class": Case(probe(FOLDER), "found a.png", file("data/a.png", PNG)),
    "an empty image": Case(probe(FOLDER), "a.png: expected an image", images(file("data/test/0/a.png", b""))),
    "a web page": Case(probe(FOLDER), "a.jpg: expected an image", images(file("data/test/0/a.jpg", HTML))),
    "a truncated image": Case(probe(FOLDER), "a.png: expected an image", images(file("data/test/0/a.png", PNG[:45]))),
    "an image of 60,000 squared": Case(
        probe(FOLDER), "a.png: expected an image", images(file("data/test/0/a.png", _png_header(60_000, 60_000)))
    ),
    "16 bits a channel": Case(
        probe(FOLDER), "8 bits a channel", images(lambda f: Image.new("I;16", (8, 8)).save(f / "data/test/0/a.png"))
    ),
    "mixed sizes": Case(probe(FOLDER), "use a model that brings its own resizing", images(sizes=(8, 9))),
    "a link to itself": Case(probe(FOLDER), "a.png: expected an image", images(link("data/test/0/a.png", "a.png"))),
    "a link to nowhere": Case(probe(FOLDER), "a.png: expected an image", images(link("data/test/0/a.png", "gone.png"))),
    "a circle of folders": Case(probe(FOLDER), "circle", images(link("data/test/0/more", "."))),
    "many circles of folders": Case(
        probe(FOLDER), "circle", images(*(link(f"data/test/0/{name}", "..") for name in "abcdefgh"))
    ),
    "a named pipe": Case(
        probe(FOLDER), "a.png: expected an image", images(lambda folder: os.mkfifo(folder / "data/test/0/a.png"))
    ),
    "a device": Case(probe(FOLDER), "a.png: expected an image", images(link("data/test/0/a.png", "/dev/zero"))),
    "a name of two lines": Case(probe(FOLDER), "expected an image", images(file("data/test/0/a\nb.png", b"hi"))),
    "other classes in train": Case(
        probe(FOLDER), "differ: more", images(file("data/train/more/a.png", PNG), splits=("train", "test"))
    ),
    "no test split": Case(probe(FOLDER), "found train", images(splits=("train",))),
    "damaged CIFAR": Case(
        probe("cifar10"), "cifar-10-batches-py", file("data/cifar-10-batches-py/data_batch_1", b"hi")
    ),
    "Tiny-ImageNet of garbage": Case(
        ["fix-tinyimagenet"],
        "val_annotations.txt",
        file("data/tiny-imagenet-200/val/val_annotations.txt", b"\xff\xfe"),
    ),
    "no Tiny-ImageNet": Case(["fix-tinyimagenet"], "found nothing; unpack"),
    "Tiny-ImageNet without its images": Case(
        ["fix-tinyimagenet"],
        "val_annotations.txt names",
        file("data/tiny-imagenet-200/val/val_annotations.txt", b"val_0.JPEG\tn01443537\t0\t32\t44\t62\n"),
    ),
}
