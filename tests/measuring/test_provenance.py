"""What a measurement depends on: hashes against plain ones, and what two provenances differ in, by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ccf_plugin.measuring.provenance import (
    conditions_hash,
    differences,
    fingerprint,
    images_fingerprint,
    in_words,
    name_parts,
    weights_fingerprint,
)
from ccf_plugin.zoo.datasets import Split
from ccf_plugin.zoo.streaming import StreamedImages

MEASURED: dict[str, Any] = {
    "model": None,
    "checkpoint": "runs/a/best.safetensors",
    "weights": "aa" * 8,
    "data": "digits",
    "images": "bb" * 8,
    "limit": None,
    "input_size": [3, 224, 224],
    "attack": {"attack": "PGD", "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20, "options": {}},
    "seed": 0,
    "precision": "float32",
    "instances": False,
    "device": "cpu",
    "command": ["ccf", "probe"],
}
OTHER_IMAGES = {"images": "cc" * 8}

CASES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "the command": ({"command": ["ccf", "-q", "probe"]}, [], ""),
    "the path of the same weights": ({"checkpoint": "copy.safetensors"}, [], ""),
    "the name of the same images": ({"data": "npz:digits.npz", "limit": 450, "device": "cuda"}, [], ""),
    "the seed": ({"seed": 2}, ["seed2"], "seed 0 there, 2 now"),
    "the precision": ({"precision": "bf16"}, ["bf16"], "precision float32 there, bf16 now"),
    "a limit": (OTHER_IMAGES | {"limit": 3}, ["limit3"], "other images; limit none there, 3 now"),
    "images changed in place": (OTHER_IMAGES, ["images-cccccccc"], "other images"),
    "other data": (OTHER_IMAGES | {"data": "npz:x.npz"}, ["npz_x"], "other images; data digits there, npz:x.npz now"),
    "images of another size": (
        OTHER_IMAGES | {"input_size": [3, 32, 32]},
        ["3x32x32"],
        "other images; input size 3×224×224 there, 3×32×32 now",
    ),
    "another checkpoint": (
        {"weights": "dd" * 8, "checkpoint": "runs/a/last.safetensors"},
        ["last"],
        "other weights; checkpoint runs/a/best.safetensors there, runs/a/last.safetensors now",
    ),
    "weights trained anew": ({"weights": "dd" * 8}, ["weights-dddddddd"], "other weights"),
    "instances": ({"instances": True}, ["instances"], "instances False there, True now"),
    "a head": ({"head": "branch.1"}, ["head-branch.1"], "head none there, branch.1 now"),
    "a step size": (
        {"attack": {**MEASURED["attack"], "step_size": 1 / 255}},
        ["step1of255"],
        "step size 2/255 there, 1/255 now",
    ),
    "an option of the attack": (
        {"attack": {**MEASURED["attack"], "options": {"random_start": False}}},
        ["no-random-start"],
        "random start none there, False now",
    ),
    "a setting that is not known here": (
        {"normalize": "cifar10"},
        ["normalize-cifar10"],
        "normalize none there, cifar10 now",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_differs_is_named(case: str) -> None:
    change, parts, words = CASES[case]
    now = MEASURED | change
    assert name_parts(MEASURED, now) == parts
    assert in_words(MEASURED, now) == words
    assert (differences(MEASURED, now) == {}) == (not parts)
    assert (conditions_hash(MEASURED) == conditions_hash(now)) == (not parts)


def test_of_two_sides_each_is_named() -> None:
    there, now = (
        {"first": MEASURED, "second": MEASURED},
        {"first": MEASURED, "second": MEASURED | {"weights": "dd" * 8}},
    )
    assert in_words(there, now) == "other weights of the second"
    assert name_parts(there, {"first": MEASURED | {"seed": 1}, "second": MEASURED | {"seed": 1}}) == ["seed1"]


def test_an_older_provenance_says_nothing_of_the_input_size() -> None:
    older = {name: value for name, value in MEASURED.items() if name != "input_size"}
    assert differences(older, MEASURED) == {}
    assert conditions_hash(older) == conditions_hash(MEASURED)
    assert in_words(older, MEASURED | OTHER_IMAGES) == "other images"
    assert name_parts(older, MEASURED | OTHER_IMAGES) == ["images-cccccccc"]


def test_a_field_that_one_lacks_is_none() -> None:
    assert differences(MEASURED, MEASURED | {"output": None}) == {}
    assert conditions_hash(MEASURED) == conditions_hash(MEASURED | {"output": None})


def _sha(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def test_hashes_are_those_of_the_bytes() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    names = sorted(model.state_dict())
    assert weights_fingerprint(model) == _sha(*(model.state_dict()[name].numpy().tobytes() for name in names))
    images, labels = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.tensor([1, 0])
    assert images_fingerprint(Split(images, labels)) == _sha(bytes(range(24)), np.array([1, 0]).tobytes())
    assert fingerprint([images.transpose(2, 3)]) == _sha(images.transpose(2, 3).numpy().tobytes())


def test_any_image_or_label_counts() -> None:
    """One among more than a thousand too."""
    images, labels = torch.zeros(1500, 1, 2, 2, dtype=torch.uint8), torch.zeros(1500, dtype=torch.int64)
    before = images_fingerprint(Split(images, labels))
    for tensor in (images, labels):
        changed = tensor.clone()
        changed[1400] = 1
        pair = (changed, labels) if tensor is images else (images, changed)
        assert images_fingerprint(Split(*pair)) != before


def test_images_on_disk_are_known_by_names_and_pixels(tmp_path: Path) -> None:
    def hash_in(folder: Path, names: str, shade: int) -> str:
        files = []
        for name in names:
            path = folder / name / "1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2), shade).save(path)
            files.append(path)
        return images_fingerprint(Split(StreamedImages.of(files, None), torch.zeros(len(files), dtype=torch.int64)))

    first = hash_in(tmp_path / "one", "ab", 7)
    assert hash_in(tmp_path / "moved", "ab", 7) == first
    assert hash_in(tmp_path / "named", "ac", 7) != first
    assert hash_in(tmp_path / "darker", "ab", 8) != first
