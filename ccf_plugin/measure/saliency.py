"""What one model sees and another no longer does: saliency of adversarial examples, and features that classes share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.modes import evaluation_mode, seeded
from ccf_plugin.errors import InputError, UnavailableError, did_you_mean
from ccf_plugin.measure.compare import check_alike
from ccf_plugin.measure.evaluate import Progress
from ccf_plugin.measure.gradcam import find_layer, grad_cam
from ccf_plugin.measure.subject import Subject
from ccf_plugin.probe import CrossClassProbe, CrossClassResult
from ccf_plugin.probe.head import find_logits
from ccf_plugin.probe.trace import GRADIENT
from ccf_plugin.zoo.attacks import Attack, build_attack

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


def saliency(
    best: Subject,
    last: Subject,
    *,
    count: int = 6,
    label: int | None = None,
    indices: Sequence[int] | None = None,
    layer: str | None = None,
    progress: Progress = lambda batches, _: batches,
) -> list[Example]:
    """Adversarial examples that ``best`` classifies right and ``last`` wrong (Section 3.3), and where both look.

    Each model is attacked itself. The first ``count`` such test images are taken, class by class in turn.

    Args:
        label: only images of this class.
        indices: these images instead, whatever the models make of them.
        layer: the layer to explain, where its own choice (``gradcam.find_layer``) is not wanted.

    Raises:
        InputError: models measured on other data or by other attacks, a model without a convolution or grid of
            tokens, an index outside the test split.
        UnavailableError: no such image, or captum is not installed.
    """
    check_alike(best, last)
    total = len(best.test)
    beyond = [index for index in indices or () if not 0 <= index < total]
    if beyond:
        raise InputError(f"--indices: expected numbers from 0 to {total - 1} ({total} test images), found {beyond[0]}")
    if count < 1:
        raise InputError(f"--count: expected at least 1, found {count}")
    layers = []
    for subject in (best, last):
        images, _ = _images(subject, range(2))
        layers.append(find_layer(subject.loaded.model, images, layer, output=subject.choices.output))
    if indices is not None:
        wanted, chosen = list(indices), True
    else:
        wanted, chosen = _of_class(best, label), False
    found: list[tuple[int, Tensor, Tensor]] = []
    attacks = (_attack(best), _attack(last))
    parts = [wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH)]
    for number, part in enumerate(_shown(parts, progress)):
        crafted = []
        for subject, attack in zip((best, last), attacks, strict=True):
            crafted.append(_crafted(subject, attack, part, subject.choices.seed + number))
        right, wrong = crafted[0][1] == crafted[0][2], crafted[1][1] != crafted[1][2]
        for place, index in enumerate(part):
            if chosen or bool(right[place] & wrong[place]):
                found.append((index, crafted[0][0][place], crafted[1][0][place]))
        if not chosen and len(found) >= count:
            found = found[:count]
            break
    if not found:
        of_class = "" if label is None else f" of class {best.classes[label]!r}"
        raise UnavailableError(
            f"found no test image{of_class} among {len(wanted)} that the first model classifies right under attack and "
            "the second wrong; take more images, another class, or name some with --indices"
        )
    labels = best.test.labels[[index for index, *_ in found]]
    views = []
    for subject, chosen_layer, side in zip((best, last), layers, (1, 2), strict=True):
        attacked = torch.stack([entry[side] for entry in found])  # type: ignore[misc]
        predicted = _predict(subject, attacked)
        model, output = subject.loaded.model, subject.choices.output
        maps = grad_cam(model, attacked, labels.to(attacked.device), chosen_layer, output=output)
        views.append([View(*view) for view in zip(attacked.cpu(), predicted.tolist(), maps.cpu(), strict=True)])
    originals, _ = _images(best, [index for index, *_ in found])
    return [
        Example(index, int(of_class_), image, *pair)
        for (index, *_), of_class_, image, *pair in zip(found, labels, originals.cpu(), *views, strict=True)
    ]


def shared_features(
    subject: Subject,
    pair: tuple[str | int, str | int],
    *,
    count: int = 5,
    images: int = 8,
    progress: Progress = lambda batches, _: batches,
) -> tuple[CrossClassResult, list[SharedFeature]]:
    """The features that carry most of C[i, j] under the attack, and the (clean) test images that excite each most.

    Args:
        pair: two classes by name or index.
        count: how many features.
        images: how many images of each.

    Raises:
        InputError: as ``CrossClassResult.shared_features`` and ``Subject.measure``.
    """
    result = subject.measure(progress=progress)
    shares = result.shared_features(*pair, count=count)
    columns = [feature for feature, _ in shares]
    model, activations = subject.loaded.model, []
    choices = subject.choices
    with (
        CrossClassProbe(model, head=choices.head, output=choices.output) as probe,
        evaluation_mode(model),
        torch.set_grad_enabled(choices.head == GRADIENT),
    ):
        for batch, _ in subject.test.batches(choices.batch_size, subject.device):
            model(batch)
            activations.append(probe.features()[:, columns].float().cpu())
    excited = torch.cat(activations)
    top = excited.topk(min(images, len(excited)), dim=0)
    return result, [
        SharedFeature(feature, share, tuple(top.indices[:, place].tolist()), tuple(top.values[:, place].tolist()))
        for place, (feature, share) in enumerate(shares)
    ]


def class_index(subject: Subject, wanted: str) -> int:
    """A class by its name or its number. Raises InputError with what is near."""
    if wanted in subject.classes:
        return subject.classes.index(wanted)
    numbers = [str(index) for index in range(len(subject.classes))]
    if wanted in numbers:
        return numbers.index(wanted)
    raise InputError(
        f"expected a class's name or its index below {len(subject.classes)}, found {wanted!r}"
        f"{did_you_mean(wanted, subject.classes)}"
    )


def describe(examples: Sequence[Example], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The examples as plain JSON values, without their pixels."""
    return [
        {
            "index": example.index,
            "class": classes[example.label],
            "best": classes[example.best.predicted],
            "last": classes[example.last.predicted],
        }
        for example in examples
    ]


def _of_class(subject: Subject, label: int | None) -> list[int]:
    """The images of a class, or of all: then the first of each class, the second of each, …"""
    labels = subject.test.labels
    if label is not None:
        return torch.nonzero(labels == label).squeeze(1).tolist()
    onehot = torch.nn.functional.one_hot(labels, len(subject.classes))
    nth = (onehot.cumsum(0) * onehot).sum(1)
    return torch.argsort(nth, stable=True).tolist()


def _images(subject: Subject, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
    rows = torch.tensor([index for index in indices if index < len(subject.test)], dtype=torch.int64)
    images = subject.test.images[rows].to(subject.device).float() / 255
    return images, subject.test.labels[rows].to(subject.device)


def _attack(subject: Subject) -> Attack | None:
    if subject.threat is None:
        return None
    model = Forward(subject.loaded.model, precision=subject.precision)
    return build_attack(subject.choices.attack, model, subject.threat, num_classes=len(subject.classes))


def _crafted(subject: Subject, attack: Attack | None, rows: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Adversarial images, what the model takes them for, what they are."""
    images, labels = _images(subject, rows)
    if attack is not None:
        with evaluation_mode(subject.loaded.model), seeded(seed, subject.device):
            images = attack(images, labels)
    return images, _predict(subject, images), labels


def _predict(subject: Subject, images: Tensor) -> Tensor:
    model = subject.loaded.model
    with evaluation_mode(model), torch.no_grad():
        logits = find_logits(model(images), subject.choices.output)
    assert logits is not None  # noqa: S101  (the layer was found by them)
    return logits.argmax(1)


def _shown(parts: list[list[int]], progress: Progress) -> Iterable[list[int]]:
    return progress(parts, len(parts))  # type: ignore[arg-type, return-value]
