"""Runs of this package, by the path of a run folder or of one of its .safetensors checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccf_plugin.errors import CCFError, Fault, InputError
from ccf_plugin.files import expanded_path
from ccf_plugin.runs.layout import AVERAGE, LOG, checkpoint_of
from ccf_plugin.runs.log import best_row, read_log
from ccf_plugin.zoo.folders import needs_code
from ccf_plugin.zoo.installed import specs_near
from ccf_plugin.zoo.python_code import code_in, is_python
from ccf_plugin.zoo.sources.source import (
    SOURCES,
    CustomWeights,
    LoadedModel,
    Source,
    default_threat,
    loadable,
    register_source,
)
from ccf_plugin.zoo.specs import find, forms, nearest

# What a checkpoint says of its run, and a loaded model keeps as it is.
_KEPT: dict[str, Any] = {
    "data": str | None,
    "test_limit": int | None,
    "test_images": str | None,
    "downscale": int,
    "head": str | None,
    "output": int | str | None,
}


def _load(spec: str, *, pretrained: bool, checkpoint: CustomWeights | None, model_dir: Path) -> LoadedModel:
    """Load a checkpoint; of a folder the best weights, the averaged ones where the run averages."""
    from ccf_plugin.zoo.checkpoints import read_metadata

    path = checkpoint_at(spec)
    metadata = read_metadata(path)
    if metadata is None:
        raise needs_code(path, found="a safetensors file without one")
    _section(metadata, "model", path)
    if is_python(code := model_in(metadata)):
        # A file must not choose which code runs; the user names it.
        raise needs_code(path, "a network of this package", "a model of your own code", str(code))
    _note_older(path, metadata.get("epoch"))
    if path.stem.endswith(AVERAGE):
        spec = str(path)  # it tells which weights of the folder were taken
    return from_metadata(metadata, path, spec=spec, name=_run_name(path))


def _note_older(path: Path, epoch: object) -> None:
    """Warn where a run's best or last weights are older than its log: its state went on elsewhere, without them."""
    which, run = path.stem.removesuffix(AVERAGE), path.parent
    if which not in ("best", "last") or not isinstance(epoch, int) or not (run / LOG).is_file():
        return
    try:
        rows = read_log(run)
    except InputError:
        return
    by = next((row.selected_by for row in reversed(rows) if row.selected_by), None)
    suffix = path.stem.removeprefix(which)
    row = (best_row(rows, f"{by}{suffix}") if by else None) if which == "best" else next(reversed(rows), None)
    if row is not None and row.epoch > epoch:
        warnings.warn(
            f"{path} is of epoch {epoch}, and {run / LOG} says that the {which} one is epoch {row.epoch}: bring its "
            "weights from where the run went on",
            stacklevel=2,
        )


def model_in(metadata: Mapping[str, Any]) -> object:
    """The spec of the network that a checkpoint describes, as ``build_model`` takes it; None where it has none."""
    model = metadata.get("model")
    return model.get("name") if isinstance(model, Mapping) else None


def _run_name(path: Path) -> str:
    """runs/mine is mine, runs/mine/last.safetensors mine-last, runs/mine/epochs/010.safetensors mine-010.

    Where mine averages, its best and last are the averaged weights, and mine-best-raw the others.
    """
    run = path.resolve().parent
    if path == checkpoint_of(path.parent, "best"):
        return run.name
    if path == checkpoint_of(path.parent, "last"):
        return f"{run.name}-last"
    is_raw = path.stem in ("best", "last")
    return f"{run.parent.name if run.name == 'epochs' else run.name}-{path.stem}{'-raw' if is_raw else ''}"


def from_metadata(metadata: Mapping[str, Any], path: Path, *, spec: str, name: str) -> LoadedModel:
    """The network that a run's checkpoint describes, with the file's weights."""
    from ccf_plugin.threat import threat_model
    from ccf_plugin.zoo.checkpoints import apply_state, load_state
    from ccf_plugin.zoo.models import build_model

    model = _section(metadata, "model", path)
    try:
        classes = tuple(str(label) for label in metadata["classes"])
        channels, height, width = (int(side) for side in metadata["input_size"])
        kept = {"downscale": 1} | {name: metadata[name] for name in _KEPT if name in metadata}
        if not all(isinstance(kept.get(name), kind) for name, kind in _KEPT.items()) or kept["downscale"] < 1:
            raise TypeError(kept)
        options = dict(model.get("options") or {})
        for key, code in code_in(options):  # a file must not choose which code runs; the user names it
            remedy = f"name it: {{options={ {key: code}!r}}}"
            raise InputError(Fault("", "options without code", "one that is your own code", remedy))
        source = find(SOURCES, str(model["name"]))
        options.update(source[0].untrained if source else {})  # the weights follow from the file
        network = build_model(
            model["name"],
            num_classes=len(classes),
            input_size=(channels, height, width),
            options=options,
            mean=model.get("mean"),
            std=model.get("std"),
        )
        threat = default_threat() | dict(metadata.get("threat") or {})
        threat_model(**threat)
    except CCFError as error:
        raise error.within(str(path)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise needs_code(path) from error
    apply_state(network, load_state(path), source=str(path))
    return LoadedModel(
        model=network.float().eval(),
        spec=spec,
        name=name,
        num_classes=len(classes),
        class_names=classes,
        threat=threat,
        input_size=(channels, height, width),
        **kept,
    )


def _section(metadata: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    section = metadata.get(key)
    if not isinstance(section, Mapping):
        raise needs_code(path)
    return section


def checkpoint_at(spec: str) -> Path:
    """The file of weights that a path names. Raises InputError where there is none."""
    path = expanded_path(spec)
    if path.is_dir():
        best = checkpoint_of(path, "best")
        if best.is_file():
            return best
        present = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "no checkpoint"
        raise InputError(f"{path}: expected a run folder with {best.name}, found {present}")
    if path.is_file():
        if path.suffix == ".safetensors":
            return path
        raise needs_code(path, "a .safetensors checkpoint of a run", "another file")
    prefix, colon, _ = spec.partition(":")
    if colon and prefix not in SOURCES:
        raise InputError(f"model {spec!r}: no kind {prefix!r}; expected {forms(loadable())}{nearest(loadable(), spec)}")
    near = "" if colon or len(path.parts) > 1 else specs_near(spec, _whole_specs())
    raise InputError(f"model {spec!r}: no such file or folder; expected {forms(loadable())}{near}")


def _whole_specs() -> list[str]:
    """The specs that are a source's prefix alone."""
    return [source.prefix for source in loadable().values() if source.prefix and source.form == source.prefix]


register_source(Source("", "a run folder, a .safetensors checkpoint of one", load=_load))
