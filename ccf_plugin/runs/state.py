"""state/ of a run: the finished epochs as a resumed run needs them, and which file holds the tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccf_plugin.errors import Fault, InputError, one_line
from ccf_plugin.files import write_atomically, write_json
from ccf_plugin.runs.layout import LAST_STATE, STATE, state_of
from ccf_plugin.runs.log import EpochRow

_FORMAT = 1


@dataclass(frozen=True)
class State:
    """Where a run stands: its finished epochs, unrounded, and ``step`` steps of the next; ``tensors`` is their file."""

    rows: list[EpochRow]
    step: int
    tensors: Path


def write_state(run: Path, rows: Sequence[EpochRow], step: int, tensors: bytes) -> None:
    """Write the state after these epochs and ``step`` steps of the next, then remove the one before it."""
    path = state_of(run, len(rows), step)
    write_atomically(path, tensors)
    described = {"format": _FORMAT, "epoch": len(rows), "step": step, "file": path.name}
    # last.json names the state that counts; only then may the one before it go.
    write_json(run / LAST_STATE, {**described, "rows": [row.as_dict() for row in rows]})
    for other in path.parent.glob("*.safetensors"):
        if other != path:
            other.unlink()


def read_state(run: Path) -> State:
    """The state that ``write_state`` wrote last; of what a newer version wrote, a row keeps what is unknown.

    Raises:
        InputError: there is none, it is damaged, or a newer version wrote it in a format of its own.
    """
    path = run / LAST_STATE
    if not path.is_file():
        raise InputError(f"expected a run to resume in {run}, found none with a saved state")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if (version := state.get("format", _FORMAT)) > _FORMAT:
            raise InputError(
                f"{path}: written in format {version}, this version reads up to {_FORMAT}; update ccf_plugin"
            )
        rows, step = [EpochRow.from_file(row) for row in state["rows"]], int(state.get("step", 0))
        epochs = [row.epoch for row in rows]
        if epochs != list(range(1, state["epoch"] + 1)) or step < 0:
            raise ValueError(f"epochs {epochs}, step {step}")
        return State(rows, step, run / STATE / Path(state["file"]).name)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        found = f"a damaged file ({one_line(error, 120)})"
        fault = Fault("", f"the state of a run in {path}", found, "start anew with {force=True}")
        raise InputError(fault) from None
