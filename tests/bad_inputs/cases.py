"""What all tables share: what a bad input is, and makers of files that several kinds of them need."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from support.commands import RANDOM_WEIGHTS, sets
from support.runs import SMALLEST
from torch import nn

HTML = b"<!DOCTYPE html><html><title>Quota exceeded</title></html>"
SETTINGS = [
    *(*SMALLEST, "data.train_per_class=2", "data.test_limit=10"),
    *("optim.batch_size=20", "optim.epochs=1", "probe.pictures=false"),
]
SET = sets(SETTINGS)
OWN = "python:bad_inputs.cases:network"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


Make = Callable[[Path], object]


class Case(NamedTuple):
    """A command, what its one line says, and what makes the files (in an empty folder, the working directory)."""

    command: list[str]
    says: str
    make: Make = lambda _: None


def file(name: str, content: bytes) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def zip_bomb(name: str, member: str, content: bytes, claimed: int) -> Make:
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


def npz(**arrays: Any) -> Make:
    return lambda folder: np.savez(folder / "data.npz", **arrays)


def probe(data: str) -> list[str]:
    return ["probe", OWN, "--data", data, "--clean"]


X, Y = np.zeros((10, 8, 8), np.uint8), np.arange(10)
NPZ, FOLDER = "npz:data.npz", "folder:data"


def images(*broken: Make, sizes: tuple[int, ...] = (8,), splits: tuple[str, ...] = ("test",)) -> Make:
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


def link(name: str, target: str) -> Make:
    return lambda folder: (folder / name).symlink_to(target)


def bomb_npy(shape: tuple[int, ...]) -> bytes:
    header = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def npz_of(members: dict[str, bytes], name: str = "data.npz") -> Make:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)

    return make


def listing(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: files with their content, links with their target, folders and others with None."""
    found: dict[str, bytes | str | None] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            is_link = path.is_symlink()
            found[str(path)] = str(path.readlink()) if is_link else path.read_bytes() if path.is_file() else None
    return found


def ends_in_one_line(code: int, err: str, says: str) -> None:
    noted = f" {RANDOM_WEIGHTS}\n"  # of ``OWN``, before the error
    err = "".join(line for line in err.splitlines(keepends=True) if not line.endswith(noted))
    assert code in (1, 2), err
    assert err.startswith("ccf: ")
    assert err.count("\n") == 1, err
    assert says in err
    assert len(err) < 1500, len(err)
