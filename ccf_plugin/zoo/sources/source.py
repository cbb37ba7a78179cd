"""What a source of models is, what it loads, and the table of all sources. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ccf_plugin.errors import InputError, did_you_mean
from ccf_plugin.zoo.specs import Entry, register

if TYPE_CHECKING:
    from torch import nn

    from ccf_plugin.zoo.image_files import Preprocess


def default_threat() -> dict[str, Any]:
    """The paper's norm and radius, for a model without its own."""
    return {"norm": "Linf", "eps": 8 / 255}


@dataclass
class LoadedModel:
    """A classifier with what is known about it.

    ``model`` maps float32 images (N, C, H, W) in [0, 1] to logits (N, K), and is in eval mode. ``data`` is the data
    spec to probe it on by default, ``test_limit`` how many of its test images, and ``downscale`` what makes them
    smaller, as ``zoo.datasets.load_data`` takes it; ``test_images`` is the hash of those (``measuring.provenance``),
    where it is known; ``threat`` holds the default norm and eps, and of a run also
    step_size and steps; ``preprocess`` is the resizing and cropping of its own data configuration, ``input_size``
    (C, H, W). ``head`` and ``output`` are what a run's recipe has in [probe].
    ``is_normalized`` False: its weights are the user's, and nothing says how their images were normalised. None means
    unknown (``preprocess``: images go in as they are).
    """

    model: nn.Module
    spec: str
    name: str
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    data: str | None = None
    threat: dict[str, Any] = field(default_factory=default_threat)
    preprocess: Preprocess | None = None
    input_size: tuple[int, int, int] | None = None
    test_limit: int | None = None
    downscale: int = 1
    test_images: str | None = None
    head: str | None = None
    output: int | str | None = None
    is_normalized: bool = True


def are_other_classes(expected: Sequence[str], found: Sequence[str]) -> bool:
    """Whether a model's class names are not the data's in their order; the data's may be "0", "1", …, for any."""
    if tuple(expected) == tuple(found):
        return False
    nameless = [str(label) for label in range(len(found))]
    return sorted(expected) == sorted(found) or list(found) != nameless


@dataclass(frozen=True)
class CustomWeights:
    """What the user says of a network with weights of their own.

    Attributes:
        path: the file; None: the network as its code makes it.
        key: which of several state dicts in the file.
        options: of the code that makes the network.
        num_classes: how many classes the network has; None: as many as the file's.
        mean, std: per channel, of images in [0, 1]; None: the file's own normalisation, or none.
    """

    path: Path | None = None
    key: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    num_classes: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class Load(Protocol):
    """A trained classifier by the name behind the prefix."""

    def __call__(
        self, name: str, /, *, pretrained: bool, checkpoint: CustomWeights | None, model_dir: Path
    ) -> LoadedModel:
        """``pretrained`` False: the architecture alone. ``checkpoint``: of sources that ``takes_checkpoint`` alone.

        Raises InputError and UnavailableError.
        """


class Build(Protocol):
    """A network to train by the name behind the prefix."""

    def __call__(
        self, name: str, /, *, num_classes: int, input_size: tuple[int, int, int], options: Mapping[str, Any]
    ) -> nn.Module:
        """For images (C, H, W) in [0, 1]; ``options`` are a recipe's. Raises InputError and UnavailableError."""


@dataclass(frozen=True)
class Source(Entry):
    """Where models come from: all that is known of the specs "prefix:name".

    Attributes:
        prefix: what stands before the colon; of a source of one model its whole spec; "" is that of paths.
        form: how help and messages show its specs: "timm:name", or ``prefix`` again for a source of one model.
        check: raises InputError for a name that cannot be right; imports nothing heavy.
        load: for ``load_model``, or None where there are no weights to load.
        build: for ``build_model`` and recipes, or None where nothing can be built anew.
        takes_checkpoint: whether ``load`` takes weights from a file that the user names, and options, classes and a
            normalisation of the network that they belong to.
        untrained: options with which ``build`` gives random weights, for a checkpoint's to follow.
    """

    check: Callable[[str], object] = lambda _: None
    load: Load | None = None
    build: Build | None = None
    takes_checkpoint: bool = False
    untrained: Mapping[str, Any] = field(default_factory=dict)


SOURCES: dict[str, Source] = {}


def register_source(source: Source) -> None:
    """Add a source to ``SOURCES``. Raises InputError for a prefix that is taken."""
    register(SOURCES, source)


def loadable() -> dict[str, Source]:
    """The sources that ``load_model`` knows."""
    return {prefix: source for prefix, source in SOURCES.items() if source.load is not None}


def taking_checkpoint() -> dict[str, Source]:
    """Those that take weights from a file that the user names."""
    return {prefix: source for prefix, source in loadable().items() if source.takes_checkpoint}


def buildable() -> dict[str, Source]:
    """The sources that ``build_model`` knows."""
    return {prefix: source for prefix, source in SOURCES.items() if source.build is not None}


def check_options(name: str, options: Mapping[str, Any], valid: Sequence[str]) -> None:
    """Raise InputError for an option of a recipe that a network does not have."""
    for key in options:
        if key not in valid:
            known = ", ".join(valid) or "none"
            raise InputError(f"{name} has no option {key!r}; its options: {known}{did_you_mean(key, valid)}")
