"""What `update` accumulates: per-class sums on the features' device, and flags for what is wrong with a batch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import accumulator_dtype, class_means
from ccf_plugin.probe.instances import rank_in_class
from ccf_plugin.probe.jackknife import WithoutParts, number_of_parts

_CONFUSED_CLASSES = 2_000  # with more, the two confusion matrices would take more than 64 MB on the device
_NO_BATCH = torch.iinfo(torch.int64).max


@dataclass
class Sums:
    """Sums over samples. Nothing but `checked_means` synchronises with the host."""

    by_part: Tensor  # (K, G, n), A(x) of the images of a class, in G parts; float64 where the device has it
    counts_by_part: Tensor  # (K, G) int64
    # Of the passes that counted, and of the same samples before the attack, where a clean pass was made:
    correct: Tensor  # (2,) int64
    confusion: Tensor | None  # (2, K K) int64, row by row: true class, predicted class; None for too many classes
    loss: Tensor  # (2,) : Σ over samples of the cross-entropy
    logit_spread: Tensor  # () : Σ over samples of the variance of each one's logits over the classes
    first_faults: Tensor  # (3,) int64: the first batch with a label out of range, features not finite, logits missed
    largest_miss: Tensor  # () : by how much they were not, relative to the largest logit
    refits: Tensor  # () int64: batches in which the factors of several parts were not those of the first pass
    batches: int = 0
    clean_batches: int = 0

    @property
    def attributions(self) -> Tensor:
        """Σ A(x) by class, (K, n)."""
        return self.by_part.sum(1)

    @property
    def counts(self) -> Tensor:
        """Images by class, (K,) int64."""
        return self.counts_by_part.sum(1)

    @property
    def shape(self) -> tuple[int, int]:
        """(K, n)."""
        return self.by_part.shape[0], self.by_part.shape[2]

    @classmethod
    def zeros(cls, shape: tuple[int, int], device: torch.device) -> Sums:
        """Nothing seen yet, for (K, n) = ``shape``."""
        (classes, features), parts, wide = shape, number_of_parts(*shape), accumulator_dtype(device)

        def zeros(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return cls(
            by_part=zeros(classes, parts, features, dtype=wide),
            counts_by_part=zeros(classes, parts),
            correct=zeros(2),
            confusion=zeros(2, classes**2) if classes <= _CONFUSED_CLASSES else None,
            loss=zeros(2, dtype=wide),
            logit_spread=zeros(dtype=wide),
            first_faults=torch.full((3,), _NO_BATCH, dtype=torch.int64, device=device),
            largest_miss=zeros(dtype=wide),
            refits=zeros(),
        )

    def add(
        self,
        attributions: Tensor,
        labels: Tensor,
        *,
        logits: Tensor,
        is_bad: Tensor,
        clean: Tensor | None = None,
        check: tuple[Tensor, Tensor, Tensor] | None = None,
        first_part: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Add a batch; return which samples were classified right, (N,) bool, and before the attack where known.

        Args:
            attributions: A(x), (N, n) of the sums' dtype.
            labels: (N,) int64 in 0..K-1.
            logits: (N, K).
            is_bad: () bool, whether some of the batch's labels were others, see `within_classes`.
            clean: the logits before the attack, (N, K), where there was such a pass.
            check: whether the pass's logits were not the head's, () bool, how far off they were, relative to the
                largest logit, and () bool, whether its factors were fitted anew.
            first_part: where each class's samples begin to take turns.
        """
        missed, error, refitted = check or (torch.zeros_like(is_bad), None, None)
        # a sum is not finite where an entry is not, and 0 times it is not 0
        faults = torch.stack([is_bad, attributions.sum() * 0 != 0, missed])
        torch.minimum(self.first_faults, torch.where(faults, self.batches, _NO_BATCH), out=self.first_faults)
        if error is not None and refitted is not None:
            miss = torch.where(missed, error.to(self.largest_miss.dtype), 0.0)
            torch.maximum(self.largest_miss, miss, out=self.largest_miss)
            self.refits += refitted
        part, wide = self._parts_of(labels, first_part), logits.to(self.loss.dtype)
        self.by_part.view(-1, self.shape[1]).index_add_(0, part, attributions)
        self.counts_by_part.view(-1).index_add_(0, part, torch.ones_like(labels))
        if len(logits):  # var warns of none
            self.logit_spread += wide.var(1, correction=0).sum()
        self.batches += 1
        self.clean_batches += 0 if clean is None else 1
        correct = self._add_answers(0, wide, labels)
        return correct, None if clean is None else self._add_answers(1, clean.to(wide.dtype), labels)

    def _add_answers(self, place: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Add what was predicted in the passes that counted (0) or before the attack (1); which were right, (N,)."""
        predicted = logits.argmax(1)
        correct = predicted == labels
        self.correct[place].add_(correct.sum())
        self.loss[place].add_(F.cross_entropy(logits, labels, reduction="sum"))
        if self.confusion is not None:
            cells = torch.add(predicted, labels, alpha=self.shape[0])
            self.confusion[place].index_add_(0, cells, torch.ones_like(labels))
        return correct

    def _parts_of(self, labels: Tensor, first: int) -> Tensor:
        """Where each sample of a batch belongs among the K · G parts, (N,): a class's samples take turns."""
        classes, parts = self.counts_by_part.shape
        if parts == 1:
            return labels
        return labels * parts + (first + self.counts[labels] + rank_in_class(labels, classes)) % parts

    def to(self, device: torch.device) -> Sums:
        """These sums on another device, where the model went."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)

    def has_faults(self) -> Tensor:
        """Whether any batch had a label outside 0..K-1, features not finite, logits not the head's: (3,) bool."""
        return self.first_faults != _NO_BATCH

    def confusions(self) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """The confusion matrices of the passes that counted and of those before the attack, (K, K) each.

        None where there are too many classes, or where not every sample is in one.
        """
        return self._confusion(0), self._confusion(1)

    def _confusion(self, place: int) -> NDArray[np.int64] | None:
        if self.confusion is None or int(self.confusion[place].sum()) != int(self.counts.sum()):
            return None
        return self.confusion[place].view(self.shape[0], -1).cpu().numpy().copy()  # the sums go on

    def checked_means(self, head: str = "", reason: str = "") -> Tensor:
        """The class attribution, (K, n) float64 on the CPU.

        Args:
            head, reason: the head's name, and why there is no other, for the message about logits that are not its.

        Raises:
            InputError: nothing was added, or a batch had a label outside 0..K-1, NaN or infinite features, or logits
                that were not the head's.
        """
        if not self.counts.any():
            raise InputError(NOTHING_ADDED)
        bad_label, not_finite, missed = self.first_faults.tolist()
        if bad_label != _NO_BATCH:
            raise InputError(
                f"expected labels in 0..{self.shape[0] - 1}, found others in batch {bad_label} (counted from 0); "
                "labels count from 0, and the data's classes must be the model's"
            )
        if not_finite != _NO_BATCH:
            raise InputError(
                f"expected finite features, found NaN or infinity in batch {not_finite} (counted from 0); "
                "check the weights and the learning rate"
            )
        if missed != _NO_BATCH:
            raise InputError(
                f"expected g Wᵀ and one constant row of head {head!r} to be the logits in every counted pass, found "
                f"them off by {float(self.largest_miss):.1e} of the largest logit, first in batch {missed} (counted "
                f"from 0){f': {reason}' if reason else ''}; call reset(), after which the head is looked for anew"
            )
        return class_means(self.attributions.cpu().double(), self.counts.cpu())

    def without_parts(self) -> WithoutParts | None:
        """C without each part, from which intervals come."""
        return WithoutParts.of_sums(self.by_part.cpu().double(), self.counts_by_part.cpu())


NOTHING_ADDED = "expected at least one update before compute, found none; run a pass, then update(labels)"


def check_labels(labels: object, rows: int) -> None:
    """Labels must be (rows,) integers; their values are looked at later, on the device.

    Raises:
        InputError: they are of another form or number.
    """
    if not isinstance(labels, Tensor):
        raise InputError(
            f"expected labels as an integer tensor of shape ({rows},), found {type(labels).__name__}; "
            "convert them by torch.as_tensor"
        )
    form = "nested" if labels.is_nested else str(labels.layout) if labels.layout != torch.strided else ""
    if form or labels.is_meta or labels.is_quantized:
        problem = form or ("one without values, on the meta device" if labels.is_meta else str(labels.dtype))
        raise InputError(
            f"expected labels as a dense integer tensor of shape ({rows},), found {problem}; convert them, such as by "
            "to_dense"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise InputError(
            f"expected labels of shape ({rows},), found a column of shape {tuple(labels.shape)}; pass labels.squeeze(1)"
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(
            f"expected labels of shape ({rows},) and an integer dtype, found {tuple(labels.shape)} {labels.dtype}; "
            "attribution needs the one true class of each sample (one-hot labels: pass labels.argmax(1); mixed "
            "labels have no true class)"
        )
    if len(labels) != rows:
        raise InputError(f"expected {rows} labels, one per sample of the pass, found {len(labels)}; see rows=")


def within_classes(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The labels, those outside 0..K-1 moved into it, and () bool whether there were any."""
    within = labels.clamp(0, classes - 1)
    return within, (within != labels).any()
