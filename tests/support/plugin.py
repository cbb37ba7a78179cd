"""A plug-in as a user would write it: a loss, a figure, data and models. This file is all that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccf_plugin import (
    METRICS,
    OBJECTIVES,
    Arrays,
    InputError,
    LoadedModel,
    Metric,
    Objective,
    Reader,
    Source,
    StepOutput,
    register_reader,
    register_source,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


def _check_size(name: str) -> None:
    if name not in ("small", "large"):
        raise InputError(f"expected mine:small or mine:large, found 'mine:{name}'")


def _build(name: str, *, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    channels, height, width = input_size
    hidden = {"small": 4, "large": 8}[name]
    features = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, hidden), nn.ReLU())
    return nn.Sequential(features, nn.Linear(hidden, num_classes))


def _load(name: str, *, pretrained: bool, checkpoint: Path | None, model_dir: Path) -> LoadedModel:
    network = _build(name, num_classes=3, input_size=(1, 5, 6), options={})
    return LoadedModel(network.float().eval(), f"mine:{name}", name, num_classes=3, data="dots:6")


def _check_count(name: str) -> None:
    if not name.isdecimal():
        raise InputError(f"expected a number of images in dots:COUNT, found {name!r}")


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> Arrays:
    import numpy as np

    labels = np.arange(int(name)) % 3
    images = np.zeros((len(labels), 5, 6), dtype=np.uint8)
    images[np.arange(len(labels)), labels, labels] = 255
    return Arrays({"train": (images, labels), "test": (images, labels)}, classes=("left", "middle", "right"))


def halved(forward: Any, images: Tensor, adversarial: Tensor, labels: Tensor, *, beta: float = 0.5) -> StepOutput:
    """(1 − β) · CE(f(x'), y) + β · CE(f(x), y)."""
    from torch.nn.functional import cross_entropy

    logits = forward(adversarial)
    loss = (1 - beta) * cross_entropy(logits, labels) + beta * cross_entropy(forward(images), labels)
    return StepOutput(loss, logits)


OBJECTIVES["halved"] = Objective(halved, "half clean, half adversarial cross-entropy", beta=0.5, takes_smoothing=False)
METRICS.append(Metric("largest", "largest C", ".3f", lambda result: result.top_pairs(1)[0][2], axis="largest C"))
register_source(Source("mine", "mine:SIZE", _check_size, _load, _build))
register_reader(Reader("dots", "dots:COUNT", _read, _check_count))
