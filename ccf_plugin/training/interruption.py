"""SIGINT, SIGTERM and a time limit end training after the present step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from ccf_plugin.errors import CCFError, spelled

TIME_UP = 14  # SIGALRM's number on POSIX stands for the time limit


class Interrupted(CCFError):  # noqa: N818  # as the field's KeyboardInterrupt, not a fault
    """A signal or the time limit ended training; its state is saved. ``where`` says when, ``remedy`` how to continue.

    The exit code is the shell's for that signal: 130 or 143.
    """

    def __init__(self, where: str, signal_number: int, remedy: str) -> None:
        self.where, self.signal_number, self.remedy = where, signal_number, remedy
        super().__init__()
        self.exit_code = 128 + signal_number

    @property
    def is_time_up(self) -> bool:
        """Whether the time limit ended it."""
        return self.signal_number == TIME_UP

    def lines(self, spell: Callable[[str], str] = str) -> list[str]:
        """One line, see ``CCFError.lines``."""
        return [f"{self.where}; {spelled(self.remedy, spell)}"]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.signal_number, self.remedy)


class Interruption:
    """Remembers the first SIGINT or SIGTERM inside; a second one has its usual effect.

    Outside the main thread, where Python allows no handlers, signals are left alone.

    Args:
        until: when the time is up, by ``time.monotonic``; None: never.
    """

    def __init__(self, until: float | None = None) -> None:
        self.signal, self._until = 0, until
        self._handlers: dict[int, Any] = {}

    @property
    def request(self) -> int:
        """The signal that came, or ``TIME_UP``, or 0."""
        is_late = self._until is not None and time.monotonic() >= self._until
        return self.signal or (TIME_UP if is_late else 0)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
