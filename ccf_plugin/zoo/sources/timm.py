"""timm's models: ``timm:name``, with timm's own normalisation as a layer and its own resizing and cropping.

The user's own checkpoint may be given; the option ``img_size`` then says which size its images had, and ``mean`` and
``std`` say how they were normalised.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccf_plugin.errors import Fault, InputError, UnavailableError, did_you_mean, one_line
from ccf_plugin.zoo.containment import quiet, weights_only
from ccf_plugin.zoo.installed import check_timm
from ccf_plugin.zoo.sources.source import CustomWeights, LoadedModel, Source, register_source

if TYPE_CHECKING:
    from torch import nn

    from ccf_plugin.zoo.image_files import Preprocess


def _load(name: str, *, pretrained: bool, checkpoint: CustomWeights | None, model_dir: Path) -> LoadedModel:
    """The model ``name``, with or without a weight tag, its weights timm's or the user's.

    Raises InputError for a name, tag or weights that timm does not have, UnavailableError for a failed download.
    """
    if checkpoint is not None:
        return _load_custom(name, checkpoint, pretrained=pretrained)
    import timm

    from ccf_plugin.zoo.normalize import with_normalization

    _check_name(name, pretrained=pretrained)
    network = _create(name, pretrained=pretrained)
    config, preprocess = _data_config(network)
    num_classes = getattr(network, "num_classes", 0) or None
    weights = timm.get_pretrained_cfg(name) if pretrained else None
    return LoadedModel(
        model=with_normalization(network, config["mean"], config["std"], channels=len(config["mean"])).float().eval(),
        spec=f"timm:{name}",
        name=name,
        num_classes=num_classes,
        data="imagenet" if weights is not None and num_classes == 1000 else None,
        preprocess=preprocess,
        input_size=config["input_size"],
    )


def _load_custom(name: str, custom: CustomWeights, *, pretrained: bool) -> LoadedModel:
    """The model ``name`` with the user's weights, options and classes, on images of the size that ``img_size`` says."""
    from ccf_plugin.zoo.normalizations import Normalization
    from ccf_plugin.zoo.weights import restored

    if custom.path is None and pretrained:
        raise InputError(Fault("checkpoint", f"weights for timm:{name} with options of your own", "none"))
    _check_name(name, pretrained=False)
    options: dict[str, Any] = {"pretrained": False, **custom.options}
    size = options.pop("img_size", None)

    def build(num_classes: int | None) -> nn.Module:
        return _create_sized(name, size, **options, **({} if num_classes is None else {"num_classes": num_classes}))

    config, preprocess = _data_config(build(custom.num_classes), size)
    usual = Normalization(config["mean"], config["std"])
    model, is_normalized = restored(build, custom, usual=usual)
    pixels = "×".join(map(str, config["input_size"][1:]))
    if not is_normalized:
        mean, std = (", ".join(f"{value:.4g}" for value in config[key]) for key in ("mean", "std"))
        warnings.warn(
            f"timm:{name} with weights of your own: images resized to {pixels} and normalised by mean {mean} and std "
            f"{std}, as timm does; img_size among its options, and mean and std, say otherwise",
            stacklevel=2,
        )
    elif size is None:
        warnings.warn(
            f"timm:{name} with weights of your own: images resized and cropped to {pixels}, as timm does; img_size "
            "among its options says otherwise",
            stacklevel=2,
        )
    return LoadedModel(model, f"timm:{name}", name, preprocess=preprocess, input_size=config["input_size"])


def _data_config(network: nn.Module, size: int | None = None) -> tuple[dict[str, Any], Preprocess]:
    """timm's data configuration of a network, for images of a ``size`` of one's own where given, and its resizing."""
    from timm.data import create_transform, resolve_data_config
    from torchvision import transforms

    config: dict[str, Any] = resolve_data_config({"img_size": size, "crop_pct": size and 1.0}, model=network)
    pipeline = create_transform(**config, is_training=False).transforms
    to_tensor = next(i for i, step in enumerate(pipeline) if "ToTensor" in type(step).__name__)
    return config, transforms.Compose(pipeline[:to_tensor])


def _build(name: str, *, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]) -> nn.Module:
    """The model ``name`` for this many classes and this input; untrained unless ``options["pretrained"]``.

    ``options`` go to ``timm.create_model``. Raises as ``_load`` does, and InputError for options that it refuses.
    """
    pretrained = bool(options.get("pretrained", False))
    _check_name(name, pretrained=pretrained)
    rest = {key: value for key, value in options.items() if key != "pretrained"}
    arguments = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": input_size[0], **rest}
    if "img_size" in rest:
        return _create(name, **arguments)
    return _create_sized(name, input_size[1] if input_size[1] == input_size[2] else input_size[1:], **arguments)


def _create_sized(name: str, size: int | tuple[int, ...] | None, **arguments: Any) -> nn.Module:
    if size is None:
        return _create(name, **arguments)
    try:
        return _create(name, **arguments, img_size=size)
    except InputError as error:
        # Transformers need the size of the images; convolutional networks do not know the parameter.
        if "'img_size'" not in str(error):
            raise
        return _create(name, **arguments)


def _check_name(name: str, *, pretrained: bool) -> None:
    import timm

    if not name or not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(f"timm has no weights {name!r}{did_you_mean(name, tags)}") from error
    if pretrained and (config is None or not config.has_weights):
        known = f"; it has {', '.join(tags[:3])}" if tags else ""
        found = f"none for {name!r}{known}"
        raise InputError(Fault("", "a model with weights of timm's", found, "use another, or {pretrained=False}"))


def _create(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    import timm

    from ccf_plugin.zoo.weight_files import refusal

    _repair_hub()
    try:
        with quiet(), weights_only():
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        raise InputError(f"timm:{name} refuses its options: {one_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"the weights of timm:{name} were not loaded: {refusal(error)}") from error
    except Exception as error:
        if pretrained:
            raise UnavailableError(f"could not load the weights of timm:{name} ({one_line(error, 160)})") from error
        raise InputError(f"timm:{name} cannot be built with {options}: {one_line(error)}") from error
    return model


def _repair_hub() -> None:
    """Give timm the Hugging Face hub's download function.

    timm 1.0.9, which robustbench pins, imports it together with ``repo_type_and_id_from_hf_id``, which newer
    huggingface_hub no longer has, and then takes the hub for not installed: no pretrained model could be loaded.
    """
    import timm
    from timm.models import _hub

    if _hub.has_hf_hub():
        return
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        return  # it really is not installed, and timm's own message says so

    def download(*arguments: Any, **options: Any) -> str:
        try:
            return str(hf_hub_download(*arguments, **options, library_name="timm", library_version=timm.__version__))
        except LocalEntryNotFoundError as error:
            # No network: timm would think that the hub lacks the file, and try the next name as slowly.
            raise ConnectionError(f"the Hugging Face hub cannot be reached: {error.__cause__ or error}") from error

    _hub.hf_hub_download = download
    _hub.EntryNotFoundError = EntryNotFoundError
    _hub._has_hf_hub = True


register_source(
    Source(
        "timm",
        "timm:name",
        check_timm,
        load=_load,
        build=_build,
        takes_checkpoint=True,
        untrained={"pretrained": False},
    )
)
