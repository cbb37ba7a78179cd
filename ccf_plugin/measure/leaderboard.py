"""RobustBench's models, each probed: CAS and I-CAS beside their robust accuracy, in a CSV that grows model by model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ccf_plugin.engine.devices import resolve_device
from ccf_plugin.engine.precision import resolve_precision
from ccf_plugin.errors import CCFError, InputError, UnavailableError, did_you_mean, one_line
from ccf_plugin.files import csv_bytes, read_csv, write_atomically
from ccf_plugin.measure.choices import Choices
from ccf_plugin.measure.evaluate import Progress
from ccf_plugin.measure.subject import load_subject
from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.datasets import load_data
from ccf_plugin.zoo.robustbench_models import benchmark_threat
from ccf_plugin.zoo.robustbench_table import Published, entries, local_files, published_accuracies

# What all rows of one table share.
_SHARED = ("data", "limit", "norm", "eps", "step_size", "steps", "seed", "precision")


@dataclass(frozen=True)
class Row:
    """A model of the table. Accuracies are fractions, None where not measured; ``unavailable`` says why."""

    model: str
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    cas: float | None = None
    instance_cas: float | None = None
    published_clean_accuracy: float | None = None
    published_autoattack_accuracy: float | None = None
    images: int | None = None
    data: str = ""
    limit: int | None = None
    attack: str = ""
    norm: str = ""
    eps: float | None = None
    step_size: float | None = None
    steps: int | None = None
    seed: int | None = None
    precision: str = ""
    unavailable: str = ""


_COLUMNS = tuple(field.name for field in fields(Row))


def measure_leaderboard(
    dataset: str,
    threat: str,
    choices: Choices,
    file: Path,
    *,
    only: Sequence[str] = (),
    local: bool = False,
    progress: Callable[[str], Progress] = lambda _: lambda batches, _: batches,
) -> Iterator[tuple[Row, int]]:
    """Probe RobustBench's models for a data set and threat model; give each one's row and how many are still to come.

    After every model ``file`` is whole. Rows that it holds already are kept and not given; those of models that could
    not be had are tried again.

    Args:
        choices: how to measure; ``data`` None is the data set's own.
        file: the CSV; its folder exists.
        only: these models.
        local: take files that lie in ``choices.model_dir`` and download nothing.
        progress: told what is being measured, gives what wraps its batches.

    Raises:
        InputError: an unknown data set, threat model or name; a CSV of something else, or measured otherwise; a
            choice that is impossible.
        UnavailableError: the test images or the device are not to be had.
        OSError: the CSV cannot be written.
    """
    dataset, threat, names = entries(dataset, threat)
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InputError(
            f"RobustBench has no model {unknown[0]!r} for {dataset}/{threat}{did_you_mean(unknown[0], names)}"
        )
    shared = _settle(dataset, threat, choices)
    rows = {row.model: row for row in read_leaderboard(file)} if file.exists() else {}
    _check_shared(file, rows.values(), shared)
    published = published_accuracies(dataset, threat)
    left = [name for name in names if (not only or name in only) and (name not in rows or rows[name].unavailable)]
    return _measure_each(dataset, threat, left, choices, shared, published, rows, file, local, progress)


def read_leaderboard(file: Path) -> list[Row]:
    """The rows of a CSV that ``measure_leaderboard`` wrote. Raises InputError for another file."""
    try:
        columns, rows = read_csv(file)
        if columns != list(_COLUMNS):
            raise ValueError(f"the columns {', '.join(columns)[:60]}")
        return [Row(**{name: _parse(name, cell) for name, cell in row.items()}) for row in rows]
    except ValueError as error:
        found = one_line(error, 120)
        raise InputError(f"{file}: expected a leaderboard, found {found}; choose another --out") from error


def rank_correlation(rows: Sequence[Row]) -> float:
    """Spearman's ρ between CAS and robust accuracy; NaN for fewer than three models."""
    if len(rows) < 3:
        return float("nan")
    from scipy.stats import spearmanr

    return float(spearmanr([row.cas for row in rows], [row.robust_accuracy for row in rows]).statistic)


def _settle(dataset: str, threat: str, choices: Choices) -> dict[str, Any]:
    """What all rows share; what is wrong with it is said before the first model is fetched."""
    data = choices.data or dataset
    if choices.limit is not None and choices.limit < 1:
        raise InputError(f"--limit: expected at least 1, found {choices.limit}")
    own = benchmark_threat(dataset, threat)
    given = {name: value for name in ("eps", "step_size", "steps") if (value := getattr(choices, name)) is not None}
    settled = threat_model(**(own | given))
    precision = resolve_precision(choices.precision, resolve_device(choices.device))  # type: ignore[arg-type]
    load_data(data, splits=("test",), root=choices.data_root, download=choices.download, test_limit=1)
    values = {"data": data, "limit": choices.limit, "seed": choices.seed, "precision": precision}
    return {name: ({**settled.as_dict(), **values})[name] for name in _SHARED}


def _check_shared(file: Path, rows: Any, shared: dict[str, Any]) -> None:
    for row in rows:
        differing = [name for name in _SHARED if not row.unavailable and getattr(row, name) != shared[name]]
        if differing:
            pairs = "; ".join(f"{name} {getattr(row, name)} there, {shared[name]} now" for name in differing)
            raise InputError(
                f"{file}: expected rows measured as now, found others ({pairs}); choose another --out, or remove it"
            )


def _measure_each(
    dataset: str,
    threat: str,
    left: list[str],
    choices: Choices,
    shared: dict[str, Any],
    published: dict[str, Published],
    rows: dict[str, Row],
    file: Path,
    local: bool,
    progress: Callable[[str], Progress],
) -> Iterator[tuple[Row, int]]:
    for number, name in enumerate(left):
        known: dict[str, Any] = dict(shared)
        if name in published:
            known["published_clean_accuracy"] = published[name].clean_accuracy
            known["published_autoattack_accuracy"] = published[name].autoattack_accuracy
        try:
            if local:
                _check_local(dataset, threat, name, choices.model_dir)
            row = _probe(dataset, threat, name, choices, known, progress)
        except CCFError as error:
            row = Row(name, **known, unavailable=str(error))
        except Exception as error:  # a stranger's model can fail in any way; the others are still to be measured
            row = Row(name, **known, unavailable=one_line(error))
        rows[name] = row
        write_atomically(file, csv_bytes(_COLUMNS, map(asdict, rows.values())))
        yield row, len(left) - number - 1


def _probe(
    dataset: str, threat: str, name: str, choices: Choices, known: dict[str, Any], progress: Callable[[str], Progress]
) -> Row:
    subject = load_subject(f"robustbench:{dataset}/{threat}/{name}", choices)
    result = subject.measure(instances=True, progress=progress(name))
    assert result.threat is not None  # noqa: S101  (there is an attack)
    return Row(
        name,
        **known,
        clean_accuracy=result.clean_accuracy,
        robust_accuracy=result.robust_accuracy,
        cas=result.cas,
        instance_cas=result.instance_cas,
        images=len(subject.test),
        attack=result.threat["attack"],
    )


def _check_local(dataset: str, threat: str, name: str, model_dir: Path) -> None:
    """Raise UnavailableError where a model cannot be loaded without a download."""
    files = local_files(dataset, threat, name, model_dir)
    if not files:
        raise UnavailableError("its weights come from the network, not from a file (left out by --local)")
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UnavailableError(f"no file {absent[0]} (left out by --local)")


def _parse(name: str, cell: str) -> Any:
    if name in ("images", "limit", "steps", "seed"):
        return int(cell) if cell else None
    if name in ("model", "data", "attack", "norm", "precision", "unavailable"):
        return cell
    return float(cell) if cell else None
