"""Files that are written while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """A thread that does one job after another, in the order in which they came; none follows one that failed.

    Leaving its block waits for all of them.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._jobs: list[Future[None]] = []
        self._has_failed = False

    def add(self, job: Callable[[], None]) -> None:
        """Queue a job; the data that it uses must not change before it has run."""
        self._jobs.append(self._thread.submit(self._do, job))

    def wait(self) -> None:
        """Wait until all jobs are done; raises what one of them raised."""
        while self._jobs:
            self._jobs.pop(0).result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # which waits
        self.wait()

    def _do(self, job: Callable[[], None]) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        job()
        self._has_failed = False
