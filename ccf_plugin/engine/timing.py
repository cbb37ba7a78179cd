"""A clock that waits for the GPU, and where an epoch's time goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Stopwatch:
    """Adds up the seconds of the parts of a run, by name, between ``start`` and ``stop``.

    While one runs, ``part`` waits for the GPU where a part begins and ends, which itself takes time there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def start(self) -> None:
        """Listen to ``part`` from now on."""
        if self not in _running:
            _running.append(self)

    def stop(self) -> None:
        """Listen no longer."""
        if self in _running:
            _running.remove(self)


_running: list[Stopwatch] = []


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """The time inside belongs to this part, for the stopwatches that run; without any it does nothing."""
    if not _running:
        yield
        return
    start = now()
    yield
    seconds = now() - start
    for stopwatch in _running:
        stopwatch.seconds[name] += seconds


def part_of_each(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items; the time that it takes to get each belongs to this part."""
    iterator = iter(items)
    while True:
        with part(name):
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
