"""Progress without a terminal: a line at least every half minute while a long task runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

INTERVAL = 30.0  # seconds
_LOOKS_EVERY = 1.0


class Heartbeat:
    """Says what is done, how far it is and how long it will take still, once half a minute has passed without a line.

    Inside its block a thread looks once a second, so that a single step of minutes is no silence; ``look`` does the
    same by hand.

    Args:
        say: prints a line.
        clock: the time in seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._task, self._unit, self._more = "starting", "", ""
        self._done, self._total = 0, 0
        self._begun = self._last = clock()

    def __enter__(self) -> Heartbeat:
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def begin(self, task: str, total: int = 0, *, unit: str = "batch") -> None:
        """A task of ``total`` steps begins; ``unit`` is what a step is called."""
        with self._lock:
            self._task, self._unit, self._done, self._total = task, unit, 0, total
            self._begun = self._clock()

    def step(self, done: int, more: str = "", *, total: int | None = None) -> None:
        """``done`` steps are done, of a ``total`` that may be known only now; ``more`` is added to the line."""
        with self._lock:
            self._done, self._more = done, more
            self._total = self._total if total is None else total
        self.look()

    def line_printed(self) -> None:
        """Something else has printed a line."""
        with self._lock:
            self._last = self._clock()

    def look(self) -> None:
        """Print the line where it is due."""
        with self._lock:
            now = self._clock()
            if now - self._last < INTERVAL:
                return
            self._last = now
            self._say(self._line(now - self._begun))

    def _line(self, elapsed: float) -> str:
        parts = [self._task]
        if self._total:
            parts.append(f"{self._unit} {self._done} of {self._total} done")
        parts.append(f"{in_words(elapsed)} so far")
        if 0 < self._done < self._total:
            parts.append(f"about {in_words(elapsed / self._done * (self._total - self._done))} to go")
        return ", ".join([*parts, *filter(None, [self._more])])

    def _watch(self) -> None:
        while not self._ended.wait(_LOOKS_EVERY):
            self.look()


def in_words(seconds: float) -> str:
    """A duration: "40 s", "3 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
