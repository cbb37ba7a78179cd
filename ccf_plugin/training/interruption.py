"""SIGINT and SIGTERM end training after the present step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from ccf_plugin.errors import CCFError, spelled


class Interrupted(CCFError):  # noqa: N818  # as the field's KeyboardInterrupt, not a fault
    """Training ended by a signal, its state saved. The exit code is the shell's for that signal: 130 or 143.

    ``where`` says what ended when; ``remedy`` how to go on.
    """

    def __init__(self, where: str, signal_number: int, remedy: str) -> None:
        self.where, self.signal_number, self.remedy = where, signal_number, remedy
        super().__init__()
        self.exit_code = 128 + signal_number

    def lines(self, spell: Callable[[str], str] = str) -> list[str]:
        """One line, see ``CCFError.lines``."""
        return [f"{self.where}; {spelled(self.remedy, spell)}"]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.signal_number, self.remedy)


class Interruption:
    """Remembers the first SIGINT or SIGTERM inside; a second one has its usual effect.

    Outside the main thread, where Python allows no handlers, signals are left alone.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
