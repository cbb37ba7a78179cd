"""Adversarial training as public code does it: what the speed of ``loop`` is measured against, and checked with.

Float32 in PyTorch's own memory order; images from a DataLoader that augments them one by one on the CPU; attacks that
compute the weights' gradients too; a further clean pass for the training accuracy; RA and C by attacks of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ccf_plugin.probe import CrossClassProbe, CrossClassResult
from ccf_plugin.threat import ThreatModel
from ccf_plugin.training.batches import TrainingBatches

Batches = Iterable[tuple[Tensor, Tensor]]


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """The images of an epoch in its order, each cropped and flipped by itself: (C, H, W) float32 in [0, 1], label.

    They are what ``batches.epoch(epoch)`` gives, in another way.
    """

    def __init__(self, batches: TrainingBatches, epoch: int) -> None:
        self._batches = batches
        self._draws = batches.draws(epoch)

    def __len__(self) -> int:
        return len(self._batches.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        row, padding = int(self._draws.order[position]), self._batches.padding
        image = self._batches.images[self._draws.order[position : position + 1]][0].float() / 255
        height, width = image.shape[1:]
        top, left = (int(shift) + padding for shift in self._draws.shifts[position])
        padded = F.pad(image.unsqueeze(0), (padding,) * 4, mode="reflect")[0]
        image = padded[:, top : top + height, left : left + width]
        if self._draws.flips[position]:
            image = image.flip(2)
        if self._batches.cutout:
            image = image.clone()
            first = [int(centre) - self._batches.cutout // 2 for centre in self._draws.centres[position]]
            rows, columns = (slice(max(start, 0), max(start + self._batches.cutout, 0)) for start in first)
            image[:, rows, columns] = 0
        return image, int(self._batches.labels[row])


def augmented_loader(batches: TrainingBatches, epoch: int, *, workers: int = 2) -> DataLoader[tuple[Tensor, int]]:
    """An epoch's batches, loaded by ``workers`` processes."""
    return DataLoader(
        AugmentedImages(batches, epoch),
        batch_size=batches.batch_size,
        num_workers=workers,
        generator=torch.Generator(),  # its own, so that the attack's random start is that of the other loop
    )


def pgd(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """PGD in Linf from a random start, by ``loss.backward()``: the weights' gradients are computed and thrown away.

    Images are float (N, C, H, W) in [0, 1]. One step is Fast-AT's attack (Wong et al. 2020).
    """
    noise = torch.empty_like(images).uniform_(-threat.eps, threat.eps)
    adversarial = (images + noise).clamp(0, 1)
    for _ in range(threat.steps):
        adversarial.requires_grad_()
        F.cross_entropy(model(adversarial), labels).backward()  # type: ignore[no-untyped-call]
        assert adversarial.grad is not None  # noqa: S101  (of a leaf, after backward)
        moved = adversarial.detach() + threat.step_size * adversarial.grad.sign()
        adversarial = (images + (moved - images).clamp(-threat.eps, threat.eps)).clamp(0, 1).detach()
        model.zero_grad()
    return adversarial


def training_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Batches,
    threat: ThreatModel,
    *,
    attack_mode: Literal["train", "eval"] = "train",
) -> Iterator[float]:
    """The loss of each step of Madry et al. (2018), one step for each batch that is asked for."""
    device = next(model.parameters()).device
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        model.train(attack_mode == "train")
        adversarial = pgd(model, images, labels, threat)
        model.train()
        loss = F.cross_entropy(model(adversarial), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.eval()
        with torch.no_grad():
            (model(images).argmax(1) == labels).sum().item()  # towards the training accuracy
        yield loss.item()


@dataclass(frozen=True)
class Evaluation:
    """Accuracies as fractions, and the result with C and CAS."""

    clean_accuracy: float
    robust_accuracy: float
    cross_class: CrossClassResult


def evaluate(model: nn.Module, loader: Batches, threat: ThreatModel) -> Evaluation:
    """Clean accuracy, RA and C, each by a pass of its own over the loader."""
    model.eval()
    return Evaluation(
        _accuracy(model, loader, None),
        _accuracy(model, loader, threat),
        _cross_class(model, loader, threat),
    )


def _accuracy(model: nn.Module, loader: Batches, threat: ThreatModel | None) -> float:
    device, correct, count = next(model.parameters()).device, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        if threat is not None:
            images = pgd(model, images, labels, threat)
        with torch.no_grad():
            correct += int((model(images).argmax(1) == labels).sum())
        count += len(labels)
    return correct / count


def _cross_class(model: nn.Module, loader: Batches, threat: ThreatModel) -> CrossClassResult:
    device = next(model.parameters()).device
    with CrossClassProbe(model, inputs="adversarial") as probe:
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            adversarial = pgd(model, images, labels, threat)
            with torch.no_grad():
                model(adversarial)
            probe.update(labels)
        return probe.compute()
