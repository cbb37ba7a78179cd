"""Weights in files: plain state dicts in safetensors, self-describing through their metadata; nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError, one_line, some_of
from ccf_plugin.files import write_atomically
from ccf_plugin.zoo.containment import weights_only

FORMAT = 1
METADATA_KEY = "ccf_plugin"

_TORCH_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".tar"}
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def save_checkpoint(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write the model's state dict to ``path`` (.safetensors), with ``metadata`` as JSON under ``"ccf_plugin"``.

    A reader sees the old file or the whole new one. Tensors are saved contiguous, on the CPU and apart, shared ones
    once per name. ``"format"`` is added to the metadata. Raises InputError where the state dict holds other things than
    tensors.
    """
    write_checkpoint([path], on_host(model.state_dict()), metadata)


def on_host(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Copies in host memory. Raises InputError for other things than tensors."""
    tensors = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"cannot save {key!r} of the model: expected a tensor, found {type(value).__name__}")
        tensors[key] = value.detach().to("cpu", copy=True)
    return tensors


def write_checkpoint(paths: Sequence[Path], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """The same checkpoint to each path, as ``save_checkpoint`` does, of a state dict ``on_host``."""
    from safetensors.torch import save

    named = {key.replace("_orig_mod.", ""): value.contiguous() for key, value in tensors.items()}
    content = save(named, metadata={METADATA_KEY: json.dumps({"format": FORMAT, **metadata})})
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict in ``path``: .safetensors, or a torch file (.pt, .pth, …) read with ``weights_only=True``.

    A state dict under ``"state_dict"`` or ``"model"`` is taken out, and a prefix ``"module."`` on every key removed.
    Raises InputError, on one line, for a file that is missing, empty, cut short, a web page, or that holds more than
    tensors.
    """
    _check_file(path)
    if path.suffix == ".safetensors":
        return _without_prefix(_load_safetensors(path))
    if path.suffix not in _TORCH_SUFFIXES:
        raise InputError(f"{path}: expected a checkpoint ending in .safetensors, .pt or .pth, found {path.suffix!r}")
    return _without_prefix(_find_state(_load_torch(path), path))


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What ``save_checkpoint`` wrote beside the weights, or None in a safetensors file of another origin.

    Raises InputError for a file that is not readable, for metadata that is garbled and for a newer format.
    """
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors file", error) from error
    if text is None:
        return None
    try:
        metadata = json.loads(text)
        found = metadata["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: its description is garbled; name its code with python:… --checkpoint") from error
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(f"{path}: written in format {found!r}, this version reads up to {FORMAT}; update ccf_plugin")
    return dict(metadata)


def apply_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load ``state`` into ``model``, in the model's own precision.

    Raises InputError that names the keys where it belongs to another architecture, is not of floating point where the
    model is (quantised weights), or holds NaN or infinite weights.
    """
    own = model.state_dict()
    differences = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [key for key in own if key in state and own[key].shape != state[key].shape],
    }
    if any(differences.values()):
        parts = [f"{len(keys)} {kind} ({some_of(keys)})" for kind, keys in differences.items() if keys]
        raise InputError(
            f"{source}: expected the weights of this network, found a checkpoint of another architecture: "
            f"{'; '.join(parts)}; name the factory that made it"
        )
    for key, value in state.items():
        if own[key].is_floating_point() and not value.is_floating_point():
            raise InputError(f"{source}: expected floating-point numbers in {key!r}, found {value.dtype}; convert them")
    try:
        model.load_state_dict(dict(state))
    except Exception as error:  # sparse tensors, tensors without data and whatever else copying refuses
        raise InputError(
            f"{source}: expected plain tensors, found others ({one_line(error, 120)}); save it again"
        ) from error
    check_finite(model, source)


def check_finite(model: nn.Module, source: str) -> None:
    """Raise InputError where a parameter is NaN or infinite, or a buffer NaN (an infinite one may be a mask)."""
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        wrong = ~value.isfinite() if isinstance(value, nn.Parameter) else value.isnan()
        if bool(wrong.any()):
            raise InputError(
                f"{source}: expected finite weights, found NaN or infinity in {key!r}; take an earlier checkpoint"
            )


def is_web_page(path: Path) -> bool:
    """Whether ``path`` holds HTML: what a failed download leaves under the name of a checkpoint."""
    with path.open("rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html", b"<head"))


def refusal(error: BaseException) -> str:
    """Why ``torch.load(weights_only=True)`` refused a file, and the way out, in a few words."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return (
            f"it holds the Python object {found.group(1)}, and nothing is unpickled here; whoever trusts it converts "
            "it once: c = torch.load(FILE, weights_only=False); torch.save(c['state_dict'], FILE) (or c.state_dict())"
        )
    reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({one_line(error, 80)})"  # pages of advice
    return f"it is damaged or not a torch file{reason}; download or save it again"


def _check_file(path: Path) -> None:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise InputError(f"{path}: expected a checkpoint file, found {found}; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected a checkpoint file, found an empty one; download or save it again")
    if is_web_page(path):
        raise InputError(f"{path}: expected a checkpoint file, found a web page; download it again")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, "safetensors file", error) from error
    return state


def _load_torch(path: Path) -> Any:
    try:
        with weights_only():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: {refusal(error)}") from error
    except Exception as error:  # a damaged file fails in as many ways as it has bytes
        raise _damaged(path, "torch checkpoint", error) from error


def _damaged(path: Path, what: str, error: Exception) -> InputError:
    return InputError(
        f"{path}: expected a {what}, found a damaged one ({one_line(error, 80)}); download or save it again"
    )


def _find_state(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(f"{path}: expected a state dict (names to tensors), found {type(loaded).__name__}")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(
            f"{path}: expected a state dict (names to tensors), but these are no tensors: {some_of(others)}"
        )
    return {str(key): value for key, value in loaded.items()}


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:  # either may stand outside the other
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
