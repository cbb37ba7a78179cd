"""When a run's state is saved: at the end of an epoch, at intervals, and when a signal ends the run."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

from torch import Tensor

from ccf_plugin.measuring.evaluate import Batches
from ccf_plugin.training.interruption import TIME_UP, Interrupted, Interruption
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.run import Run
from ccf_plugin.training.state import TrainingState

_DUE = 1  # below every signal's number


class Saver:
    """Saves the training's state into its run; every process calls it, the first one writes."""

    def __init__(self, run: Run, state: TrainingState, processes: Processes, interruption: Interruption) -> None:
        self._run, self._state, self._processes, self._interruption = run, state, processes, interruption
        self._saved = time.monotonic()

    def save(self) -> None:
        """Save now."""
        tensors = self._state.tensors()
        if self._processes.is_main:
            self._run.save_state(tensors, self._state.step)
        self._saved = time.monotonic()

    def between_steps(self, epoch: int) -> None:
        """Save if it is time to; end the run if any process got a signal.

        Raises:
            Interrupted: with the state saved, unless the weights are not finite any more.
        """
        minutes = (time.monotonic() - self._saved) / 60
        is_due = self._processes.is_main and minutes > self._run.recipe.checkpoint_minutes
        request = self._processes.largest(self._interruption.request or (_DUE if is_due else 0))
        if request and not self._state.totals().failed_at:  # else the epoch's end will tell, and the good state stays
            self.save()
        if request > _DUE:
            self._run.wait()
            what = "time is up" if request == TIME_UP else signal.Signals(request).name
            where = f"{what} in epoch {epoch}, saved after step {self._state.step}"
            remedy = f"continue with {{resume=True}} ({{out={str(self._run.folder)!r}}})"
            raise Interrupted(where, request, remedy)

    def watched(self, epoch: int, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of an evaluation, between which a signal may end the run; the epoch's training is saved then.

        A time limit waits for the epoch's end: slots that are shorter than an evaluation would never finish one.

        With several processes, whose numbers of batches differ, the signal waits for the next step.
        """
        for batch in batches:
            yield batch
            if self._processes.count == 1 and self._interruption.signal:
                self.between_steps(epoch)
