"""Which images of a run were classified right: one bit each, in the loader's order, over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Record = NDArray[np.bool_] | None


class ImageRecords:
    """Collects, batch by batch, on the device."""

    def __init__(self) -> None:
        self._counted: list[Tensor] = []
        self._before: list[Tensor | None] = []

    def append(self, counted: Tensor, before: Tensor | None) -> None:
        """Which samples of a batch were right in the pass that counted, and before the attack: (N,) bool each."""
        self._counted.append(counted)
        self._before.append(before)

    def before_and_counted(self, counts_clean: bool) -> tuple[Record, Record]:
        """Both records over all batches, (N,) bool; None where not known; equal where clean passes counted."""
        counted, before = _joined(self._counted), _joined(self._before)
        return (counted if counts_clean else before), counted


def _joined(batches: Sequence[Tensor | None]) -> Record:
    known = [batch.cpu().numpy() for batch in batches if batch is not None]
    return np.concatenate([np.zeros(0, dtype=np.bool_), *known]) if len(known) == len(batches) else None


def interleaved(parts: Sequence[Record]) -> Record:
    """The parts of all processes, in the order of ranks, as one in the images' order: the first of each, the second, …

    Samplers divide images among processes so: each P-th image is one rank's (`torch.utils.data.DistributedSampler`).
    None where a rank has no part, or where the lengths tell that they were divided otherwise.
    """
    known = [part for part in parts if part is not None]
    number, processes = sum(map(len, known)), len(parts)
    if [len(part) for part in known] != [len(range(rank, number, processes)) for rank in range(processes)]:
        return None
    together = np.empty(number, dtype=np.bool_)
    for rank, part in enumerate(known):
        together[rank::processes] = part
    return together
