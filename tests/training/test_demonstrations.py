"""The demonstrations that run in minutes on two cores, as a user types them, on real CIFAR-10 images."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from support.commands import run

from ccf_plugin.runs.log import EpochRow, read_log

TRAIN, TEST = 200, 100  # images a class: what the recipes take


@pytest.fixture
def images(outside_data: Path, tmp_path: Path) -> Path:
    """train/<class>/NNNN.jpg and test/<class>/NNNN.jpg, as many as the recipes ask for."""
    folder = tmp_path / "cifar10"
    with tarfile.open(outside_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            split, _, name = Path(member.name).parts[-3:] if member.isfile() else ("", "", "")
            if name and int(Path(name).stem) < (TRAIN if split == "train" else TEST):
                archive.extract(member, folder, filter="data")
    (train,) = folder.rglob("train")
    assert len(list(train.rglob("*.jpg"))) == 10 * TRAIN
    return train.parent


def _trained(recipe: str, images: Path, folder: Path) -> list[EpochRow]:
    command = ("train", recipe, "--set", f"data.name=folder:{images}", "--set", "threads=1", "--out", "run")
    code, _, err = run(*command, cwd=folder, seconds=3600)
    assert code == 0, err
    return read_log(folder / "run")


@pytest.mark.slow
def test_robust_overfitting(images: Path, tmp_path: Path) -> None:
    rows = _trained("overfit_small", images, tmp_path)
    best = max(rows, key=lambda row: row.test_robust_accuracy or 0)
    last = rows[-1]
    assert best.epoch < 30
    assert (best.test_robust_accuracy or 0) - (last.test_robust_accuracy or 1) > 0.05
    assert (last.train_robust_accuracy or 0) > 0.5
    assert (best.cas or 0) - (last.cas or 90) > 1
    assert "robust overfitting" in last.alarm


@pytest.mark.slow
def test_catastrophic_overfitting(images: Path, tmp_path: Path) -> None:
    rows = _trained("overfit_small_fast", images, tmp_path)
    assert max(row.test_robust_accuracy or 0 for row in rows) > 0.1
    assert (rows[-1].test_robust_accuracy or 1) < 0.05
    assert (rows[-1].cas or 90) < (rows[0].cas or 0)
