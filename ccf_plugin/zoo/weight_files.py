"""Files of weights of any origin, read as nested mappings of tensors. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccf_plugin.errors import InputError, one_line
from ccf_plugin.zoo.containment import weights_only
from ccf_plugin.zoo.folders import check_file

StateDicts = dict[tuple[str, ...], dict[str, Tensor]]
"""The tensors of each mapping in a file, by the keys that lead to it."""

_TORCH_SUFFIXES = {".pt", ".pth", ".th", ".ckpt", ".bin", ".tar"}
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02")  # torch's archives, and its pickles before torch 1.6
_DEEPEST = 8
# Classes of values that do nothing but hold some.
_PLAIN: tuple[type, ...] = (Namespace, SimpleNamespace, PosixPath, date, datetime, timedelta, np.dtype, np.ndarray)
# What torch.compile, FSDP and activation checkpointing put into keys, wherever the module that they wrap stands.
_WRAPPER_PARTS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def read_content(path: Path) -> Any:
    """What a safetensors or torch file holds, whatever its suffix; torch files are read with ``weights_only=True``.

    Raises InputError, on one line, for a file that is missing, empty, cut short, a web page, of another kind, or that
    holds Python objects beside tensors, numbers, text and what ``_PLAIN`` lists.
    """
    check_file(path)
    with path.open("rb") as file:
        start = file.read(9)
    suffix = path.suffix.lower()
    if suffix == ".safetensors" or (suffix not in _TORCH_SUFFIXES and start[8:] == b"{"):
        return _read_safetensors(path)
    if suffix not in _TORCH_SUFFIXES and not start.startswith(_TORCH_STARTS):
        raise InputError(f"{path}: expected a checkpoint ending in .safetensors, .pt or .pth, found {path.suffix!r}")
    return _read_torch(path)


def state_dicts(content: object) -> StateDicts:
    """Each mapping of ``content`` that holds tensors, outermost first, with those; keys as ``plain_key`` has them.

    A list of tensors inside a mapping is one whose keys are "0", "1", ….
    """
    dicts: StateDicts = {}
    visited: set[int] = set()

    def walk(value: object, place: tuple[str, ...]) -> None:
        if not isinstance(value, Mapping | list | tuple) or id(value) in visited or len(place) > _DEEPEST:
            return
        visited.add(id(value))
        if isinstance(value, Mapping):
            tensors = {plain_key(str(key)): entry for key, entry in value.items() if isinstance(entry, Tensor)}
            if tensors:
                dicts[place] = tensors
        elif place and value and all(isinstance(entry, Tensor) for entry in value):
            dicts[place] = {str(number): entry for number, entry in enumerate(value)}
        for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
            walk(entry, (*place, str(key)))

    walk(content, ())
    return dicts


def plain_key(key: str) -> str:
    """A state dict's key without what torch.compile, FSDP and activation checkpointing put into it."""
    return _WRAPPER_PARTS.sub("", key)


def refusal(error: BaseException, path: Path | None = None) -> str:
    """Why ``torch.load(weights_only=True)`` refused a file, and the way out, in a few words."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    if match:
        return (
            f"it holds the Python object {match.group(1)}, and nothing is unpickled here; whoever trusts it writes its "
            f"weights beside it once, in Python: {conversion(path or Path('FILE'))}"
        )
    reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({one_line(error, 80)})"  # pages of advice
    return f"it is damaged or not a torch file{reason}; download or save it again"


def conversion(path: Path) -> str:
    """Lines of Python that write the tensors of a file, in plain mappings, into another beside it."""
    beside = path.with_name(f"{path.name}.weights.pt")
    return (
        f"import torch; c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        "w = lambda v: w(v.state_dict()) if isinstance(v, torch.nn.Module) else {k: w(x) for k, x in v.items() "
        "if isinstance(x, (dict, torch.Tensor, torch.nn.Module))} if isinstance(v, dict) else v; "
        f"torch.save(w(c), {str(beside)!r})"
    )


def damaged(path: Path, kind: str, error: Exception) -> InputError:
    """The error for a file that its reader could not make sense of."""
    return InputError(
        f"{path}: expected a {kind}, found a damaged one ({one_line(error, 80)}); download or save it again"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, "safetensors file", error) from error
    return state


def _read_torch(path: Path) -> Any:
    try:
        with weights_only(), _plain_values(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is TorchScript, which it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: {refusal(error, path)}") from error
    except Exception as error:  # a damaged file can fail in any way
        if "TorchScript" in str(error):
            remedy = f"save its state dict: torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pt')"
            raise InputError(f"{path}: expected a torch checkpoint, found a TorchScript module; {remedy}") from error
        raise damaged(path, "torch checkpoint", error) from error


@contextlib.contextmanager
def _plain_values() -> Iterator[None]:
    """Let torch's restricted reader take what training scripts keep beside weights: arguments, paths, dates, arrays."""
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(0).__reduce__()[0]
    numbers = [type(np.dtype(kind)) for kind in (*"?bBhHiIlLqQefd", "U1", "S1")]
    names: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [*_PLAIN, *numbers]
    for core in ("core", "_core"):
        names += [(scalar, f"numpy.{core}.multiarray.scalar"), (array, f"numpy.{core}.multiarray._reconstruct")]
    with torch.serialization.safe_globals(names):
        yield
