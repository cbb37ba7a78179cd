"""The names of a run folder's files, once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

AVERAGE = "_average"  # marks what belongs to the averaged weights, in the log's columns and in file names

RECIPE = "recipe.toml"
ENVIRONMENT = "environment.json"
LOG = "log.csv"
PROBE = "probe"  # results, by epoch and of the best
RECORDS = "records"  # which test images were right at the evaluated epochs that have no result
EPOCHS = "epochs"  # the weights of single epochs
STATE = "state"  # all that a resumed run needs
LAST_STATE = f"{STATE}/last.json"
SALIENCY = "saliency"  # pictures that somebody put there
TRACKERS = "trackers"
LOCK = ".lock"
# Beside the runs of a study.
STUDY = "study.json"
TABLE, DIFFERENCES, LATEX = "table.csv", "differences.csv", "table.tex"
STUDY_FILES = (STUDY, TABLE, DIFFERENCES, LATEX)

Which = Literal["best", "last"]


def weights_of(run: Path, epoch: int | Which, suffix: str = "") -> Path:
    """The file of an epoch's weights: the raw ones (suffix "") or the averaged ones (``AVERAGE``)."""
    folder = run if isinstance(epoch, str) else run / EPOCHS
    return folder / f"{_name(epoch)}{suffix}.safetensors"


def checkpoint_of(run: Path, which: Which) -> Path:
    """The file of the weights that a run's folder stands for: the averaged ones where it has them, else the raw ones.

    The averaged model is the output of the methods that average (WAKE's Algorithm 2; KDSWA).
    """
    has_averaged = weights_of(run, "best", AVERAGE).is_file()  # once an average was evaluated
    return weights_of(run, which, AVERAGE if has_averaged else "")


def result_of(run: Path, epoch: int | Which, suffix: str = "") -> Path:
    """The result of an epoch's weights, without the endings of its files (.json, .npz, .png)."""
    return run / PROBE / f"{_name(epoch)}{suffix}"


def results_of(run: Path, epoch: int, suffix: str = "", *, is_best: bool) -> list[Path]:
    """Where the result of an epoch's weights may lie: under its number and, of the best epoch, as the best."""
    epochs: list[int | Which] = [epoch, "best"] if is_best else [epoch]
    return [result_of(run, one, suffix) for one in epochs]


def records_of(run: Path, epoch: int, suffix: str = "") -> Path:
    """The file of which test images an epoch's weights classify right."""
    return run / RECORDS / f"{_name(epoch)}{suffix}.npz"


def state_of(run: Path, epoch: int, step: int = 0) -> Path:
    """The tensors of the state after an epoch, or ``step`` steps into the next."""
    return run / STATE / f"{_name(epoch)}{f'-{step}' if step else ''}.safetensors"


def _name(epoch: int | str) -> str:
    return epoch if isinstance(epoch, str) else f"{epoch:03}"


# All that a run writes into its folder, and all that is removed where it is replaced.
RUN_FILES = (
    *(TRACKERS, RECIPE, ENVIRONMENT, LOG, PROBE, RECORDS, EPOCHS, STATE, SALIENCY),
    *(weights_of(Path(), which, suffix).name for which in get_args(Which) for suffix in ("", AVERAGE)),
)
