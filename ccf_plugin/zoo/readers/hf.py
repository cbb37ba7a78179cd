"""Hugging Face's datasets (extra ``hf``): ``hf:NAME`` of its hub, or ``hf:PATH``, a folder that ``save_to_disk`` wrote.

The images are the one column of type Image, the labels the one of type ClassLabel, whose names are the classes. Where
there are several, ``hf:NAME#image=COLUMN#label=COLUMN`` names them (a label may also be a column of integers), and
``#config=NAME`` one of several configurations. A validation split stands for the test split where there is none, or
where that has no labels (all −1). Images are decoded as they are needed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

from ccf_plugin.errors import Fault, InputError, UnavailableError, did_you_mean, missing_extra, one_line, some_of
from ccf_plugin.files import expanded_path
from ccf_plugin.zoo.readers.reader import Arrays, Reader, register_reader
from ccf_plugin.zoo.split_names import TEST, find_splits

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHOICES = ("image", "label", "config")


@dataclass(frozen=True)
class _EncodedImage:
    """One image of a data set, which ``name`` calls ``hf:NAME, test image 3``."""

    rows: Any
    column: str
    row: int
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        value = self.rows[self.row][self.column]
        return io.BytesIO(value["bytes"]) if value["bytes"] is not None else _regular(value["path"]).open(mode)


@dataclass(frozen=True)
class _Images(Sequence[_EncodedImage]):
    """The images of a split; ``rows`` has their column alone, undecoded."""

    rows: Any
    column: str
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> _EncodedImage: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[_EncodedImage]: ...
    def __getitem__(self, row: int | slice) -> _EncodedImage | Sequence[_EncodedImage]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        return _EncodedImage(self.rows, self.column, int(row), f"{self.name} image {row}")


def _read(name: str, *, splits: Sequence[str], root: Path, download: bool) -> Arrays:
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("hf", "datasets", "hf") from error
    target, choices = _parsed(name)
    spec = f"hf:{target}"
    loaded = _load(spec, target, choices.get("config"), download=download)
    notes: list[str] = []
    if isinstance(loaded, datasets.Dataset):
        recorded = str(loaded.split)
        if not find_splits({recorded: loaded}, ())[0]:
            recorded = "test"
            notes.append("no splits: all images are taken as the test split")
        loaded = {recorded: loaded}
    features = next(iter(loaded.values())).features
    image = _column(spec, features, "image", datasets.Image, choices.get("image"))
    label = _column(spec, features, "label", datasets.ClassLabel, choices.get("label"))
    for split, rows in loaded.items():
        if any(rows.features.get(column) != features[column] for column in (image, label)):
            raise InputError(f"{spec}: expected {image} and {label} alike in all splits, found others in {split}")
    by_name = dict(loaded)
    for split in [split for split in by_name if split.lower() in TEST]:
        if (_labels(spec, by_name[split], label) == -1).all():
            del by_name[split]
            notes.append(f"{split} has no labels")
    chosen, remarks = find_splits(by_name, splits)
    if not any(split in chosen for split in splits):
        raise InputError(f"{spec}: expected a split {' or '.join(splits)}, found {some_of(list(by_name)) or 'none'}")
    arrays = {}
    for split, rows in chosen.items():
        undecoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        arrays[split] = (_Images(undecoded, image, f"{spec}, {split}"), _labels(spec, rows, label))
    classes = getattr(features[label], "names", None)
    names = {split: (f"{split} column {image}", f"{split} column {label}") for split in arrays}
    return Arrays(arrays, classes, names, [*(notes if "test" in splits else ()), *remarks])


def _parsed(name: str) -> tuple[str, dict[str, str]]:
    """The data set, and the columns and configuration that are named behind it."""
    if expanded_path(name).is_dir():
        return name, {}
    target, *parts = name.split("#")
    choices = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in _CHOICES or not value:
            raise InputError(
                f"hf:{target}: expected #image=COLUMN, #label=COLUMN or #config=NAME behind it, found "
                f"{part!r}{did_you_mean(key, _CHOICES)}"
            )
        choices[key] = value
    return target, choices


def _load(spec: str, target: str, config: str | None, *, download: bool) -> Any:
    """A Dataset, or Datasets by their splits."""
    import datasets

    from ccf_plugin.zoo.containment import quiet

    path = expanded_path(target)
    try:
        if path.is_dir():
            with quiet():
                return datasets.load_from_disk(str(path))
        if path.is_absolute() or target.startswith(".") or target.count("/") > 1:
            raise InputError(f"{spec}: expected a folder that save_to_disk wrote, found nothing there; check the path")
        with quiet(), _cache_alone() if not download else contextlib.nullcontext():
            return datasets.load_dataset(target, config)
    except InputError:
        raise
    except (ConnectionError, FileNotFoundError) as error:
        if path.is_dir():
            raise InputError(
                f"{spec}: expected a folder that save_to_disk wrote, found another; write it so, or use folder:{path}"
            ) from error
        if not download:
            fault = Fault(spec, "it in datasets' cache (HF_HOME)", "none", "pass {download=True}")
            raise UnavailableError(fault) from error
        raise UnavailableError(f"could not download {spec} ({one_line(error, 120)})") from error
    except Exception as error:  # its builders and file formats fail in many ways
        raise InputError(
            f"{spec}: expected data that datasets can load, found {one_line(error)}; of several configurations name "
            f"one: {spec}#config=NAME"
        ) from error


@contextlib.contextmanager
def _cache_alone() -> Iterator[None]:
    """Inside, ``load_dataset`` does not ask the hub, which it would also for data in its cache, and fetches nothing."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _column(spec: str, features: Mapping[str, Any], role: str, kind: type, column: str | None) -> str:
    """The column that is given, or the only one of its type."""
    described = [f"{name} ({getattr(feature, 'dtype', type(feature).__name__)})" for name, feature in features.items()]
    fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
    if column is not None:
        if column in fitting or (role == "label" and "int" in getattr(features.get(column), "dtype", "")):
            return column
        raise InputError(
            f"{spec}: expected a column of type {kind.__name__} in #{role}={column}, found {some_of(described, 6)}"
        )
    if len(fitting) == 1:
        return fitting[0]
    candidates = some_of(fitting or described, 6)
    raise InputError(
        f"{spec}: expected one column of type {kind.__name__}, found {candidates or 'none'}; name it: "
        f"{spec}#{role}=COLUMN"
    )


def _labels(spec: str, rows: Any, column: str) -> NDArray[Any]:
    table = rows.select_columns([column]).with_format("arrow")[:]
    values = table.column(column)
    if values.null_count:
        raise InputError(
            f"{spec}: expected a label in {column} for each image, found none for {values.null_count}; leave them out"
        )
    labels: NDArray[Any] = values.to_numpy()
    return labels


def _regular(path: str) -> Path:
    if not Path(path).is_file():  # a device or a pipe would never end
        raise OSError("no file")
    return Path(path)


register_reader(Reader("hf", "hf:NAME", _read, _parsed, is_path=True))
