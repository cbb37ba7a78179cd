"""Where an epoch's time goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Stopwatch:
    """Adds up the seconds of an epoch's parts by name; does nothing unless ``running``.

    While it runs it waits for the GPU where a part begins and ends, which itself takes time there.
    """

    def __init__(self) -> None:
        self.running = False
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """What happens inside belongs to ``part``."""
        if not self.running:
            yield
            return
        start = now()
        yield
        self.seconds[part] += now() - start

    def over(self, part: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time that it takes to get each belongs to ``part``."""
        iterator = iter(items)
        while True:
            with self(part):
                item = next(iterator, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]


_END = object()


def now() -> float:
    """Seconds of a steady clock, once the GPU has done what it was given."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()
