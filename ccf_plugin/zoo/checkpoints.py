"""The checkpoints that this package writes: plain state dicts in safetensors, described in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ccf_plugin.errors import InputError, one_line, some_of
from ccf_plugin.files import write_atomically
from ccf_plugin.zoo.folders import check_file, needs_code
from ccf_plugin.zoo.weight_files import damaged, plain_key, read_content, state_dicts

FORMAT = 1
METADATA_KEY = "ccf_plugin"

_PREFIX = "module."  # DataParallel, DistributedDataParallel


def on_host(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Copies in host memory. Raises InputError for other things than tensors."""
    tensors = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"cannot save {key!r} of the model: expected a tensor, found {type(value).__name__}")
        tensors[key] = value.detach().to("cpu", copy=True)
    return tensors


def write_checkpoint(paths: Sequence[Path], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a state dict ``on_host`` to each path (.safetensors), with ``metadata`` as JSON under ``"ccf_plugin"``.

    A reader sees the old file or the whole new one. Tensors are saved contiguous and apart, shared ones once per name.
    ``"format"`` is added to the metadata.
    """
    from safetensors.torch import save

    named = {plain_key(key): value.contiguous() for key, value in tensors.items()}
    description = json.dumps({"format": FORMAT, **metadata})
    content = save(named, metadata={"format": "pt", METADATA_KEY: description})  # accelerate asks for the former
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def load_state(path: Path) -> dict[str, Tensor]:
    """The one state dict in a file, without a prefix ``"module."`` that every key has.

    For weights of a given model beside other content, see ``zoo.weights.load_weights``. Raises InputError, on one
    line, as ``read_content`` does, and for a file that holds no state dict.
    """
    content = read_content(path)
    whole = [state for state in state_dicts(content).values() if len(state) > 0]
    if not whole:
        raise no_state_dict(path, content)
    state = whole[0]
    if all(key.startswith(_PREFIX) for key in state):
        state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    return state


def no_state_dict(path: Path, content: object) -> InputError:
    """The error for a file without tensors in mappings."""
    if not isinstance(content, Mapping) or not content:
        return InputError(f"{path}: expected a state dict (names to tensors), found {type(content).__name__}")
    keys = some_of([str(key) for key in content])
    return InputError(f"{path}: expected a state dict (names to tensors), but these are no tensors: {keys}")


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What ``write_checkpoint`` wrote beside the weights, or None in a safetensors file of another origin.

    Raises InputError for a file that is not readable, for metadata that is garbled and for a newer format.
    """
    from safetensors import SafetensorError, safe_open

    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise damaged(path, "safetensors file", error) from error
    if text is None:
        return None
    try:
        metadata = json.loads(text)
        version = metadata["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise needs_code(path) from error
    if not isinstance(version, int) or version > FORMAT:
        raise InputError(f"{path}: written in format {version!r}, this version reads up to {FORMAT}; update ccf_plugin")
    return dict(metadata)


def apply_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load ``state`` into ``model``, in the model's own precision.

    Raises InputError that names the keys where it belongs to another architecture, is not of floating point where the
    model is (quantised weights), or holds NaN or infinite weights.
    """
    expected = model.state_dict()
    differences = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [key for key in expected if key in state and expected[key].shape != state[key].shape],
    }
    if any(differences.values()):
        raise InputError(architecture_mismatch(source, differences))
    for key, value in state.items():
        if expected[key].is_floating_point() and not value.is_floating_point():
            raise InputError(f"{source}: expected floating-point numbers in {key!r}, found {value.dtype}; convert them")
    try:
        model.load_state_dict(dict(state))
    except Exception as error:  # sparse tensors, tensors without data and whatever else copying refuses
        raise InputError(
            f"{source}: expected plain tensors, found others ({one_line(error, 120)}); save it again"
        ) from error
    check_finite(model, source)


def architecture_mismatch(source: str, differences: Mapping[str, Sequence[str]]) -> str:
    """The message for weights that do not fit; ``differences`` are keys under what is wrong with them."""
    parts = [f"{len(keys)} {kind} ({some_of(keys)})" for kind, keys in differences.items() if keys]
    return (
        f"{source}: expected the weights of this network, found a checkpoint of another architecture: "
        f"{'; '.join(parts)}; name the factory that made it"
    )


def check_finite(model: nn.Module, source: str) -> None:
    """Raise InputError where a parameter is NaN or infinite, or a buffer NaN (an infinite one may be a mask)."""
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        wrong = ~value.isfinite() if isinstance(value, nn.Parameter) else value.isnan()
        if bool(wrong.any()):
            raise InputError(
                f"{source}: expected finite weights, found NaN or infinity in {key!r}; take an earlier checkpoint"
            )
