"""Broken and hostile files, and impossible wishes: each ends in one line, and leaves the disk as it was."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import nn
from training.test_run import Quiet
from zoo.harmful import Harmful

from ccf_plugin.cli import main
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe_files import load_recipe

HTML = b"<!DOCTYPE html><html><title>Quota exceeded</title></html>"
SETTINGS = [
    *("model.options.width=2", "model.options.blocks=[1,1,1,1]", "data.train_per_class=2", "data.test_limit=10"),
    *("attack.steps=1", "evaluate.steps=1", "optim.batch_size=20", "optim.epochs=1", "probe.pictures=false"),
]
SET = [word for setting in SETTINGS for word in ("--set", setting)]
OWN = "python:test_bad_inputs:network"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


Make = Callable[[Path], object]


class Case(NamedTuple):
    """A command, what its one line says, and what makes the files (in an empty folder, the working directory)."""

    command: list[str]
    says: str
    make: Make = lambda _: None


# Checkpoints


def _file(name: str, content: bytes) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def _torch(change: Callable[[dict[str, Any]], object], name: str = "weights.pt") -> Make:
    return lambda folder: torch.save(change(network().state_dict()), folder / name)


def _damaged(cut: Callable[[bytes], bytes], name: str) -> Make:
    def make(folder: Path) -> None:
        state = network().state_dict()
        (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)
        (folder / name).write_bytes(cut((folder / name).read_bytes()))

    return make


def _zip_bomb(name: str, member: str, content: bytes, claimed: int) -> Make:
    """A zip archive whose directory claims ``claimed`` bytes of a member."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        raw = bytearray((folder / name).read_bytes())
        central = raw.index(b"PK\x01\x02")
        for size_at in (central + 24, raw.index(b"PK\x03\x04") + 22):
            raw[size_at : size_at + 4] = struct.pack("<I", claimed)
        (folder / name).write_bytes(raw)

    return make


def _safetensors(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _permuted(state: dict[str, Any]) -> dict[str, Any]:
    keys = list(state)
    return dict(zip(keys, [state[key] for key in keys[1:] + keys[:1]], strict=True))


def _with(key: str, value: Callable[[torch.Tensor], object]) -> Callable[[dict[str, Any]], object]:
    return lambda state: {**state, key: value(state[key])}


def _own(name: str = "weights.pt") -> list[str]:
    return ["probe", OWN, "--checkpoint", name, "--data", "digits", "--limit", "20", "--clean"]


CHECKPOINTS = {
    "missing": Case(_own(), "weights.pt: expected a checkpoint file, found nothing"),
    "a folder": Case(_own(), "found a folder", lambda folder: (folder / "weights.pt").mkdir()),
    "a named pipe": Case(_own(), "expected a checkpoint file", lambda folder: os.mkfifo(folder / "weights.pt")),
    "a device": Case(_own(), "expected a checkpoint file", lambda f: (f / "weights.pt").symlink_to("/dev/zero")),
    "a link to itself": Case(_own(), "expected a checkpoint", lambda f: (f / "weights.pt").symlink_to("weights.pt")),
    "empty": Case(_own(), "found an empty one", _file("weights.pt", b"")),
    "empty safetensors": Case(_own("w.safetensors"), "found an empty one", _file("w.safetensors", b"")),
    "a web page": Case(_own(), "found a web page; download it again", _file("weights.pt", HTML)),
    "a web page, safetensors": Case(_own("w.safetensors"), "found a web page", _file("w.safetensors", HTML)),
    "random bytes": Case(_own(), "damaged", _file("weights.pt", bytes(range(256)) * 8)),
    "random bytes, safetensors": Case(_own("w.safetensors"), "damaged", _file("w.safetensors", bytes(range(256)) * 8)),
    "cut short": Case(_own(), "damaged", _damaged(lambda raw: raw[:-200], "weights.pt")),
    "cut short, safetensors": Case(_own("w.safetensors"), "damaged", _damaged(lambda r: r[:-9], "w.safetensors")),
    "cut in its header": Case(_own("w.safetensors"), "damaged", _damaged(lambda r: r[:100], "w.safetensors")),
    "a changed byte in the archive": Case(
        _own(), "damaged", _damaged(lambda raw: raw.replace(b"PK\x01\x02", b"PK\x01\x03", 1), "weights.pt")
    ),
    "a header of an exabyte": Case(
        _own("w.safetensors"), "damaged", _file("w.safetensors", struct.pack("<Q", 1 << 60) + b"{}")
    ),
    "tensors beyond the file's end": Case(
        _own("w.safetensors"),
        "damaged",
        _file("w.safetensors", _safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})),
    ),
    "a zip bomb's header": Case(_own(), "damaged", _zip_bomb("weights.pt", "archive/data.pkl", b"\0" * 999, 1 << 31)),
    "a text file": Case(_own("weights.txt"), "ending in .safetensors, .pt or .pth", _file("weights.txt", b"hello")),
    "a list": Case(_own(), "expected a state dict", _torch(lambda state: list(state.values()))),
    "an optimiser's state": Case(_own(), "these are no tensors: lr", _torch(lambda _: {"lr": 0.1})),
    "a whole pickled model": Case(
        _own(), "nothing is unpickled here", lambda f: torch.save(network(), f / "weights.pt")
    ),
    "of another architecture": Case(_own(), "another architecture", _torch(lambda _: nn.Linear(3, 3).state_dict())),
    "of other sizes": Case(_own(), "1 of another shape (1.weight)", _torch(_with("1.weight", lambda w: w[:, :9]))),
    "of permuted keys": Case(_own(), "of another shape", _torch(_permuted)),
    "of NaN weights": Case(_own(), "'1.weight'", _torch(_with("1.weight", lambda w: w * torch.nan))),
    "of infinite weights": Case(_own(), "'4.bias'", _torch(_with("4.bias", lambda b: b / 0))),
    "of a NaN statistic": Case(_own(), "'2.running_var'", _torch(_with("2.running_var", lambda v: v * torch.nan))),
    "of 8-bit integers": Case(_own(), "'1.weight'", _torch(_with("1.weight", lambda w: (w * 99).to(torch.int8)))),
    "of complex numbers": Case(_own(), "'1.weight'", _torch(_with("1.weight", lambda w: w.to(torch.complex64)))),
    "of sparse tensors": Case(_own(), "weights.pt", _torch(_with("1.weight", lambda w: w.to_sparse()))),
    "of tensors without data": Case(_own(), "weights.pt", _torch(_with("1.weight", lambda w: w.to("meta")))),
    "of another kind of model": Case(
        ["probe", "digits_net.pt", "--data", "digits"], "for another file use python:", _file("digits_net.pt", b"x")
    ),
    "with a model that names itself": Case(
        ["probe", "timm:resnet18", "--checkpoint", "w.pt"], "--checkpoint goes with python:", _file("w.pt", b"x")
    ),
}


# A run's own checkpoint, whose description is changed


def _described(change: Callable[[dict[str, Any]], object]) -> Make:
    def make(folder: Path) -> None:
        torch.manual_seed(0)
        recipe = load_recipe("digits", SETTINGS)
        from ccf_plugin.zoo.models import build_model

        model = build_model(
            "narrow_preact_resnet18", num_classes=10, input_size=(1, 8, 8), options=recipe.model.options
        )
        metadata = {
            "format": 1,
            "model": {"name": "narrow_preact_resnet18", "options": recipe.model.options, "mean": None, "std": None},
            "classes": list("0123456789"),
            "data": "digits",
            "input_size": [1, 8, 8],
            "test_limit": 10,
            "threat": {"norm": "Linf", "eps": 0.1},
        }
        text = change(metadata)
        text = text if isinstance(text, str) else json.dumps(metadata if text is None else text)
        save_file(model.state_dict(), folder / "best.safetensors", metadata={"ccf_plugin": text})

    return make


def _description(change: Callable[[dict[str, Any]], object], says: str) -> Case:
    return Case(["probe", "best.safetensors", "--clean"], says, _described(change))


DESCRIPTIONS = {
    "without a description": Case(
        ["probe", "best.safetensors"],
        "without a description of its model",
        lambda folder: save_file(network().state_dict(), folder / "best.safetensors"),
    ),
    "no JSON": _description(lambda _: "{", "garbled"),
    "a nested description": _description(lambda _: "[" * 100_000, "garbled"),
    "a newer format": _description(lambda m: m.update(format=2), "this version reads up to 1; update ccf_plugin"),
    "a format of text": _description(lambda m: m.update(format="1"), "format"),
    "without classes": _description(lambda m: m.pop("classes"), "garbled"),
    "too few classes": _description(lambda m: m.update(classes=["a"]), "another architecture"),
    "an unknown model": _description(lambda m: m["model"].update(name="resnet"), "model 'resnet' is unknown"),
    "code in a file": _description(
        lambda m: m["model"].update(name="python:os:getcwd"), "run it with python:os:getcwd"
    ),
    "a network of an exabyte": _description(lambda m: m["model"]["options"].update(width=1 << 40), "best.safetensors"),
    "options of text": _description(lambda m: m["model"].update(options="width"), "garbled"),
    "an input without height": _description(lambda m: m.update(input_size=[1, 8]), "garbled"),
    "a threat of other keys": _description(lambda m: m.update(threat={"norm": "Linf", "colour": 3}), "garbled"),
    "a threat in bytes": Case(
        ["probe", "best.safetensors"], "eps: expected 0 to 1", _described(lambda m: m["threat"].update(eps=8))
    ),
    "a threat that is a list": _description(lambda m: m.update(threat=[1, 2]), "garbled"),
    "a limit of text": _description(lambda m: m.update(test_limit="ten"), "garbled"),
    "data of a number": _description(lambda m: m.update(data=3), "garbled"),
    "data that are gone": _description(lambda m: m.update(data="npz:gone.npz"), "gone.npz"),
    "a folder without a best checkpoint": Case(
        ["probe", "run"], "expected a run folder with best.safetensors", _file("run/last.pt", b"x")
    ),
}


# Data


def _npz(**arrays: Any) -> Make:
    return lambda folder: np.savez(folder / "data.npz", **arrays)


def _probe(data: str) -> list[str]:
    return ["probe", OWN, "--data", data, "--clean"]


def _bomb_npy(shape: tuple[int, ...]) -> bytes:
    header = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _npz_of(members: dict[str, bytes]) -> Make:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "data.npz", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return make


X, Y = np.zeros((10, 8, 8), np.uint8), np.arange(10)
NPZ = "npz:data.npz"

ARRAYS = {
    "missing": Case(_probe(NPZ), "expected an npz file, found nothing"),
    "a folder": Case(_probe(NPZ), "found a folder", lambda folder: (folder / "data.npz").mkdir()),
    "a device": Case(_probe(NPZ), "expected an npz file", lambda f: (f / "data.npz").symlink_to("/dev/zero")),
    "empty": Case(_probe(NPZ), "damaged", _file("data.npz", b"")),
    "a web page": Case(_probe(NPZ), "damaged", _file("data.npz", HTML)),
    "cut short": Case(
        _probe(NPZ),
        "damaged",
        lambda f: (_npz(x=X, y=Y)(f), (f / "data.npz").write_bytes((f / "data.npz").read_bytes()[:-99])),
    ),
    "one array": Case(_probe(NPZ), "npz:data.npz: expected", lambda f: np.save((f / "data.npz").open("wb"), X)),
    "objects": Case(_probe(NPZ), "pickled", _npz(x=X, y=np.array([None] * 10, dtype=object))),
    "an array of an exabyte": Case(
        _probe(NPZ), "npz:data.npz", _npz_of({"x.npy": _bomb_npy((1 << 60,)), "y.npy": b""})
    ),
    "an array of 16 GB in 128 bytes": Case(
        _probe(NPZ), "npz:data.npz", _npz_of({"x.npy": _bomb_npy((1 << 28, 8, 8)), "y.npy": b""})
    ),
    "a zip bomb's header": Case(_probe(NPZ), "npz:data.npz", _zip_bomb("data.npz", "x.npy", b"\0" * 999, 1 << 31)),
    "members that are no arrays": Case(_probe(NPZ), "damaged", _npz_of({"x": b"hello", "y": b"hello"})),
    "other names": Case(_probe(NPZ), "found images, labels", _npz(images=X, labels=Y)),
    "floats": Case(_probe(NPZ), "expected x of uint8", _npz(x=X / 255, y=Y)),
    "channels first": Case(_probe(NPZ), "(N, H, W, 1 or 3)", _npz(x=np.zeros((10, 3, 8, 8), np.uint8), y=Y)),
    "no images": Case(_probe(NPZ), "expected", _npz(x=X[:0], y=Y[:0])),
    "too few labels": Case(_probe(NPZ), "expected y of 10 integers", _npz(x=X, y=Y[:9])),
    "negative labels": Case(_probe(NPZ), "labels of 0 and above", _npz(x=X, y=Y - 1)),
    "labels of 10^18": Case(_probe(NPZ), "label", _npz(x=X, y=Y + 10**18)),
    "unsigned labels of 2^64": Case(_probe(NPZ), "label", _npz(x=X, y=np.full(10, 2**64 - 1, np.uint64))),
    "labels of the test split alone": Case(
        ["train", "digits", *SET, "--set", f"data.name={NPZ}"], "train and a test split", _npz(x=X, y=Y)
    ),
    "classes too few": Case(_probe(NPZ), "labels 0 to 1 (see classes)", _npz(x=X, y=Y, classes=["a", "b"])),
    "classes in a table": Case(_probe(NPZ), "classes", _npz(x=X, y=Y, classes=[["a", "b"]] * 10)),
    "other images than the model's": Case(_probe(NPZ), "refuses them", _npz(x=np.zeros((10, 9, 9), np.uint8), y=Y)),
    "more classes than the model's": Case(
        _probe(NPZ), "choose data to match", _npz(x=np.zeros((11, 8, 8), np.uint8), y=np.arange(11))
    ),
}


def _images(*broken: Make, sizes: tuple[int, ...] = (8,), splits: tuple[str, ...] = ("test",)) -> Make:
    """Ten classes of one image each, and then what is wrong."""

    def make(folder: Path) -> None:
        for split in splits:
            for label in range(10):
                (folder / "data" / split / str(label)).mkdir(parents=True)
                for size in sizes:
                    image = Image.new("L", (size, size), 20 * label)
                    image.save(folder / "data" / split / str(label) / f"{size}.png")
        for one in broken:
            one(folder)

    return make


def _link(name: str, target: str) -> Make:
    return lambda folder: (folder / name).symlink_to(target)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


PNG = _png_header(8, 8)
FOLDER = "folder:data"

IMAGES = {
    "missing": Case(_probe(FOLDER), "found no such folder"),
    "empty": Case(_probe(FOLDER), "found nothing", lambda folder: (folder / "data").mkdir()),
    "a file": Case(_probe(FOLDER), "found no such folder", _file("data", b"hello")),
    "without classes": Case(_probe(FOLDER), "one folder per class", _file("data/test/a.png", PNG)),
    "a class without images": Case(
        _probe(FOLDER), "expected images of this class", _images(lambda f: (f / "data/test/empty").mkdir())
    ),
    "a text file among them": Case(
        _probe(FOLDER), "notes.txt: expected an image", _images(_file("data/test/0/notes.txt", b"hi"))
    ),
    "an empty image": Case(_probe(FOLDER), "a.png: expected an image", _images(_file("data/test/0/a.png", b""))),
    "a web page": Case(_probe(FOLDER), "a.jpg: expected an image", _images(_file("data/test/0/a.jpg", HTML))),
    "a truncated image": Case(
        _probe(FOLDER), "a.png: expected an image", _images(_file("data/test/0/a.png", PNG[:45]))
    ),
    "an image of 60,000 squared": Case(
        _probe(FOLDER), "a.png: expected an image", _images(_file("data/test/0/a.png", _png_header(60_000, 60_000)))
    ),
    "16 bits a channel": Case(
        _probe(FOLDER), "8 bits a channel", _images(lambda f: Image.new("I;16", (8, 8)).save(f / "data/test/0/a.png"))
    ),
    "mixed sizes": Case(_probe(FOLDER), "use a model that brings its own resizing", _images(sizes=(8, 9))),
    "a link to itself": Case(_probe(FOLDER), "a.png: expected an image", _images(_link("data/test/0/a.png", "a.png"))),
    "a link to nowhere": Case(
        _probe(FOLDER), "a.png: expected an image", _images(_link("data/test/0/a.png", "gone.png"))
    ),
    "a circle of folders": Case(_probe(FOLDER), "circle", _images(_link("data/test/0/more", "."))),
    "many circles of folders": Case(
        _probe(FOLDER), "circle", _images(*(_link(f"data/test/0/{name}", "..") for name in "abcdefgh"))
    ),
    "a named pipe": Case(
        _probe(FOLDER), "a.png: expected an image", _images(lambda folder: os.mkfifo(folder / "data/test/0/a.png"))
    ),
    "a device": Case(_probe(FOLDER), "a.png: expected an image", _images(_link("data/test/0/a.png", "/dev/zero"))),
    "a name of two lines": Case(_probe(FOLDER), "expected an image", _images(_file("data/test/0/a\nb.png", b"hi"))),
    "other classes in train": Case(
        _probe(FOLDER), "differ: more", _images(_file("data/train/more/a.png", PNG), splits=("train", "test"))
    ),
    "no test split": Case(_probe(FOLDER), "found train", _images(splits=("train",))),
    "damaged CIFAR": Case(
        _probe("cifar10"), "cifar-10-batches-py", _file("data/cifar-10-batches-py/data_batch_1", b"hi")
    ),
    "Tiny-ImageNet of garbage": Case(
        ["fix-tinyimagenet"],
        "val_annotations.txt",
        _file("data/tiny-imagenet-200/val/val_annotations.txt", b"\xff\xfe"),
    ),
    "no Tiny-ImageNet": Case(["fix-tinyimagenet"], "found nothing; unpack"),
    "Tiny-ImageNet without its images": Case(
        ["fix-tinyimagenet"],
        "val_annotations.txt names",
        _file("data/tiny-imagenet-200/val/val_annotations.txt", b"val_0.JPEG\tn01443537\t0\t32\t44\t62\n"),
    ),
}


# Recipes

MINIMAL = b'[model]\nname = "narrow_preact_resnet18"\n[data]\nname = "digits"\n'
TRAIN = ["train", "mine.toml"]


def _recipe(content: bytes) -> Make:
    return _file("mine.toml", content)


def _bases(count: int) -> Make:
    def make(folder: Path) -> None:
        (folder / "mine.toml").write_text('base = "r0"')
        for number in range(count):
            (folder / f"r{number}.toml").write_text(f'base = "r{number + 1}"')
        (folder / f"r{count}.toml").write_bytes(MINIMAL)

    return make


RECIPES = {
    "missing": Case(TRAIN, "expected a recipe file, found no 'mine.toml'"),
    "a folder": Case(TRAIN, "mine.toml", lambda folder: (folder / "mine.toml").mkdir()),
    "a link to itself": Case(TRAIN, "mine.toml", _link("mine.toml", "mine.toml")),
    "a name of 5,000 letters": Case(["train", "r" * 5000], "File name too long"),
    "without a model": Case(TRAIN, "model: expected a value", _recipe(b'data = {name = "digits"}')),
    "a web page": Case(TRAIN, "expected TOML", _recipe(HTML)),
    "cut short": Case(TRAIN, "expected TOML", _recipe(MINIMAL[:-3])),
    "keys twice": Case(TRAIN, "expected TOML", _recipe(MINIMAL + b'name = "cifar10"\n')),
    "tables twice": Case(TRAIN, "expected TOML", _recipe(MINIMAL + b"[data]\n")),
    "another encoding": Case(TRAIN, "expected TOML", _recipe("seed = 1 # größer".encode("latin-1"))),
    "UTF-16": Case(TRAIN, "expected TOML", _recipe(MINIMAL.decode().encode("utf-16"))),
    "10 MB": Case(TRAIN, "expected a recipe under 1 MB", _recipe(b"# " + b"x" * 10_000_000)),
    "a million brackets": Case(TRAIN, "expected TOML", _recipe(b"seed = " + b"[" * 900_000)),
    "a number of 5,000 digits": Case(TRAIN, "mine.toml", _recipe(b"seed = " + b"9" * 5000 + b"\n" + MINIMAL)),
    "a hexadecimal number of 9,000 digits": Case(
        TRAIN, "seed: expected", _recipe(b"seed = 0x" + b"f" * 9000 + b"\n" + MINIMAL)
    ),
    "a circle of bases": Case(TRAIN, "without a circle", _recipe(b'base = "mine"')),
    "a tower of bases": Case(TRAIN, "base", _bases(2000)),
    "a base that is missing": Case(TRAIN, "found no 'nowhere'", _recipe(b'base = "nowhere"')),
    "a base of a number": Case(TRAIN, "base: expected a recipe's name", _recipe(b"base = 3")),
    "an unknown key": Case(TRAIN, "did you mean 'seed'", _recipe(b"sead = 1\n" + MINIMAL)),
    "a key of a wrong type": Case(TRAIN, "seed: expected", _recipe(b'seed = "one"\n' + MINIMAL)),
    "a key of two lines": Case(TRAIN, "expected a known key", _recipe(b'"a\\nb" = 1\n' + MINIMAL)),
    "a rate of NaN": Case(TRAIN, "optim.lr", _recipe(MINIMAL + b"[optim]\nlr = nan\n")),
    "an infinite rate": Case(TRAIN, "optim.lr", _recipe(MINIMAL + b"[optim]\nlr = inf\n")),
    "eps of NaN": Case(TRAIN, "attack.eps", _recipe(MINIMAL + b"[attack]\neps = nan\n")),
    "eps of 10^400": Case(TRAIN, "attack.eps", _recipe(MINIMAL + b"[attack]\neps = 1" + b"0" * 400 + b"\n")),
    "eps of words": Case(TRAIN, "attack.eps", _recipe(MINIMAL + b'[attack]\neps = "__import__(1)"\n')),
    "code in a file": Case(
        TRAIN, "add --allow-code", _recipe(MINIMAL.replace(b"narrow_preact_resnet18", OWN.encode()))
    ),
    "a teacher that is missing": Case(
        TRAIN,
        "expected the teacher's run at runs/gone",
        _recipe(MINIMAL + b'[[distill]]\nteacher="runs/gone"\nweight=1\n'),
    ),
    "a teacher in a torch file": Case(
        TRAIN,
        "expected a .safetensors checkpoint of a run",
        lambda f: (_recipe(MINIMAL + b'[[distill]]\nteacher="t.pt"\nweight=1\n')(f), _file("t.pt", HTML)(f)),
    ),
    "a teacher of a web page": Case(
        TRAIN,
        "found a web page",
        lambda f: (
            _recipe(MINIMAL + b'[[distill]]\nteacher="t.safetensors"\nweight=1\n')(f),
            _file("t.safetensors", HTML)(f),
        ),
    ),
    "a teacher of other classes": Case(
        [*TRAIN, "--set", "data.name=npz:three.npz", "--set", "distill=[{teacher='best.safetensors', weight=1}]"],
        "expected a teacher of 3 classes, found 10",
        lambda f: (
            _recipe(MINIMAL)(f),
            _described(lambda _: None)(f),
            np.savez(f / "three.npz", x_train=X[:6], y_train=Y[:6] % 3, x_test=X[:6], y_test=Y[:6] % 3),
        ),
    ),
    "data of another size than the model": Case(
        TRAIN, "3×32×32", _recipe(MINIMAL.replace(b"narrow_preact_resnet18", b"preact_resnet18"))
    ),
    "a network of an exabyte": Case(
        TRAIN, "narrow_preact_resnet18", _recipe(MINIMAL + b"[model.options]\nwidth = 1099511627776\n")
    ),
    "--set without a key": Case(["train", "digits", "--set", "=3"], "expected --set key=value"),
    "--set of nothing": Case(["train", "digits", "--set", ""], "expected --set key=value"),
    "--set of a million brackets": Case(["train", "digits", "--set", "seed=" + "[" * 100_000], "seed"),
    "--set into a value": Case(["train", "digits", "--set", "seed.x=3"], "not a table"),
    "a sweep without values": Case(["sweep", "digits", "seed="], "expected key=value,value"),
    "a sweep of a fault": Case(["sweep", "digits", "seed=1,x"], "seed: expected"),
    "a sweep of a damaged recipe": Case(["sweep", "mine.toml", "seed=1,2"], "expected TOML", _recipe(b"\xff")),
    "recipes with a word too much": Case(["recipes", "more"], "unexpected extra argument"),
}


# Options


def _option(*words: str) -> list[str]:
    return ["probe", OWN, "--data", "digits", "--limit", "20", *words]


OPTIONS = {
    "a model of no kind": Case(["probe", "torchvision:resnet18"], "no kind 'torchvision'"),
    "a model of nothing": Case(["probe", ""], "expected a run folder"),
    "a model of 5,000 letters": Case(["probe", "m" * 5000], "File name too long"),
    "code that is not there": Case(["probe", "python:nowhere:f", "--data", "digits"], "importing nowhere failed"),
    "code without a name": Case(["probe", "python:test_bad_inputs", "--data", "digits"], "python:package.module:"),
    "code that makes no model": Case(["probe", "python:os:getcwd", "--data", "digits"], "expected an nn.Module"),
    "code that fails": Case(["probe", "python:os:abort_", "--data", "digits"], "os has no 'abort_'"),
    "a data set of nothing": Case(_option("--data", ""), "data '' is unknown"),
    "a folder of nothing": Case(_option("--data", "folder:"), "unknown"),
    "eps of NaN": Case(_option("--eps", "nan"), "eps"),
    "eps of 1e999": Case(_option("--eps", "1e999"), "eps"),
    "a negative eps": Case(_option("--eps", "-1/255"), "eps"),
    "no steps": Case(_option("--steps", "0"), "steps: expected a whole number of at least 1"),
    "a negative limit": Case(_option("--limit", "-3"), "--limit"),
    "a negative batch": Case(_option("--batch-size", "-1", "--clean"), "batch size"),
    "a seed of 2^70": Case(_option("--seed", str(2**70), "--steps", "1"), "seed"),
    "another device": Case(_option("--device", "cuda:99"), "cuda:99"),
    "a device of no kind": Case(_option("--device", "tpu"), "expected auto, cpu, cuda"),
    "a head that is no layer": Case(_option("--head", "nothing", "--clean"), "nothing"),
}


# Run folders; "run" is a copy of a finished one


def _changed(name: str, change: Callable[[Path], object]) -> Make:
    return lambda folder: change(folder / "run" / name)


def _state(change: Callable[[dict[str, Any]], object]) -> Make:
    def rewrite(path: Path) -> None:
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    return _changed("state/last.json", rewrite)


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    def rewrite(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        path.write_bytes(save(tensors))

    return _changed("state/001.safetensors", rewrite)


RESUME = [
    "train",
    "digits",
    *SET,
    "--out",
    "run",
    "--resume",
    "--set",
    "optim.epochs=2",
    "--allow-change",
    "optim.epochs",
]
NEW = ["train", "digits", *SET, "--out"]

RUNS = {
    "of a newer version": Case(RESUME, "update ccf_plugin", _state(lambda s: s.update(format=2))),
    "of a format of text": Case(RESUME, "last.json", _state(lambda s: s.update(format="new"))),
    "a state of a list": Case(RESUME, "last.json", _changed("state/last.json", lambda p: p.write_text("[]"))),
    "a state of another encoding": Case(
        RESUME, "last.json", _changed("state/last.json", lambda p: p.write_bytes(b"\xff"))
    ),
    "a state of 100,000 brackets": Case(
        RESUME, "last.json", _changed("state/last.json", lambda p: p.write_text("[" * 100_000))
    ),
    "a state of other rows": Case(RESUME, "last.json", _state(lambda s: s["rows"][0].update(colour=3))),
    "a state of an epoch of text": Case(RESUME, "last.json", _state(lambda s: s.update(epoch="one"))),
    "a state of a negative step": Case(RESUME, "last.json", _state(lambda s: s.update(step=-1))),
    "without its tensors": Case(RESUME, "001.safetensors", _changed("state/001.safetensors", Path.unlink)),
    "tensors cut short": Case(
        RESUME, "001.safetensors", _changed("state/001.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-99]))
    ),
    "tensors of a web page": Case(
        RESUME, "001.safetensors", _changed("state/001.safetensors", lambda p: p.write_bytes(HTML))
    ),
    "tensors without the model": Case(
        RESUME, "001.safetensors", _tensors(lambda t: [t.pop(key) for key in list(t) if key.startswith("model.")])
    ),
    "tensors of other sizes": Case(
        RESUME, "001.safetensors", _tensors(lambda t: t.update({"model.linear.bias": torch.zeros(3)}))
    ),
    "tensors without random numbers": Case(RESUME, "001.safetensors", _tensors(lambda t: t.pop("rng.0"))),
    "random numbers cut short": Case(
        RESUME, "001.safetensors", _tensors(lambda t: t.update({"rng.0": t["rng.0"][:9]}))
    ),
    "momentum of other sizes": Case(
        RESUME, "001.safetensors", _tensors(lambda t: t.update({"optimizer.0.momentum_buffer": torch.zeros(3)}))
    ),
    "a recipe that was damaged": Case(RESUME, "recipe.toml", _changed("recipe.toml", lambda p: p.write_bytes(b"\xff"))),
    "a recipe that was deleted": Case(RESUME, "recipe.toml", _changed("recipe.toml", Path.unlink)),
    "an environment that was damaged": Case(
        RESUME, "environment.json", _changed("environment.json", lambda p: p.write_text("[1]"))
    ),
    "an environment that was deleted": Case(RESUME, "environment.json", _changed("environment.json", Path.unlink)),
    "another recipe": Case([*RESUME, "--set", "optim.lr=0.2"], "--allow-change optim.lr"),
    "fewer epochs than are done": Case([*NEW, "gone", "--resume"], "expected a run to resume in gone, found none"),
    "taken": Case([*NEW, "run"], "continue it with --resume, replace it with --force"),
    "a file": Case([*NEW, "file"], "found the file file", _file("file", b"x")),
    "inside a file": Case([*NEW, "file/run"], "file", _file("file", b"x")),
    "a link to itself": Case([*NEW, "loop"], "loop", _link("loop", "loop")),
    "with other files": Case([*NEW, "mine"], "found other files (thesis.txt)", _file("mine/thesis.txt", b"x")),
    "a result inside a file": Case([*_option("--clean"), "--out", "file/result"], "file", _file("file", b"x")),
    "an interrupted wish": Case(["train", "digits", "--resume", "--force"], "--resume or --force"),
    "a change without a run": Case(["train", "digits", "--allow-change", "seed"], "--allow-change with --resume"),
    "an unknown tracker": Case([*NEW, "new", "--track", "wonderboard"], "wonderboard"),
}


# RobustBench's and timm's models

ROBUST = "Rade2021Helper_R18_extra"
PLACE = f"models/cifar10/Linf/{ROBUST}.pt"


def _in_place(content: object) -> Make:
    def make(folder: Path) -> None:
        (folder / PLACE).parent.mkdir(parents=True)
        torch.save(content, folder / PLACE)

    return make


_PROBE_ROBUST = ["probe", f"robustbench:{ROBUST}", "--data", "digits"]

ZOO = {
    "an unknown entry": Case(["probe", "robustbench:Nobody2031"], "RobustBench has no model 'Nobody2031'"),
    "an unknown dataset": Case(["probe", "robustbench:mnist/Linf/X"], "RobustBench has no dataset 'mnist'"),
    "a web page": Case(_PROBE_ROBUST, "web page", _file(PLACE, HTML)),
    "an empty file": Case(_PROBE_ROBUST, PLACE, _file(PLACE, b"")),
    "random bytes": Case(_PROBE_ROBUST, "damaged", _file(PLACE, bytes(range(256)))),
    "a whole pickled model": Case(_PROBE_ROBUST, "torch.save(c['state_dict'], FILE)", _in_place(network())),
    "NumPy's numbers": Case(
        _PROBE_ROBUST, "torch.save(c['state_dict'], FILE)", _in_place({"state_dict": {}, "best": np.float64(1)})
    ),
    "another architecture": Case(_PROBE_ROBUST, "another architecture", _in_place({"weight": torch.zeros(3)})),
    "a list": Case(_PROBE_ROBUST, PLACE, _in_place([1, 2])),
    "an unknown network": Case(["probe", "timm:resnet181", "--data", "digits"], "did you mean 'resnet18'"),
    "unknown weights": Case(["probe", "timm:resnet18.nobody", "--data", "digits"], "timm has no weights"),
    "a hub of strangers": Case(["probe", "timm:hf-hub:stranger/model", "--data", "digits"], "timm has no model"),
    "options for timm": Case(
        ["train", "digits", "--set", "model={name='timm:resnet18', options={colour=3}}"], "refuses its options"
    ),
}

TABLE = {
    f"{name}: {what}": case
    for name, table in {
        "checkpoint": CHECKPOINTS,
        "description": DESCRIPTIONS,
        "arrays": ARRAYS,
        "images": IMAGES,
        "recipe": RECIPES,
        "option": OPTIONS,
        "run": RUNS,
        "zoo": ZOO,
    }.items()
    for what, case in table.items()
}


def listing(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: files with their content, links with their target, folders and others with None."""
    found: dict[str, bytes | str | None] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            is_link = path.is_symlink()
            found[str(path)] = str(path.readlink()) if is_link else path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(load_recipe("digits", SETTINGS), tmp_path_factory.mktemp("finished") / "run", Quiet()).folder


@pytest.fixture
def ccf(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Run ``ccf`` in this process, in a folder of its own: exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("gdown.download", fail)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ccf", *arguments])
        capfd.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return run


def _ends_in_one_line(code: int, err: str, says: str) -> None:
    assert code in (1, 2), err
    assert err.startswith("ccf: ")
    assert err.count("\n") == 1, err
    assert says in err
    assert len(err) < 1500, len(err)


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_gets_one_line_and_leaves_the_disk_as_it_was(
    ccf: Callable[..., tuple[int, str]], finished: Path, tmp_path: Path, name: str
) -> None:
    case = TABLE[name]
    if name.startswith("run: "):
        shutil.copytree(finished, tmp_path / "run")
    case.make(tmp_path)
    before = listing(tmp_path)
    code, err = ccf(*case.command)
    _ends_in_one_line(code, err, case.says)
    assert listing(tmp_path) == before


NO_SPACE = (errno.ENOSPC, "No space left on device", "free some space")
READ_ONLY = (errno.EROFS, "Read-only file system", "check its path and permissions")
FORBIDDEN = (errno.EACCES, "Permission denied", "check its path and permissions")


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
@pytest.mark.parametrize(("number", "text", "remedy"), [NO_SPACE, READ_ONLY, FORBIDDEN])
@pytest.mark.parametrize(
    "command", [[*NEW, "deep/new"], [*_option("--clean"), "--out", "deep/new"]], ids=["train", "probe"]
)
def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(
    ccf: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    number: int,
    text: str,
    remedy: str,
    call: str,
) -> None:
    """Injected, since permissions do not bind the superuser that tests may run as."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, text)

    monkeypatch.setattr(os, call, fail)
    code, err = ccf(*command)
    monkeypatch.undo()
    assert code == 1
    _ends_in_one_line(code, err, remedy)
    assert text in err
    assert call == "mkdir" or "deep/new" in err
    assert listing(tmp_path) == {}


def test_a_folder_that_cannot_be_read_is_named(
    ccf: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _images()(tmp_path)
    scan = os.scandir

    def forbidden(path: Path) -> Any:
        if str(path).endswith("7"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    code, err = ccf(*_probe(FOLDER))
    _ends_in_one_line(code, err, "data/test/7: Permission denied; check its path and permissions")


# Pickles that would create the file "harm"


def _pickle(name: str, wrap: Callable[[Harmful], Any] = lambda harmful: harmful) -> Make:
    return lambda f: _file(name, pickle.dumps(wrap(Harmful(f / "harm"))))(f)


def _torch_file(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": network().state_dict(), "more": Harmful(folder / "harm")}, folder / name)

    return make


def _harmful_npz(folder: Path) -> None:
    np.savez(folder / "data.npz", x=X, y=np.array([Harmful(folder / "harm")] * 10, dtype=object))


def _train(*settings: str) -> list[str]:
    return ["train", "digits", *SET, *(word for setting in settings for word in ("--set", setting))]


ENSEMBLE = "cifar10/corruptions/Diffenderfer2021Winning_LRR_CARD_Deck"  # its networks take seconds to build
SLOW = {"an ensemble's weights"}
TEACHER = "distill=[{teacher='%s', weight=0.5}]"
TIMM = "model={name='timm:%s', options={%s}}"
HARMFUL = {
    **{f"a torch file ending in .{end}": (_own(f"w.{end}"), _torch_file(f"w.{end}")) for end in ("pt", "pth", "tar")},
    **{f"a bare pickle ending in .{end}": (_own(f"w.{end}"), _pickle(f"w.{end}")) for end in ("pt", "bin", "ckpt")},
    "a pickle called safetensors": (_own("w.safetensors"), _pickle("w.safetensors")),
    "a torch file called safetensors": (_own("w.safetensors"), _torch_file("w.safetensors")),
    "a torch file as a model": (["probe", "w.pt"], _torch_file("w.pt")),
    "a pickle in a run folder": (["probe", "run"], _pickle("run/best.safetensors")),
    "RobustBench's weights": (_PROBE_ROBUST, _torch_file(PLACE)),
    "RobustBench's weights, a bare pickle": (_PROBE_ROBUST, _pickle(PLACE)),
    "RobustBench's weights in another folder": (
        [*_PROBE_ROBUST, "--model-dir", "other"],
        _torch_file(PLACE.replace("models", "other")),
    ),
    "an ensemble's weights": (
        ["probe", f"robustbench:{ENSEMBLE}", "--data", "digits"],
        _torch_file(f"models/{ENSEMBLE}.pt_m0.pt"),
    ),
    "RobustBench's weights in a recipe": (
        _train(f"model={{name='robustbench:{ROBUST}', options={{pretrained=true}}}}"),
        _torch_file(PLACE),
    ),
    "a RobustBench teacher": (_train(TEACHER % f"robustbench:{ROBUST}"), _torch_file(PLACE)),
    "a teacher's checkpoint": (_train(TEACHER % "w.safetensors"), _pickle("w.safetensors")),
    "a teacher's torch file": (_train(TEACHER % "w.pt"), _torch_file("w.pt")),
    "timm's checkpoint_path": (_train(TIMM % ("resnet18", "checkpoint_path='w.pth'")), _torch_file("w.pth")),
    "timm's checkpoint_path to an npz": (
        _train(TIMM % ("vit_tiny_patch16_224", "checkpoint_path='w.npz'")),
        _pickle("w.npz"),
    ),
    "timm's weights from a file": (
        _train(TIMM % ("resnet18", "pretrained=true, pretrained_cfg_overlay={file='w.pth'}")),
        _torch_file("w.pth"),
    ),
    "arrays of objects": (_probe(NPZ), _harmful_npz),
    "a pickle called npz": (_probe(NPZ), _pickle("data.npz")),
    "a pickle called png": (_probe(FOLDER), _images(_pickle("data/test/0/a.png"))),
    "CIFAR-10": (_probe("cifar10"), _pickle("data/cifar-10-batches-py/test_batch", lambda h: {"data": h})),
    "a recipe": (["train", "mine.toml"], _pickle("mine.toml")),
    "a run's state": (RESUME, _pickle("run/state/001.safetensors")),
    "a run's state of another name": (
        RESUME,
        lambda f: (_torch_file("run/state/w.pt")(f), _state(lambda s: s.update(file="w.pt"))(f)),
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in HARMFUL])
def test_no_command_unpickles_anything(
    ccf: Callable[..., tuple[int, str]],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    command, make = HARMFUL[name]
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # whatever the user's environment says
    shutil.copytree(finished, tmp_path / "run")
    make(tmp_path)
    before = listing(tmp_path)
    code, err = ccf(*command)
    _ends_in_one_line(code, err, "")
    assert listing(tmp_path) == before
    assert not (tmp_path / "harm").exists()


def test_the_harmful_object_does_harm(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Harmful(tmp_path / "harm")))
    assert (tmp_path / "harm").exists()
