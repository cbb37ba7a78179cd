"""Run folders as training writes them, without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.layout import AVERAGE
from ccf_plugin.runs.log import EpochRow, log_bytes
from ccf_plugin.training.recipe_files import load_recipe

WriteRun = Callable[..., Path]
THREAT = {
    "attack": "PGD",
    "norm": "Linf",
    "eps": 8 / 255,
    "step_size": 2 / 255,
    "steps": 20,
    "seed": 0,
    "precision": "float32",
}
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def matrix_at(epoch: int, classes: int, peak: int) -> np.ndarray:
    """A symmetric matrix of ones on the diagonal whose shared parts grow until ``peak`` and then shrink."""
    rng = np.random.default_rng(classes)
    features = rng.normal(size=(classes, 8)) * 0.6
    share = 1.0 - abs(epoch - peak) / (2.0 * peak + 200.0)
    cosine = features @ features.T
    scale = np.sqrt(np.diagonal(cosine))
    matrix = np.asarray(cosine / np.outer(scale, scale) * share)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def confusion_at(epoch: int, classes: int, images: int, accuracy: float) -> np.ndarray:
    """So many images of each class, of which ``accuracy`` are right, more or less; the rest lies with neighbours."""
    rng = np.random.default_rng(epoch)
    shares = np.array([[0.5 ** min(abs(i - j), 6) for j in range(classes)] for i in range(classes)])
    np.fill_diagonal(shares, 0.0)
    accuracy = max(accuracy, 0.0)
    shares = (1 - accuracy) * shares / shares.sum(1, keepdims=True) + accuracy * np.eye(classes)
    return np.stack([rng.multinomial(images, row) for row in shares])


def _records(epoch: int, accuracy: float, count: int) -> np.ndarray:
    """Which images are right: those that are easy for this epoch, which are mostly those that are easy for all."""
    rng = np.random.default_rng(epoch)
    difficulty = np.random.default_rng(0).normal(size=count) + 0.3 * rng.normal(size=count)
    return np.asarray(difficulty <= np.quantile(difficulty, max(accuracy, 0.0)))


@pytest.fixture(scope="session")
def write_run(tmp_path_factory: pytest.TempPathFactory) -> WriteRun:
    """Write a run: ``write_run("name", recipe="preact_linf", epochs=12, every=2)``; see the keywords."""

    def write(
        name: str,
        *,
        recipe: str = "preact_linf",
        overrides: tuple[str, ...] = (),
        epochs: int = 12,
        every: int = 1,
        best: int = 6,
        classes: tuple[str, ...] = CIFAR,
        count: int = 1000,
        averaged: bool = False,
        threat: dict[str, object] | None = THREAT,
        missing: int | None = None,
        parent: Path | None = None,
        evidence: bool = False,
    ) -> Path:
        folder = (parent or tmp_path_factory.mktemp("runs")) / name
        (folder / "probe").mkdir(parents=True)
        loaded = load_recipe(recipe, [*overrides, f"optim.epochs={epochs}"])
        (folder / "recipe.toml").write_text(loaded.as_toml())
        (folder / "environment.json").write_text(json.dumps({"command": ["ccf", "train"], "versions": {"torch": "2"}}))
        rows = []
        for epoch in range(1, epochs + 1):
            measured = epoch % every == 0
            result = CrossClassResult(
                matrix=matrix_at(epoch, len(classes), best),
                class_attribution=np.zeros((len(classes), 1)),
                counts=np.full(len(classes), count // len(classes)),
                class_names=classes,
                data={"name": "cifar10", "split": "test", "count": count},
                threat=threat,
            )
            if missing is not None:
                result.matrix[missing] = result.matrix[:, missing] = np.nan
            ra = 0.48 - abs(epoch - best) * 0.3 / epochs
            more = {}
            if evidence:
                correct = _records(epoch, ra, count)
                clean = confusion_at(epoch, len(classes), count // len(classes), 0.8)
                adversarial = confusion_at(epoch, len(classes), count // len(classes), ra)
                result = replace(result, confusion_clean=clean, confusion_adversarial=adversarial, correct=correct)
                chance = 0.4 * result.cas
                more = {"cas_null": chance, "cas_excess": result.cas - chance}
                more |= {"shared": 0.9 * result.cas / epoch, "squared_lengths": 1.1 + 2.0 / epoch, "robust_fall_p": 0.5}
                more = more if measured else {}
                ra = float(correct.mean())
            overfitted = "robust overfitting; CAS falling" if measured and epoch > best + every else ""
            row = EpochRow(
                epoch=epoch,
                lr=0.1,
                train_loss=2.0,
                train_robust_accuracy=0.3 + 0.4 * epoch / epochs if loaded.objective.is_adversarial else None,
                test_clean_accuracy=0.7 + 0.1 * epoch / epochs if measured else None,
                test_robust_accuracy=ra if measured else None,
                cas=result.cas if measured else None,
                instance_cas=None,
                seconds=1.0,
                images_per_second=1.0,
                alarm=overfitted,
                test_clean_accuracy_average=0.8 if averaged and measured else None,
                test_robust_accuracy_average=ra + 0.01 if averaged and measured else None,
                cas_average=result.cas if averaged and measured else None,
                figures=more,
            )
            rows.append(row)
            for suffix in ("", *([AVERAGE] if averaged else [])) if measured else ():
                result.save(folder / "probe" / f"{epoch:03}{suffix}")
        (folder / "log.csv").write_bytes(log_bytes(rows, averaged=averaged, validated=False))
        return folder

    return write
