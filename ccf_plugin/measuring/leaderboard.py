"""RobustBench's models, each probed: CAS and I-CAS beside their robust accuracy, in a CSV that grows model by model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ccf_plugin.engine.devices import resolve_device
from ccf_plugin.engine.precision import resolve_precision
from ccf_plugin.errors import CCFError, Fault, InputError, UnavailableError, did_you_mean, one_line
from ccf_plugin.files import csv_bytes, read_csv, write_atomically
from ccf_plugin.measuring.evaluate import Progress
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.measuring.subject import load_subject
from ccf_plugin.probe.presentation import size_in_words
from ccf_plugin.probe.result_files import plain
from ccf_plugin.zoo.datasets import load_data
from ccf_plugin.zoo.robustbench_models import benchmark_threat
from ccf_plugin.zoo.robustbench_table import Published, entries, local_files, published_accuracies


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
    cas_excess: float | None = None
    input_size: str = ""


_COLUMNS = tuple(field.name for field in fields(Row))
_LATER = 2  # columns, the last, some of which files of earlier versions lack


def measure_leaderboard(
    dataset: str,
    threat: str,
    settings: Settings,
    out: Path,
    *,
    only: Sequence[str] = (),
    local: bool = False,
    restart: bool = False,
    progress: Callable[[str], Progress] = lambda _: lambda batches, _: batches,
) -> Iterator[tuple[Row, int]]:
    """Probe RobustBench's models for a data set and threat model; give each one's row and how many are still to come.

    After every model the file ``out`` is whole. Rows that it holds already are kept and not given; those of models that
    could not be had are tried again.

    Args:
        settings: how to measure; ``data`` None is the data set's own.
        out: the CSV; its folder exists.
        only: these models.
        local: take files that lie in ``model_dir`` and download nothing.
        restart: begin anew, whatever ``out`` holds.
        progress: told what is being measured, gives what wraps its batches.

    Raises:
        InputError: an unknown data set, threat model or name; a CSV of something else, or measured otherwise; a
            setting that is impossible.
        UnavailableError: the test images or the device are not available.
        OSError: the CSV cannot be written.
    """
    dataset, threat, names = entries(dataset, threat)
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InputError(
            f"RobustBench has no model {unknown[0]!r} for {dataset}/{threat}{did_you_mean(unknown[0], names)}"
        )
    shared = leaderboard_conditions(dataset, threat, settings)
    images = settings.images  # looked at before the first model is fetched
    load_data(
        shared["data"],
        splits=("test",),
        root=images.data_root,
        download=images.download,
        classes=images.classes,
        test_limit=1,
    )
    rows = {row.model: row for row in read_leaderboard(out)} if out.exists() and not restart else {}
    _check_shared(out, rows.values(), shared)
    published = published_accuracies(dataset, threat)
    left = [name for name in names if (not only or name in only) and (name not in rows or rows[name].unavailable)]

    def measured() -> Iterator[tuple[Row, int]]:
        for number, name in enumerate(left):
            known = {**shared, **_published(published.get(name))}
            try:
                if local:
                    _check_local(dataset, threat, name, settings.weights.model_dir)
                row = _probe(f"robustbench:{dataset}/{threat}/{name}", name, settings, known, progress(name))
            except CCFError as error:
                row = Row(name, **known, unavailable=str(error))
            except Exception as error:  # a stranger's model can fail in any way; the others are still to be measured
                row = Row(name, **known, unavailable=one_line(error))
            rows[name] = row
            write_atomically(out, csv_bytes(_COLUMNS, map(asdict, rows.values())))
            yield row, len(left) - number - 1

    return measured()


def read_leaderboard(file: Path) -> list[Row]:
    """The rows of a CSV that ``measure_leaderboard`` wrote. Raises InputError for another file."""
    try:
        columns, rows = read_csv(file)
        if columns not in [list(_COLUMNS[: len(_COLUMNS) - later]) for later in range(_LATER + 1)]:
            raise ValueError(f"the columns {', '.join(columns)[:60]}")
        return [Row(**{name: _parse(name, cell) for name, cell in row.items()}) for row in rows]
    except ValueError as error:
        fault = Fault(str(file), "a leaderboard", one_line(error, 120), "choose another {out}")
        raise InputError(fault) from error


def rank_correlation(rows: Sequence[Row], figure: str = "cas") -> float:
    """Spearman's ρ between CAS, or its excess over chance, and robust accuracy; NaN for fewer than three models.

    CAS by chance differs with a model's width, so that "cas_excess" compares models of several.
    """
    known = [(getattr(row, figure), row.robust_accuracy) for row in rows if getattr(row, figure) is not None]
    if len(known) < 3:
        return float("nan")
    from scipy.stats import spearmanr

    return float(spearmanr(*zip(*known, strict=True)).statistic)


def leaderboard_conditions(dataset: str, threat: str, settings: Settings) -> dict[str, Any]:
    """What all rows share. Raises as ``measure_leaderboard`` does, except for missing images."""
    dataset, threat, _ = entries(dataset, threat)
    images, attack = settings.images, settings.attack
    settled = attack.threat_model(benchmark_threat(dataset, threat))
    precision = resolve_precision(attack.precision, resolve_device(settings.device))  # type: ignore[arg-type]
    values = {"data": images.data or dataset, "limit": images.limit, "seed": attack.seed, "precision": precision}
    return {**({} if settled is None else settled.as_dict()), **values}


def conditions_of(file: Path, now: dict[str, Any]) -> dict[str, Any] | None:
    """What the measured rows of a CSV share, ``now`` where it has none yet; None for a file of something else."""
    try:
        rows = [row for row in read_leaderboard(file) if not row.unavailable]
    except (InputError, OSError):
        return None
    return {name: getattr(rows[0], name) for name in now} if rows else now


def _check_shared(file: Path, rows: Iterable[Row], shared: dict[str, Any]) -> None:
    for row in rows:
        differing = [name for name in shared if not row.unavailable and getattr(row, name) != shared[name]]
        if differing:
            pairs = "; ".join(f"{name} {getattr(row, name)} there, {shared[name]} now" for name in differing)
            remedy = "choose another {out}, or remove it"
            raise InputError(Fault(str(file), "rows measured as now", f"others ({pairs})", remedy))


def _published(figures: Published | None) -> dict[str, float]:
    if figures is None:
        return {}
    return {
        "published_clean_accuracy": figures.clean_accuracy,
        "published_autoattack_accuracy": figures.autoattack_accuracy,
    }


def _probe(spec: str, name: str, settings: Settings, known: dict[str, Any], progress: Progress) -> Row:
    subject = load_subject(spec, settings)
    result = subject.measure(instances=True, progress=progress)
    assert result.threat is not None  # noqa: S101  (there is an attack)
    return Row(
        name,
        **known,
        clean_accuracy=result.clean_accuracy,
        robust_accuracy=result.robust_accuracy,
        cas=result.cas,
        instance_cas=result.instance_cas,
        cas_excess=plain(result.cas_excess),
        images=len(subject.data.split),
        input_size=size_in_words(subject.data.input_size),
        attack=result.threat["attack"],
    )


def _check_local(dataset: str, threat: str, name: str, model_dir: Path | None) -> None:
    """Raise UnavailableError where a model cannot be loaded without a download."""
    files = local_files(dataset, threat, name, model_dir)
    if not files:
        raise UnavailableError("its weights come from the network, not from a file, and only local files are wanted")
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UnavailableError(f"no file {absent[0]}, and only local files are wanted")


def _parse(name: str, cell: str) -> Any:
    if name in ("images", "limit", "steps", "seed"):
        return int(cell) if cell else None
    if name in ("model", "data", "attack", "norm", "precision", "unavailable", "input_size"):
        return cell
    return float(cell) if cell else None
