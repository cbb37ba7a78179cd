"""Models by spec: RobustBench, timm, a run of this package, or the user's own code with a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ccf_plugin.errors import CCFError, InputError, did_you_mean
from ccf_plugin.files import given_path
from ccf_plugin.runs.layout import AVERAGE, EPOCHS, checkpoint_of
from ccf_plugin.zoo.checkpoints import apply_state, load_state, read_metadata, save_checkpoint
from ccf_plugin.zoo.loaded import LoadedModel, default_threat
from ccf_plugin.zoo.networks import build_model
from ccf_plugin.zoo.normalize import Normalize
from ccf_plugin.zoo.threat import threat_model

__all__ = ["LoadedModel", "Normalize", "build_model", "load_model", "load_state", "save_checkpoint"]

_KINDS = ("robustbench", "timm", "python")
_FORMS = (
    "robustbench:[dataset/threat/]Name, timm:name, a run folder, a .safetensors checkpoint of one, "
    "or python:package.module:factory with --checkpoint FILE"
)


def load_model(
    spec: str,
    *,
    pretrained: bool = True,
    checkpoint: Path | None = None,
    model_dir: Path = Path("models"),
) -> LoadedModel:
    """The classifier that ``spec`` names, in float32 and eval mode, taking [0, 1] images.

    ``spec`` is ``robustbench:[dataset/threat/]Name`` (weights in ``model_dir``), ``timm:name``, a run folder (its best
    weights, the averaged ones where it averages), a .safetensors checkpoint of a run, or
    ``python:package.module:factory``, whose weights come from ``checkpoint``. ``pretrained=False`` leaves RobustBench's
    and timm's models untrained. Raises InputError for a spec or file that is not right and UnavailableError for weights
    that cannot be downloaded.
    """
    kind, separator, rest = spec.partition(":")
    if checkpoint is not None and not (separator and kind == "python"):
        raise InputError(f"--checkpoint goes with python:package.module:factory, found {spec!r}")
    if separator and kind == "robustbench":
        from ccf_plugin.zoo.robustbench_models import load_robustbench

        return load_robustbench(rest, pretrained=pretrained, model_dir=Path(model_dir))
    if separator and kind == "timm":
        from ccf_plugin.zoo.timm_models import load_timm

        return load_timm(rest, pretrained=pretrained)
    if separator and kind == "python":
        return _load_python(spec, rest, checkpoint)
    return _load_run(spec, _run_checkpoint(spec))


def _load_python(spec: str, target: str, checkpoint: Path | None) -> LoadedModel:
    from ccf_plugin.zoo.python_models import build_python

    name = target.rpartition(":")[2]
    if checkpoint is None:
        model = build_python(target, {})
        return LoadedModel(model=model.float().eval(), spec=spec, name=name, num_classes=_num_classes(model))
    checkpoint = Path(checkpoint)
    metadata = read_metadata(checkpoint) if checkpoint.suffix == ".safetensors" else None
    if metadata is not None and _describes(metadata, spec):
        return _from_metadata(metadata, checkpoint, spec=spec, name=name)
    model = build_python(target, {})
    apply_state(model, load_state(checkpoint), source=str(checkpoint))
    return LoadedModel(model=model.float().eval(), spec=spec, name=name, num_classes=_num_classes(model))


def _load_run(spec: str, path: Path) -> LoadedModel:
    metadata = read_metadata(path)
    if metadata is None:
        raise InputError(
            f"{path}: a safetensors file without a description of its model; "
            f"name its code with python:package.module:factory --checkpoint {path}"
        )
    code = str(_section(metadata, "model", path).get("name", ""))
    if code.startswith("python:"):
        # A file must not choose which code runs; the user names it.
        raise InputError(f"{path}: a model of your own code; run it with {code} --checkpoint {path}")
    if path.stem.endswith(AVERAGE):
        spec = str(path)  # so that whoever named the folder sees which weights they are
    return _from_metadata(metadata, path, spec=spec, name=_run_name(path))


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
    return f"{run.parent.name if run.name == EPOCHS else run.name}-{path.stem}{'-raw' if is_raw else ''}"


def _from_metadata(metadata: Mapping[str, Any], path: Path, *, spec: str, name: str) -> LoadedModel:
    model = _section(metadata, "model", path)
    try:
        classes = tuple(str(label) for label in metadata["classes"])
        channels, height, width = (int(side) for side in metadata["input_size"])
        data, test_limit = metadata.get("data"), metadata.get("test_limit")
        head, output = metadata.get("head"), metadata.get("output")
        if not isinstance(data, str | None) or not isinstance(test_limit, int | None):
            raise TypeError(data, test_limit)
        if not isinstance(head, str | None) or not isinstance(output, int | str | None):
            raise TypeError(head, output)
        options = dict(model.get("options") or {})
        if str(model["name"]).startswith(("timm:", "robustbench:")):
            options["pretrained"] = False  # the weights follow from the file
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
        raise type(error)(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its description is garbled; name its code with python:… --checkpoint") from error
    apply_state(network, load_state(path), source=str(path))
    return LoadedModel(
        model=network.float().eval(),
        spec=spec,
        name=name,
        num_classes=len(classes),
        class_names=classes,
        data=data,
        threat=threat,
        input_size=(channels, height, width),
        test_limit=test_limit,
        head=head,
        output=output,
    )


def _section(metadata: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    section = metadata.get(key)
    if not isinstance(section, Mapping):
        raise InputError(f"{path}: its description is garbled; name its code with python:… --checkpoint")
    return section


def _describes(metadata: Mapping[str, Any], spec: str) -> bool:
    model = metadata.get("model")
    return isinstance(model, Mapping) and model.get("name") == spec


def _run_checkpoint(spec: str) -> Path:
    path = given_path(spec)
    if path.is_dir():
        best = checkpoint_of(path, "best")
        if best.is_file():
            return best
        found = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "no checkpoint"
        raise InputError(f"{path}: expected a run folder with {best.name}, found {found}")
    if path.is_file():
        if path.suffix == ".safetensors":
            return path
        raise InputError(
            f"{path}: expected a .safetensors checkpoint of a run; "
            f"for another file use python:package.module:factory --checkpoint {path}"
        )
    kind, separator, _ = spec.partition(":")
    if separator and kind not in _KINDS:
        raise InputError(f"model {spec!r}: no kind {kind!r}; expected {_FORMS}{did_you_mean(kind, _KINDS)}")
    raise InputError(f"model {spec!r}: no such file or folder; expected {_FORMS}")


def _num_classes(model: nn.Module) -> int | None:
    """What the model itself says; a guess from its last layer could be wrong, the first pass is not."""
    said = getattr(model, "num_classes", None)
    return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None
