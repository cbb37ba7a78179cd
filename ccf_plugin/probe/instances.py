"""The rows behind I-CAS: attributions of single samples, kept as they come or capped per class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import class_attribution_similarity, instance_matrix


@dataclass(frozen=True, eq=False)
class Samples:
    """Single samples in the order of measuring: ``rows`` A(x) / |A(x)|, (N, n) float; ``labels``, (N,) int64."""

    rows: Tensor
    labels: Tensor

    def matrix(self, classes: int) -> NDArray[np.float64]:
        """The instance matrix, (K, K)."""
        return instance_matrix(self.rows, self.labels, classes).double().cpu().numpy()

    def average_cas(self, classes: int) -> float:
        """Σ_{i≠j} max(mean cosine of all pairs of samples of classes i and j, 0)."""
        return float(class_attribution_similarity(instance_matrix(self.rows, self.labels, classes, reduction="mean")))


class InstanceRows:
    """A(x) / |A(x)| and y of the measured samples; at most ``max_per_class`` of each class (the first), or all.

    Memory: N · n values, or K · max_per_class · n where capped, in the features' precision (at least float32).

    Args:
        num_classes: K.
        max_per_class: the cap.
        max_bytes: what the rows may take together.
    """

    def __init__(self, num_classes: int, max_per_class: int | None, max_bytes: int) -> None:
        self._num_classes = num_classes
        self._cap = max_per_class
        self._max_bytes = max_bytes
        self._rows: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._capped: Tensor | None = None
        self._seen: Tensor | None = None
        self.nbytes = 0

    def append(self, rows: Tensor, labels: Tensor) -> None:
        """Take a batch: rows (N, n) and labels (N,) int64 in 0..K-1. Nothing synchronises.

        Raises:
            InputError: the rows would take more memory than they may.
        """
        if self._cap is None:
            self._claim(rows.nbytes)
            self._rows.append(rows)
            self._labels.append(labels)
            return
        if self._capped is None or self._seen is None:
            # one spare slot per class takes what is over the cap
            shape = (self._num_classes, self._cap + 1, rows.shape[1])
            self._claim(rows.element_size() * torch.Size(shape).numel())
            self._capped = rows.new_zeros(shape)
            self._seen = torch.zeros(self._num_classes, dtype=torch.int64, device=rows.device)
        if self._capped.device != rows.device:
            self._capped, self._seen = self._capped.to(rows.device), self._seen.to(rows.device)
        slot = (self._seen[labels] + rank_in_class(labels, self._num_classes)).clamp(max=self._cap)
        self._capped[labels, slot] = rows.to(self._capped.dtype)
        self._seen.index_add_(0, labels, torch.ones_like(labels))

    def collect(self) -> tuple[Tensor, Tensor]:
        """All rows (N, n) and their labels (N,)."""
        if self._capped is not None and self._seen is not None:
            per_class = self._seen.clamp(max=self._cap)
            mask = torch.arange(self._capped.shape[1], device=per_class.device) < per_class.unsqueeze(1)
            labels = torch.arange(self._num_classes, device=per_class.device).unsqueeze(1).expand_as(mask)
            return self._capped[mask], labels[mask]
        device = self._rows[-1].device
        return (
            torch.cat([rows.to(device) for rows in self._rows]),
            torch.cat([labels.to(device) for labels in self._labels]),
        )

    def _claim(self, nbytes: int) -> None:
        self.nbytes += nbytes
        check_row_memory(self.nbytes, self._max_bytes)


def rank_in_class(labels: Tensor, classes: int) -> Tensor:
    """How many samples of its own class stand before each one, (N,) int64. Nothing synchronises."""
    indices = torch.arange(classes, device=labels.device)
    onehot = (labels.unsqueeze(1) == indices).to(torch.int64)  # F.one_hot looks at the values, which synchronises
    return (onehot.cumsum(0) - onehot).gather(1, labels.unsqueeze(1)).squeeze(1)


def check_row_memory(nbytes: int, max_bytes: int) -> None:
    """Raises InputError where the rows take more than they may."""
    if nbytes > max_bytes:
        raise InputError(
            f"expected single samples' attributions to take at most {max_bytes / 2**30:.2f} GiB, found "
            f"{nbytes / 2**30:.2f} GiB; cap them with max_per_class=, or allow more with max_bytes="
        )
