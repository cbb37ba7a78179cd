"""What `update` accumulates: per-class sums on the features' device, and flags for what is wrong with a batch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import accumulator_dtype, class_means

_NO_BATCH = torch.iinfo(torch.int64).max


@dataclass
class Sums:
    """Sums over samples, (K, n) and (K,). Nothing but `checked_means` synchronises with the host."""

    attributions: Tensor  # (K, n), float64 where the device has it
    counts: Tensor  # (K,) int64
    correct: Tensor  # () int64
    clean_correct: Tensor  # () int64: of the same samples before the attack, where a clean pass was made
    bad_label_batch: Tensor  # () int64: the first batch with such a fault
    not_finite_batch: Tensor
    missed_batch: Tensor  # () int64: the first batch whose logits were not the head's
    largest_miss: Tensor  # () : by how much they were not, relative to the largest logit
    refits: Tensor  # () int64: batches in which the factors of several parts were not those of the first pass
    batches: int = 0
    clean_batches: int = 0

    @classmethod
    def zeros(cls, shape: tuple[int, int], device: torch.device) -> Sums:
        """Nothing seen yet, for (K, n) = ``shape``."""
        number = torch.zeros((), dtype=torch.int64, device=device)
        return cls(
            attributions=torch.zeros(shape, dtype=accumulator_dtype(device), device=device),
            counts=torch.zeros(shape[0], dtype=torch.int64, device=device),
            correct=number,
            clean_correct=number.clone(),
            bad_label_batch=number + _NO_BATCH,
            not_finite_batch=number + _NO_BATCH,
            missed_batch=number + _NO_BATCH,
            largest_miss=torch.zeros((), dtype=accumulator_dtype(device), device=device),
            refits=number.clone(),
        )

    def within_classes(self, labels: Tensor) -> Tensor:
        """The next batch's labels; those outside 0..K-1 become 0, and are noted to be raised by `checked_means`."""
        valid = (labels >= 0) & (labels < len(self.counts))
        _note_first(self.bad_label_batch, ~valid.all(), self.batches)
        return torch.where(valid, labels, 0)

    def add(
        self,
        attributions: Tensor,
        labels: Tensor,
        predicted: Tensor | None,
        clean_predicted: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            attributions: A(x), (N, n) of the sums' dtype.
            labels: (N,) int64 in 0..K-1.
            predicted: (N,) int64, or None where the model's output has other classes.
            clean_predicted: the same of the clean images, where there was such a pass.
        """
        _note_first(self.not_finite_batch, ~torch.isfinite(attributions).all(), self.batches)
        self.attributions.index_add_(0, labels, attributions)
        self.counts.index_add_(0, labels, torch.ones_like(labels))
        if predicted is not None:
            self.correct += (predicted == labels).sum()
        if clean_predicted is not None:
            self.clean_correct += (clean_predicted == labels).sum()
            self.clean_batches += 1
        self.batches += 1

    def check(self, missed: Tensor, error: Tensor, refitted: Tensor) -> None:
        """Note of the next batch whether its logits were the head's, () bool, and how far off they were."""
        _note_first(self.missed_batch, missed, self.batches)
        largest = torch.maximum(self.largest_miss, error.to(self.largest_miss.dtype))
        self.largest_miss.copy_(torch.where(missed, largest, self.largest_miss))
        self.refits += refitted

    def to(self, device: torch.device) -> Sums:
        """These sums on another device, where the model went."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)

    def has_bad_labels(self) -> Tensor:
        """Whether any batch had a label outside 0..K-1, () bool; nothing synchronises."""
        return self.bad_label_batch != _NO_BATCH

    def has_not_finite(self) -> Tensor:
        """Whether any batch had NaN or infinite features, () bool."""
        return self.not_finite_batch != _NO_BATCH

    def has_missed(self) -> Tensor:
        """Whether any batch had logits that were not the head's, () bool."""
        return self.missed_batch != _NO_BATCH

    def checked_means(self, head: str = "", reason: str = "") -> Tensor:
        """The class attribution, (K, n) float64 on the CPU.

        Args:
            head: its name, and why no other was found, for the message where a batch's logits were not its.

        Raises:
            InputError: nothing was added, or a batch had a label outside 0..K-1, NaN or infinite features, or logits
                that were not the head's.
        """
        if not self.counts.any():
            raise InputError(NOTHING_ADDED)
        classes = len(self.counts)
        if (batch := int(self.bad_label_batch)) != _NO_BATCH:
            raise InputError(f"expected labels in 0..{classes - 1}, found others in batch {batch} (counted from 0)")
        if (batch := int(self.not_finite_batch)) != _NO_BATCH:
            raise InputError(
                f"expected finite features, found NaN or infinity in batch {batch} (counted from 0); "
                "check the weights and the learning rate"
            )
        if (batch := int(self.missed_batch)) != _NO_BATCH:
            raise InputError(
                f"expected g Wᵀ and one constant row of head {head!r} to be the logits in every counted pass, found "
                f"them off by {float(self.largest_miss):.1e} of the largest logit, first in batch {batch} (counted "
                f"from 0){f': {reason}' if reason else ''}; call reset(), after which the head is looked for anew"
            )
        return class_means(self.attributions.cpu().double(), self.counts.cpu())


NOTHING_ADDED = "expected at least one update before compute, found none; run a pass, then update(labels)"


def check_labels(labels: object, rows: int) -> None:
    """Labels must be (rows,) integers; their values are looked at later, on the device.

    Raises:
        InputError: they are of another form or number.
    """
    if not isinstance(labels, Tensor):
        raise InputError(f"expected labels as an integer tensor of shape ({rows},), found {type(labels).__name__}")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(
            f"expected labels of shape ({rows},) and an integer dtype, found {tuple(labels.shape)} {labels.dtype}; "
            "attribution needs the one true class of each sample (one-hot labels: pass labels.argmax(1); mixed "
            "labels have no true class)"
        )
    if len(labels) != rows:
        raise InputError(f"expected {rows} labels, one per sample of the pass, found {len(labels)}; see rows=")


def _note_first(flag: Tensor, happened: Tensor, batch: int) -> None:
    flag.copy_(torch.minimum(flag, torch.where(happened, batch, _NO_BATCH)))
