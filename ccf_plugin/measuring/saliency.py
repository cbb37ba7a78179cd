"""What one model sees and another no longer does: saliency of adversarial examples, and features that classes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ccf_plugin.engine.modes import evaluation_mode, seeded
from ccf_plugin.errors import Fault, InputError, UnavailableError, check_at_least
from ccf_plugin.measuring.compare import check_alike
from ccf_plugin.measuring.evaluate import Progress
from ccf_plugin.measuring.gradcam import Layer, find_layer, grad_cam
from ccf_plugin.measuring.subject import Subject
from ccf_plugin.probe import CrossClassProbe
from ccf_plugin.probe.classes import class_index
from ccf_plugin.probe.trace import GRADIENT
from ccf_plugin.threat import threat_sentence
from ccf_plugin.zoo.attacks import Attack

_BATCH = 50


@dataclass(frozen=True)
class View:
    """A model's view of an adversarial example of its own: the image, what it takes it for, where it looks."""

    image: Tensor  # (C, H, W) float in [0, 1]
    predicted: int
    saliency: Tensor  # (H, W) in [0, 1], Grad-CAM of the true class


@dataclass(frozen=True)
class Example:
    """A test image, its place in the test split, its class, and both models' views."""

    index: int
    label: int
    image: Tensor  # (C, H, W) float in [0, 1]
    best: View
    last: View


@dataclass(frozen=True)
class SharedFeature:
    """A feature that two classes share, and the test images that excite it most, strongest first."""

    feature: int  # a column of g
    share: float  # of C[i, j]
    images: tuple[int, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class SharedFeatures:
    """Two classes, C[i, j] of theirs, and the features that carry most of it, largest share first."""

    pair: tuple[int, int]
    correlation: float
    features: tuple[SharedFeature, ...]

    def heading(self, classes: Sequence[str]) -> str:
        """The two classes and what they share, such as "cat – dog: C = 0.60"."""
        i, j = self.pair
        return f"{classes[i]} – {classes[j]}: C = {self.correlation:.2f}"


@dataclass(frozen=True)
class Saliency:
    """Examples of what two models see, and what the first shares between two classes where that was asked for."""

    examples: tuple[Example, ...]
    models: tuple[str, str]
    classes: tuple[str, ...]
    data: str
    threat: Mapping[str, Any] | None
    shared: SharedFeatures | None = None

    @property
    def attack(self) -> str:
        """What made the images, in words."""
        sentence = threat_sentence(self.threat)
        return sentence if self.threat is None else f"attack: {sentence}, on each model itself"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without pixels."""
        described: dict[str, Any] = {
            "models": list(self.models),
            "threat": None if self.threat is None else dict(self.threat),
            "data": self.data,
            "examples": [
                {
                    "index": example.index,
                    "class": self.classes[example.label],
                    "best": self.classes[example.best.predicted],
                    "last": self.classes[example.last.predicted],
                }
                for example in self.examples
            ],
        }
        if self.shared is not None:
            described["pair"] = {
                "classes": [self.classes[index] for index in self.shared.pair],
                "correlation": self.shared.correlation,
                "features": [vars(feature) for feature in self.shared.features],
            }
        return described


def saliency(
    best: Subject,
    last: Subject,
    *,
    count: int = 6,
    class_name: str | int | None = None,
    indices: Sequence[int] | None = None,
    pair: tuple[str | int, str | int] | None = None,
    features: int = 5,
    layer: str | None = None,
    progress: Callable[[str], Progress] = lambda _: lambda batches, _: batches,
) -> Saliency:
    """Adversarial examples that ``best`` classifies right and ``last`` wrong (Section 3.3), and where both look.

    Each model is attacked itself. The first ``count`` such test images are taken, class by class in turn.

    Args:
        class_name: only images of this class, by name or index.
        indices: these images instead, however the models classify them.
        pair: two classes, by name or index: also what they share in ``best`` (``shared_features``).
        features: how many features of the pair.
        layer: the layer to explain, where its own choice (``gradcam.find_layer``) is not wanted.
        progress: told what is done, gives what wraps the batches.

    Raises:
        InputError: models measured on other data or by other attacks, a model without a convolution or grid of
            tokens, an unknown class, an index outside the test split; a class beside indices.
        UnavailableError: no such image, or captum is not installed.
    """
    check_alike(best, last)
    sides, classes, split = (best, last), best.data.classes, best.data.split
    if class_name is not None and indices is not None:
        raise InputError(Fault("", "{class_name} or {indices}", "both", "{indices} names the images itself"))
    label = None if class_name is None else class_index(classes, class_name, key="class_name")
    for name in pair or ():
        class_index(classes, name, key="pair")  # before anything is attacked
    beyond = [index for index in indices or () if not 0 <= index < len(split)]
    if beyond:
        raise InputError(
            Fault("indices", f"numbers from 0 to {len(split) - 1} ({len(split)} test images)", str(beyond[0]))
        )
    check_at_least(1, count=count, features=features)
    layers = [find_layer(side.forward(), _images(side, range(2)), layer) for side in sides]
    rows = list(indices) if indices is not None else _class_by_class(best, label)
    attacked = _attacked(sides, rows, progress("attacking"))
    if indices is None:
        attacked = islice((row for row in attacked if row.only_best_is_right), count)
    chosen = list(attacked)
    if not chosen:
        expected = "test images that the first model classifies right under attack and the second wrong"
        suffix = "" if label is None else f" of class {classes[label]!r}"
        remedy = "take more images, another class, or name some by {indices}"
        raise UnavailableError(Fault("", expected, f"no test image{suffix} among {len(rows)}", remedy))
    shown = [row.index for row in chosen]
    labels = split.labels[shown]
    views = [
        _views(side, torch.stack([row.images[place] for row in chosen]), labels, layers[place])
        for place, side in enumerate(sides)
    ]
    examples = map(Example, shown, labels.tolist(), _images(best, shown).cpu(), *views)
    shared = None
    if pair is not None:
        shared = shared_features(best, pair, count=features, progress=progress("measuring what the classes share"))
    models = best.loaded.spec, last.loaded.spec
    return Saliency(tuple(examples), models, classes, best.data.name, best.describe_attack(), shared)


def shared_features(
    subject: Subject,
    pair: tuple[str | int, str | int],
    *,
    count: int = 5,
    images: int = 8,
    progress: Progress = lambda batches, _: batches,
) -> SharedFeatures:
    """The features that carry most of C[i, j] under the attack, and the (clean) test images that excite each most.

    Args:
        pair: two classes by name or index.
        count: how many features.
        images: how many images of each.

    Raises:
        InputError: as ``CrossClassResult.shared_features`` and ``Subject.measure``.
    """
    i, j = (class_index(subject.data.classes, name, key="pair") for name in pair)
    result = subject.measure(progress=progress)
    shares = result.shared_features(i, j, count=count)
    columns = [feature for feature, _ in shares]
    model, options, activations = subject.loaded.model, subject.probe, []
    with (
        CrossClassProbe(model, head=options.head, output=options.output) as probe,
        evaluation_mode(model),
        torch.set_grad_enabled(options.head == GRADIENT),
    ):
        for batch, _ in subject.data.split.batches(subject.batch_size, subject.device):
            model(batch)
            activations.append(probe.features()[:, columns].float().cpu())
    excited = torch.cat(activations)
    top = excited.topk(min(images, len(excited)), dim=0)
    features = [
        SharedFeature(feature, share, tuple(top.indices[:, place].tolist()), tuple(top.values[:, place].tolist()))
        for place, (feature, share) in enumerate(shares)
    ]
    return SharedFeatures((i, j), float(result.matrix[i, j]), tuple(features))


@dataclass(frozen=True)
class _Attacked:
    """A test image under each model's own attack."""

    index: int
    images: tuple[Tensor, Tensor]  # (C, H, W)
    only_best_is_right: bool


def _attacked(sides: tuple[Subject, Subject], rows: list[int], progress: Progress) -> Iterator[_Attacked]:
    attacks = [side.build_attack() for side in sides]
    parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    for number, part in enumerate(progress(parts, len(parts))):
        best, last = (_crafted(side, attack, part, number) for side, attack in zip(sides, attacks, strict=True))
        labels = sides[0].data.split.labels[part].to(best.device)
        right = (_predict(sides[0], best) == labels) & (_predict(sides[1], last) != labels)
        for index, *images, is_right in zip(part, best, last, right.tolist(), strict=True):
            yield _Attacked(index, (images[0], images[1]), is_right)


def _crafted(side: Subject, attack: Attack | None, rows: list[int], number: int) -> Tensor:
    """The images of these rows under a model's own attack, (N, C, H, W); ``number`` counts the batches."""
    images = _images(side, rows)
    if attack is None or side.attack is None:
        return images
    with evaluation_mode(side.loaded.model), seeded(side.attack.seed + number, side.device):
        return attack(images, side.data.split.labels[rows].to(side.device))


def _views(side: Subject, images: Tensor, labels: Tensor, layer: Layer) -> list[View]:
    predicted = _predict(side, images).tolist()
    maps = grad_cam(side.forward(), images, labels.to(images.device), layer)
    return [View(*view) for view in zip(images.cpu(), predicted, maps.cpu(), strict=True)]


def _predict(side: Subject, images: Tensor) -> Tensor:
    with evaluation_mode(side.loaded.model), torch.no_grad():
        logits: Tensor = side.forward()(images)
    return logits.argmax(1)


def _images(side: Subject, rows: Iterable[int]) -> Tensor:
    """The test images of these rows that there are, (N, C, H, W) float in [0, 1] on the model's device."""
    inside = torch.tensor([row for row in rows if row < len(side.data.split)], dtype=torch.int64, device="cpu")
    return side.data.split.images[inside].to(side.device).float() / 255


def _class_by_class(side: Subject, label: int | None) -> list[int]:
    """The images of a class, or of all: then the first of each class, the second of each, …"""
    labels = side.data.split.labels
    if label is not None:
        return torch.nonzero(labels == label).squeeze(1).tolist()
    onehot = torch.nn.functional.one_hot(labels, len(side.data.classes))
    nth = (onehot.cumsum(0) * onehot).sum(1)
    return torch.argsort(nth, stable=True).tolist()
