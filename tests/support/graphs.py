"""Graphs that need no GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class FakeGraphs:
    """Replays by running anew on the recorded inputs, into one place that the next replay overwrites, as CUDA does.

    ``findings`` are what each watched call would leave out of a replay, in turn.
    """

    def __init__(self, *findings: str, refuses: Exception | None = None, serves: bool = True) -> None:
        self.recorded = self.replayed = self.watched = 0
        self._findings, self._refuses, self._applies_to = list(findings), refuses, serves

    def can_record(self, inputs: tuple[Tensor, ...]) -> bool:
        return self._applies_to

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[str]]:
        left_out: list[str] = []
        yield left_out
        self.watched += 1
        if self._findings and (found := self._findings.pop(0)):
            left_out.append(found)

    def record(self, run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        if self._refuses is not None:
            raise self._refuses
        self.recorded += 1
        place: list[Tensor] = []

        def replay() -> Tensor:
            self.replayed += 1
            result = run().detach()
            if not place:
                place.append(result.clone())
            return place[0].copy_(result)

        return replay
