"""What a recipe becomes on this machine, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.engine.precision import Precision, resolve_precision
from ccf_plugin.errors import Fault, InputError, counted
from ccf_plugin.files import expanded_path
from ccf_plugin.measuring.evaluate import check_input
from ccf_plugin.measuring.provenance import images_fingerprint, names_fingerprint
from ccf_plugin.runs.layout import checkpoint_of
from ccf_plugin.training.recipe import DataSection, ModelSection, Recipe
from ccf_plugin.zoo.datasets import ImageData, Split, load_data
from ccf_plugin.zoo.models import build_model
from ccf_plugin.zoo.weights import load_weights


@dataclass(frozen=True)
class Parts:
    """The data, the model as training starts from it, on its device, and the precision.

    ``recipe`` has this precision in place of "auto". ``validation`` is None where none is held out, ``extra`` where the
    recipe names no further data.
    """

    recipe: Recipe
    data_name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None
    model: nn.Module
    device: torch.device
    precision: Precision
    extra: Split | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def with_extra(self) -> Split:
        """The training images, those of ``extra`` behind them."""
        if self.extra is None:
            return self.train
        images = (self.train.images, self.extra.images)
        return Split(torch.cat(images), torch.cat([self.train.labels, self.extra.labels]))  # type: ignore[arg-type]

    def forward(self, model: nn.Module) -> Forward:
        """The pass of the run's model, or of a wrapped or averaged one: images → float32 logits."""
        return Forward(model, precision=self.precision, output=self.recipe.probe.output, classes=len(self.classes))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each split's images and labels, by its name, and one of the classes' names in their order."""
        splits = {"train": self.train, "extra": self.extra, "validation": self.validation, "test": self.test}
        hashes = {name: images_fingerprint(split) for name, split in splits.items() if split is not None}
        return {**hashes, "classes": names_fingerprint(self.classes)}

    def work(self) -> float:
        """About how many operations the run's training takes: those of convolutions and matrix products."""
        with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluation_mode(self.model):
            self.model(torch.zeros(2, *self.input_size, dtype=torch.float32, device=self.device))
        # A pass forward, one back to the images, and one back to the weights, are of about the same size.
        attack = 2 * self.recipe.attack.steps if self.recipe.objective.is_adversarial else 0
        return float(counter.get_total_flops() / 2 * (attack + 3) * len(self.train) * self.recipe.optim.epochs)

    def describe_model(self) -> dict[str, Any]:
        """What a checkpoint says of itself, so that it can be loaded wherever it lies."""
        return {
            "model": self.recipe.model.model_dump(),
            "classes": list(self.classes),
            "data": self.data_name,
            "input_size": list(self.input_size),
            "test_limit": self.recipe.data.test_limit,
            "test_images": self.fingerprints["test"],
            "downscale": self.recipe.data.downscale,
            "head": self.recipe.probe.head,
            "output": self.recipe.probe.output,
            "threat": self.recipe.evaluation_threat().as_dict(),
        }


def prepare(recipe: Recipe, device: torch.device, *, download: bool = False, processes: int = 1) -> Parts:
    """Load data and build the model.

    Args:
        download: fetch the data set where it is missing.
        processes: how many processes share each batch.

    Raises:
        InputError: all that can be wrong with a recipe's data, model and device is found here.
        UnavailableError: data or weights are not available here.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    data = load_data(
        recipe.data.name,
        root=recipe.data.root,
        download=download,
        classes=recipe.data.classes,
        train_per_class=recipe.data.train_per_class,
        test_limit=recipe.data.test_limit,
        downscale=recipe.data.downscale,
    )
    if data.train is None or data.test is None:
        raise InputError(f"expected data with a train and a test split, found {data.name} without one of them")
    train, validation = data.train, None
    if recipe.data.validation is not None:
        train, validation = hold_out(data.train, recipe.data.validation)
    extra = None if recipe.data.extra is None else _extra_images(recipe.data, data, download=download)
    size = min(train.images.shape[2:])
    if recipe.data.augmentation != "none" and recipe.data.crop_padding >= size:
        raise InputError(
            f"data.crop_padding: expected less than the images' {size} pixels, found {recipe.data.crop_padding}"
        )
    if recipe.data.cutout >= size:
        raise InputError(f"data.cutout: expected less than the images' {size} pixels, found {recipe.data.cutout}")
    torch.manual_seed(recipe.seed)
    channels, height, width = train.images.shape[1:]
    model = _build(recipe.model, len(data.classes), (channels, height, width))
    if recipe.model.weights is not None:
        start_from(model, _file_of(recipe.model.weights), key=recipe.model.checkpoint_key)
    check_input(model, (channels, height, width), recipe.model.name)
    batch_size = recipe.optim.batch_size
    smallest = min(size for size in (batch_size, len(train) % batch_size) if size) // processes
    if smallest <= 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        shared = "" if processes == 1 else f" and {processes} processes"
        raise InputError(
            f"optim.batch_size: expected one that leaves no batch of a single image, which BatchNorm refuses, found "
            f"{batch_size} for {counted(len(train), 'image')}{shared}"
        )
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = resolve_precision(recipe.precision, device)
    recipe = recipe.model_copy(update={"precision": precision})  # what the run records
    parts = Parts(recipe, data.name, data.classes, train, data.test, validation, model, device, precision, extra)
    try:
        with torch.no_grad(), evaluation_mode(model):  # one that needs contiguous feature maps becomes so now
            parts.forward(model)(torch.zeros(2, channels, height, width, dtype=torch.float32, device=device))
    except InputError as error:  # of the entry of its output that holds the logits
        raise error.within("probe") from error
    return parts


def _build(section: ModelSection, classes: int, size: tuple[int, int, int]) -> nn.Module:
    """Raises InputError, which says what to do where a network gets the options of the recipe's base."""
    try:
        return build_model(
            section.name,
            num_classes=classes,
            input_size=size,
            options=section.options,
            mean=section.mean,
            std=section.std,
        )
    except InputError as error:
        if not section.options:
            raise
        remedy = "set model.options = {} if they are another network's"
        raise InputError(f"{error}; model.options are {dict(section.options)}: {remedy}") from error


def _extra_images(section: DataSection, data: ImageData, *, download: bool) -> Split:
    """The images of ``data.extra``. Raises InputError where they do not go with those of ``data``."""
    assert section.extra is not None  # noqa: S101  (for the type alone)
    nameless = data.classes == tuple(map(str, range(len(data.classes))))
    further = load_data(
        section.extra,
        root=section.root,
        download=download,
        classes=None if nameless else data.classes,  # in its own order, its labels would be of other classes
        downscale=section.downscale,
    )
    extra, train = further.train or further.test, data.train
    assert extra is not None  # noqa: S101  (one of them is there)
    assert train is not None  # noqa: S101  (checked before)
    shape, classes = tuple(train.images.shape[1:]), len(data.classes)
    if tuple(extra.images.shape[1:]) != shape:
        expected, shown = ("×".join(map(str, size)) for size in (shape, extra.images.shape[1:]))
        raise InputError(Fault("data.extra", f"images of {expected} as {data.name} has", shown))
    if len(extra) == 0 or int(extra.labels.max()) >= classes:
        raise InputError(Fault("data.extra", f"labels of the {classes} classes", f"{len(further.classes)} classes"))
    if not (isinstance(train.images, Tensor) and isinstance(extra.images, Tensor)):
        raise InputError(Fault("data.extra", "images that are in memory, as npz:PATH has", "files", "pack them as npz"))
    return extra


def check_weights(weights: str | None, out: Path) -> None:
    """Look for the weights that training starts from, before anything is loaded or replaced.

    Raises InputError for ``weights`` that are not there, or lie in ``out``, the folder of the run that starts.
    """
    if weights is None:
        return
    path = _file_of(weights)
    if not path.is_file():
        raise InputError(Fault("model.weights", "a checkpoint or a run", f"none at {path}", "check the path"))
    if path.resolve().is_relative_to(out.resolve()):
        expected = f"weights outside the run's own folder {out}"
        raise InputError(Fault("model.weights", expected, weights, "choose another {out}"))


def start_from(model: nn.Module, path: Path, *, key: str | None = None) -> None:
    """Load the weights that training starts from (``zoo.weights.load_weights``).

    Raises InputError as that does, and where the file's network normalises its images and ``model`` does not.
    """
    normalization = load_weights(model, path, key=key)
    if normalization is not None:
        expected = f"that of {path}, mean = {normalization.mean} and std = {normalization.std}"
        raise InputError(Fault("model.mean", expected, "none", "state both in [model]"))


def _file_of(weights: str) -> Path:
    path = expanded_path(weights)
    return checkpoint_of(path, "best") if path.is_dir() else path


def hold_out(train: Split, count: int) -> tuple[Split, Split]:
    """Split off ``count`` images, evenly over the classes and the last of each; the order stays.

    Returns:
        What remains, and what is held out.

    Raises:
        InputError: a class would keep no image.
    """
    from_the_end = torch.empty_like(train.labels)  # how many of its class stand behind each image
    for label in range(int(train.labels.max()) + 1):
        rows = (train.labels == label).nonzero().squeeze(1)
        from_the_end[rows] = torch.arange(len(rows) - 1, -1, -1, device="cpu")
    # In the order of their distance from their class's end, then of class.
    ranked = torch.argsort(from_the_end * (int(train.labels.max()) + 1) + train.labels)
    held = torch.zeros(len(train), dtype=torch.bool, device="cpu")
    held[ranked[:count]] = True
    if set(train.labels[~held].tolist()) != set(train.labels.tolist()):
        raise InputError(
            f"data.validation: expected images of every class to remain for training, found {count} of {len(train)}"
        )
    return train.subset((~held).nonzero().squeeze(1)), train.subset(held.nonzero().squeeze(1))
