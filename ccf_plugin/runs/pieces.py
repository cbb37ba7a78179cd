"""A run or a study in pieces of a few megabytes, which join again elsewhere: for machines that are held for minutes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ccf_plugin.errors import InputError, one_line
from ccf_plugin.files import is_aside, made_folder, write_atomically, write_together
from ccf_plugin.runs.folder import has_begun, lock
from ccf_plugin.runs.layout import LAST_STATE, LOCK, RECIPE, RUN_FILES, STATE, STUDY, STUDY_FILES
from ccf_plugin.runs.state import read_state
from ccf_plugin.runs.study_file import read_study

_FORMAT = 1
_MAGIC = b"ccf piece\n"
_ENDING = ".piece"
# Epochs and steps of each run's state, by its folder inside what is packed ("" for itself).
Stand = dict[str, list[int]]


@dataclass(frozen=True)
class Precision:
    """How the numbers of a state travel; "none" leaves the momentum behind. Only float32 for both is exact."""

    weights: Literal["float32", "float16"] = "float32"
    momentum: Literal["float32", "bfloat16", "none"] = "float32"


def pack(
    folder: Path, into: Path, *, precision: Precision = Precision(), megabytes: float = 16, state_only: bool = False
) -> list[Path]:
    """Write a run's folder, or a study's, into pieces; of a study, without the weights that no later run needs.

    With ``Precision()`` what continues from the pieces is the same bit for bit. Weights in float16 are off by 2⁻¹¹ of
    themselves at most, momentum in bfloat16 by 2⁻⁸; without momentum the first steps are those of a fresh optimiser.

    Args:
        folder: with a state (a run's), or with study.json.
        into: an empty folder, or a new one.
        precision: of the states' numbers.
        megabytes: of the largest piece (2²⁰ bytes each).
        state_only: leave best and last weights behind.

    Raises:
        InputError: no run or study there, or one that a process trains; ``into`` is not empty; numbers beyond float16.
    """
    if not 0.01 <= megabytes <= 1e5:
        raise InputError(f"expected pieces of 0.01 megabytes or more, found {megabytes:g}")
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise InputError(f"expected an empty folder for the pieces, found {into}; choose another")
    runs = _runs_in(folder)
    stand: Stand = {}
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in STUDY_FILES:
            if (folder / name).is_file():
                archive.writestr(name, (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
        for name, (with_weights, with_state) in runs.items():
            run = folder / name
            with lock(run):
                state = read_state(run)
                stand[name] = [len(state.rows), state.step]
                for path in _files_of(run, with_weights=with_weights and not state_only, with_state=with_state):
                    content = _content(path, state.tensors, precision)
                    kind = zipfile.ZIP_STORED if path.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
                    archive.writestr(path.relative_to(folder).as_posix(), content, kind)
    whole = buffer.getvalue()
    described: dict[str, Any] = {"format": _FORMAT, "name": folder.resolve().name, "stand": stand, "bytes": len(whole)}
    described["sha256"] = hashlib.sha256(whole).hexdigest()
    room = int(megabytes * 2**20) - len(_MAGIC) - len(json.dumps(described)) - 64
    if room < 1000:
        raise InputError(f"expected larger pieces for {len(runs)} runs, found {megabytes:g} megabytes; give more")
    number = -(-len(whole) // room)
    plain_name = re.sub(r"[^\w.-]", "_", described["name"], flags=re.ASCII)
    with made_folder(into):
        pieces = {
            into / f"{plain_name}-{place + 1:03}of{number:03}{_ENDING}": _MAGIC
            + json.dumps({**described, "piece": place + 1, "of": number}).encode()
            + b"\n"
            + whole[place * room : (place + 1) * room]
            for place in range(number)
        }
        write_together(pieces)
    return list(pieces)


def unpack(pieces: Path, folder: Path) -> Stand:
    """Join the pieces of a folder into a run, or a study, which goes on from there; gives how far its runs are.

    A run that is there already is replaced where it is the same at an earlier epoch; weights that the pieces lack stay.

    Raises:
        InputError: a piece is missing, damaged, or of another epoch; the folder holds something else, or is further on.
            Nothing is written then.
    """
    described, whole = _joined(pieces)
    try:
        with zipfile.ZipFile(BytesIO(whole)) as archive:
            if sum(file.file_size for file in archive.infolist()) > 100 * len(whole):
                raise ValueError("files that grow without bounds")
            contents = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(f"expected pieces of a run in {pieces}, found others ({one_line(error, 100)})") from None
    stand: Stand = described["stand"]
    for name in contents:
        _check_name(name, stand, pieces)
    for name, (epoch, step) in stand.items():
        if not {_inside(name, RECIPE), _inside(name, LAST_STATE)} <= contents.keys():
            raise InputError(f"expected recipe and state of {name or 'a run'} in the pieces of {pieces}, found none")
        _check_place(folder / name, contents[_inside(name, RECIPE)], epoch, step)
    if "" not in stand and folder.is_dir() and not (folder / STUDY).is_file() and any(folder.iterdir()):
        raise InputError(f"expected the study's folder or a new one, found other files in {folder}; choose another")
    with made_folder(folder), contextlib.ExitStack() as locks:
        for parent in {Path(name).parent for name in contents}:
            (folder / parent).mkdir(parents=True, exist_ok=True)
        for name in stand:
            locks.enter_context(lock(folder / name))
        last = {_inside(name, LAST_STATE) for name in stand}
        others = contents.keys() - last
        write_together({folder / name: _widened(name, contents[name]) for name in sorted(others)})
        for name in last:  # only with it the rest counts
            write_atomically(folder / name, contents[name])
        for name in stand:
            for path in (folder / name / STATE).glob("*.safetensors"):
                if path.relative_to(folder).as_posix() not in contents:
                    path.unlink()
    return stand


def _runs_in(folder: Path) -> dict[str, tuple[bool, bool]]:
    """The runs with a state, by their folder inside this one: whether their weights are needed yet, and their state."""
    if has_begun(folder):
        return {"": (True, True)}
    if not (folder / STUDY).is_file():
        raise InputError(f"expected a run with a saved state, or a study, in {folder}, found none")
    study = read_study(folder)
    known = [run for run in study["runs"] if has_begun(folder / run["folder"])]
    unfinished = [run for run in study["runs"] if run["status"] != "finished"]
    taught = {teacher for run in unfinished for teacher in run.get("teachers", ())}
    return {run["folder"]: (run in unfinished or run["folder"] in taught, run in unfinished) for run in known}


def _files_of(run: Path, *, with_weights: bool, with_state: bool) -> Iterator[Path]:
    """What travels of a run: all but weights of single epochs, pictures, and what a killed process left."""
    for path in sorted(run.rglob("*")):
        top = path.relative_to(run).parts[0]
        is_wanted = path.is_file() and top in RUN_FILES and not is_aside(path) and path.suffix != ".png"
        if path.suffix == ".safetensors":
            is_wanted = is_wanted and (with_state if top == STATE else with_weights and path.parent == run)
        if is_wanted and path.name != LOCK:
            yield path


def _content(path: Path, state: Path, precision: Precision) -> bytes:
    """A file as it travels."""
    if path != state or precision == Precision():
        return path.read_bytes()
    import torch
    from safetensors.torch import load, save

    tensors = {}
    for key, tensor in load(path.read_bytes()).items():
        is_momentum, is_weight = key.startswith("optimizer."), key.startswith(("model.", "average."))
        if is_momentum and precision.momentum == "none":
            continue
        kind = precision.momentum if is_momentum else precision.weights if is_weight else "float32"
        narrow = tensor.to(getattr(torch, kind)) if tensor.dtype == torch.float32 else tensor
        if narrow.dtype != tensor.dtype and not torch.isfinite(narrow).all():
            raise InputError(f"expected numbers within {kind} in {key} of {path}, found larger ones; keep float32")
        tensors[key] = narrow.contiguous()
    return save(tensors)


def _widened(name: str, content: bytes) -> bytes:
    """A state's numbers in the float32 that training takes; other files as they are."""
    if PurePosixPath(name).parent.name != STATE or not name.endswith(".safetensors"):
        return content
    import torch
    from safetensors.torch import load, save

    tensors = load(content)
    narrow = (torch.float16, torch.bfloat16)
    if not any(tensor.dtype in narrow for tensor in tensors.values()):
        return content
    return save({key: tensor.float() if tensor.dtype in narrow else tensor for key, tensor in tensors.items()})


def _joined(folder: Path) -> tuple[Mapping[str, Any], bytes]:
    """What the pieces say of the whole, and the whole."""
    paths = sorted(folder.glob(f"*{_ENDING}"))
    if not paths:
        raise InputError(f"expected pieces (*{_ENDING}) in {folder}, found none")
    parts: dict[int, bytes] = {}
    first: dict[str, Any] = {}
    for path in paths:
        described, content = _read_piece(path)
        place = described.pop("piece")
        first = first or described
        if described != first:
            raise InputError(
                f"expected pieces of one run at one epoch in {folder}, found {_where(first)} and, in {path.name}, "
                f"{_where(described)}; keep those of one"
            )
        parts[place] = content
    missing = [str(place) for place in range(1, first["of"] + 1) if place not in parts]
    if missing:
        raise InputError(
            f"expected {first['of']} pieces of {_where(first)} in {folder}, found all but {', '.join(missing[:8])}; "
            "bring it too"
        )
    whole = b"".join(parts[place] for place in sorted(parts))
    if len(whole) != first["bytes"] or hashlib.sha256(whole).hexdigest() != first["sha256"]:
        raise InputError(
            f"expected the pieces of {_where(first)} in {folder} unharmed, found damaged ones; copy them anew"
        )
    return first, whole


def _read_piece(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    try:
        magic, header, rest = content.split(b"\n", 2)
        described = json.loads(header)
        if magic + b"\n" != _MAGIC or not isinstance(described, dict):
            raise ValueError("another file")
        if described["format"] > _FORMAT:
            raise InputError(f"{path}: written in format {described['format']}; update ccf_plugin")
        numbers = [described["piece"], described["of"], described["bytes"]]
        numbers += [number for stand in described["stand"].values() for number in stand]
        if not all(isinstance(number, int) and 0 <= number < 2**40 for number in numbers) or described["of"] > 10**6:
            raise ValueError("its numbers")
        stands = described["stand"]
        if not stands or any(len(stand) != 2 or PurePosixPath(name).name != name for name, stand in stands.items()):
            raise ValueError("its runs")
        str(described["sha256"] + described["name"])
        return described, rest
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"expected a piece in {path}, found a damaged or another file ({one_line(error, 80)})"
        ) from None


def _where(described: Mapping[str, Any]) -> str:
    """What a piece is of, in words: "kd-0 at epoch 12"."""
    stands = [
        f"{name or described['name']} at epoch {epoch}{f', step {step}' if step else ''}"
        for name, (epoch, step) in described["stand"].items()
    ]
    return ", ".join(stands[:4]) + (", …" if len(stands) > 4 else "")


def _check_name(name: str, stand: Stand, pieces: Path) -> None:
    """A stranger's archive may name any path; only those of runs and studies are written."""
    parts = PurePosixPath(name).parts
    is_plain = name == "/".join(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name
    inside = name if "" in stand else name.partition("/")[2]
    is_of_run = bool(inside) and inside.split("/")[0] in RUN_FILES and ("" in stand or parts[0] in stand)
    if not is_plain or not (is_of_run or name in STUDY_FILES):
        raise InputError(f"expected the files of a run or a study in the pieces of {pieces}, found {name[:80]!r}")


def _check_place(run: Path, recipe: bytes, epoch: int, step: int) -> None:
    if not has_begun(run):
        if run.is_dir() and any(not is_aside(path) and path.name != LOCK for path in run.iterdir()):
            raise InputError(f"expected a new folder, or the same run, found other files in {run}; choose another")
        return
    if (run / RECIPE).read_bytes() != recipe:
        raise InputError(f"expected the same run in {run}, found one of another recipe; choose another folder")
    there = read_state(run)
    if (len(there.rows), there.step) > (epoch, step):
        raise InputError(
            f"expected pieces of epoch {len(there.rows)} or later, which is where {run} stands, found epoch {epoch}"
        )


def _inside(run: str, name: str) -> str:
    return f"{run}/{name}" if run else name
