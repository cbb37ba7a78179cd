"""Where figures come from: hashes of weights and images, the conditions of a measurement, and what tells two apart.

A provenance is a mapping of plain JSON values, which each result's file holds. All its fields are conditions, on which
the figures depend, except the command and the fields that a hash stands for: the checkpoint's path, the
device, the data's name, limit and size. A field that one of two lacks is None there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ccf_plugin.files import flattened
from ccf_plugin.probe.presentation import size_in_words
from ccf_plugin.runs.environment import running_command
from ccf_plugin.threat import file_pixels, show_pixels
from ccf_plugin.zoo.datasets import Split

_IDENTIFIED_BY = {
    "checkpoint": "weights",
    "device": "weights",
    "data": "images",
    "limit": "images",
    "downscale": "images",
    "input_size": "images",
}
_OF_IMAGES = ("data", "limit", "downscale", "input_size")
_UNKNOWN_BEFORE = ("input_size",)  # what provenances of earlier versions lack, and say nothing of
_LOOKED_AT = 256  # of images that stay on disk
_PIXELS = ("eps", "step_size")
_LONGEST_PART = 40
Differences = dict[str, tuple[Any, Any]]  # by dotted field: there, and now


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the tensors' bytes, in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """The ``fingerprint`` of a model's parameters and buffers, in the order of their names."""
    state = model.state_dict()
    return fingerprint(state[name] for name in sorted(state) if isinstance(state[name], Tensor))


def names_fingerprint(names: Iterable[str]) -> str:
    """The ``fingerprint`` of names in their order."""
    return fingerprint([_bytes("\n".join(names))])


def images_fingerprint(split: Split) -> str:
    """The ``fingerprint`` of a split's images and labels.

    Of images that stay on disk it takes the names of all and the pixels of 256, evenly over the split.
    """
    if isinstance(split.images, Tensor):
        return fingerprint([split.images, split.labels])
    names = "\n".join("/".join(PurePath(str(file)).parts[-2:]) for file in split.images.files)
    rows = torch.linspace(0, len(split) - 1, min(len(split), _LOOKED_AT), dtype=torch.float32, device="cpu").long()
    return fingerprint([_bytes(names), split.images[rows], split.labels])


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text, "utf-8", "surrogateescape"), dtype=torch.uint8)


def with_command(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance of these fields as JSON gives them back, with the command that this process was started by."""
    plain: dict[str, Any] = json.loads(json.dumps({**conditions, "command": running_command()}, default=str))
    return plain


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """The conditions in which two provenances differ, by dotted name."""
    old, new = _conditions(saved), _conditions(now)
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def in_words(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two provenances, such as "limit 3 there, none now; other weights"."""
    old, new = flattened(saved), flattened(now)
    sentences = []
    for name, (before, after) in differences(saved, now).items():
        prefix, field = _split(name)
        if field in ("weights", "images"):
            described = [f"{prefix}{other}" for other in (("checkpoint",) if field == "weights" else _OF_IMAGES)]
            known = [other for other in described if _are_known_to_differ(other, old, new)]
            sentences.append(f"other {_label(name)}")
            sentences += [_change_in_words(other, old.get(other), new.get(other)) for other in known]
        else:
            sentences.append(_change_in_words(name, before, after))
    return "; ".join(dict.fromkeys(sentences))


def name_parts(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a file's name says of a provenance to tell it from another: ["limit3", "seed2"]."""
    old, new = flattened(saved), flattened(now)
    return list(dict.fromkeys(_part(name, old, new) for name in differences(saved, now)))


def conditions_hash(provenance: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a provenance's conditions."""
    known = {name: value for name, value in _conditions(provenance).items() if value is not None}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def _conditions(provenance: Mapping[str, Any]) -> dict[str, Any]:
    fields = flattened(provenance)
    return {name: value for name, value in fields.items() if not _only_describes(name, fields)}


def _only_describes(name: str, fields: Mapping[str, Any]) -> bool:
    prefix, field = _split(name)
    return field == "command" or f"{prefix}{_IDENTIFIED_BY.get(field)}" in fields


def _split(name: str) -> tuple[str, str]:
    """A dotted name's tables, with their dot, and its field."""
    tables, dot, field = name.rpartition(".")
    return tables + dot, field


def _label(name: str) -> str:
    """A field in words: "step size", "weights of the second"."""
    tables, field = _split(name)
    side = next((f" of the {side}" for side in ("first", "second") if tables.startswith(f"{side}.")), "")
    return field.replace("_", " ") + side


def _change_in_words(name: str, saved: Any, now: Any) -> str:
    return f"{_label(name)} {_shown(name, saved)} there, {_shown(name, now)} now"


def _are_known_to_differ(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    is_known = _split(name)[1] not in _UNKNOWN_BEFORE or (name in old and name in new)
    return is_known and bool(old.get(name) != new.get(name))


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list) and _split(name)[1] == "input_size":
        return size_in_words(value)
    if _split(name)[1] in _PIXELS and isinstance(value, float):
        return show_pixels(value)
    return "none" if value is None else str(value)


def _part(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    prefix, field = _split(name)
    value = new.get(name)
    if field == "weights":
        checkpoint = new.get(f"{prefix}checkpoint")
        is_named = checkpoint not in (None, old.get(f"{prefix}checkpoint"))
        return _slug(PurePath(str(checkpoint)).stem) if is_named else f"weights-{str(value)[:8]}"
    if field == "images":
        parts = []
        if old.get(f"{prefix}data") != new.get(f"{prefix}data"):
            parts.append(_slug(str(new.get(f"{prefix}data"))))
        if old.get(f"{prefix}limit") != new.get(f"{prefix}limit"):
            limit = new.get(f"{prefix}limit")
            parts.append("all" if limit is None else f"limit{limit}")
        if old.get(f"{prefix}downscale") != new.get(f"{prefix}downscale"):
            parts.append(f"downscale{new.get(f'{prefix}downscale') or 1}")
        if _are_known_to_differ(f"{prefix}input_size", old, new):
            parts.append("x".join(map(str, new[f"{prefix}input_size"])))
        return "-".join(parts) or f"images-{str(value)[:8]}"
    if field == "precision":
        return _slug(str(value))
    if field in _PIXELS and isinstance(value, float):
        return f"{field.removesuffix('_size')}{file_pixels(value)}"
    word = field.removesuffix("_size").replace("_", "-")
    if value is None or value is False:
        return f"no-{word}"
    if value is True:
        return word
    return f"{word}{value:g}" if isinstance(value, int | float) else f"{word}-{_slug(str(value))}"


def _slug(text: str) -> str:
    """Text as a part of a file's name, without what would pass for the name's own ending."""
    text = re.sub(r"\.(npz|json|png|csv|html)$", "", text)
    return re.sub(r"[^\w.+=-]+", "_", text).strip("_.")[:_LONGEST_PART] or "other"
