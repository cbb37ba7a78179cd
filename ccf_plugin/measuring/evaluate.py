"""One pass over a finished model: clean accuracy, RA, C, CAS and, where asked, I-CAS from the same examples."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.modes import device_of, evaluation_mode
from ccf_plugin.engine.outputs import Choice
from ccf_plugin.engine.precision import Precision
from ccf_plugin.engine.versions import installed_versions
from ccf_plugin.errors import InputError, one_line
from ccf_plugin.measuring.settings import ProbeOptions
from ccf_plugin.probe import CrossClassProbe, CrossClassResult
from ccf_plugin.probe.distributed import num_processes, rank
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attacks import Attack, build_attack
from ccf_plugin.zoo.datasets import Split
from ccf_plugin.zoo.python_code import place_in_user_code

_ALWAYS = ("ccf_plugin", "torch", "numpy")
_LIBRARIES = ("torchattacks", "robustbench", "timm", "torchvision")
_REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, LookupError, AttributeError)
_log = logging.getLogger(__name__)

Batches = Iterable[tuple[Tensor, Tensor]]
# Takes batches, or other pieces of work, and their number; gives them one by one, and shows how far it is.
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class MeasuredSplit:
    """The images that a model is measured on.

    ``classes`` are the K names of the data's classes; ``name`` (of the data) and ``split_name`` are what a result calls
    them, and ``downscale`` is what it says of their size, as ``zoo.datasets.load_data`` takes it.
    """

    split: Split
    classes: tuple[str, ...]
    name: str = "unnamed"
    split_name: str = "test"
    downscale: int = 1

    @property
    def input_size(self) -> list[int]:
        """C, H and W of what the model is given."""
        return list(self.split.images.shape[1:])

    def describe(self) -> dict[str, Any]:
        """What a result says of its images."""
        known = {"name": self.name, "split": self.split_name, "count": len(self.split), "input_size": self.input_size}
        return known if self.downscale == 1 else {**known, "downscale": self.downscale}


@dataclass(frozen=True)
class AttackSettings:
    """An attack, as ``zoo.attacks.build_attack`` takes it: PGD under a threat model, where nothing else is said.

    ``precision`` is that of its passes; logits and features behind every figure are float32. ``seed`` is that of its
    random start.
    """

    threat: ThreatModel
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "float32"
    seed: int = 0

    def build(self, model: nn.Module, num_classes: int, output: Choice | None = None) -> Attack:
        """The attack against a model that maps [0, 1] images (N, C, H, W) to logits (N, K), or to what holds them.

        ``output`` is as `CrossClassProbe` takes it. Raises InputError as ``build_attack`` does.
        """
        forward = Forward(model, precision=self.precision, output=output, classes=num_classes)
        return build_attack(
            self.name, forward, self.threat, options=self.options, num_classes=num_classes, seed=self.seed
        )


def measure(
    model: nn.Module,
    data: MeasuredSplit,
    attack: AttackSettings | None = None,
    *,
    model_name: str = "unnamed",
    probe: ProbeOptions = ProbeOptions(),
    batch_size: int = 250,
    progress: Progress = lambda batches, _: batches,
    built: Attack | None = None,
) -> CrossClassResult:
    """Measure a classifier on a split, in eval mode, under an attack (None: clean images).

    Where torch.distributed runs several processes, each measures its part of the split and all return the whole.

    Args:
        model: [0, 1] images (N, C, H, W) → logits (N, K), or what holds them; lies on the device that is used.
        data: its head must have as many classes.
        model_name: what the result calls the model.
        progress: called with the batches and their number; returns the batches.
        built: what ``attack.build`` made for an earlier measurement of this model; None: it is built.

    Raises:
        InputError: the model refuses such images, its head's class count is not the data's, or a fault that the
            probe or the attack names.
    """
    device = device_of(model)
    part = data.split.part(rank(), num_processes())
    if attack is None:
        built = None
    elif built is None:
        built = attack.build(model, len(data.classes), probe.output)
    with CrossClassProbe(model, **vars(probe)) as crossclass:
        # On a few images, before an attack is run for nothing.
        size = tuple(data.split.images.shape[1:])
        find_head(crossclass, size, model_name, len(data.classes), attacked=built is not None)
        head = crossclass.head
        _log.info("%s: head %s", model_name, "not found" if head is None else f"{head.name} ({head.kind})")
        batches = progress(part.batches(batch_size, device), part.count_batches(batch_size))
        result = crossclass.run(batches, built, seed=0 if attack is None else attack.seed)
    threat = None if attack is None else {**(result.threat or {}), "precision": attack.precision}
    return replace(
        result,
        class_names=data.classes,
        model=model_name,
        data=data.describe(),
        threat=threat,
        versions={**result.versions, **versions()},
    )


def find_head(probe: CrossClassProbe, size: tuple[int, ...], name: str, classes: int, *, attacked: bool = True) -> None:
    """Run the probed model on two images of a size (C, H, W), in eval mode, so that its head is found.

    Raises:
        InputError: what ``check_input`` refuses, or a head of another number of classes. Where the head cannot be
            found, ``probe`` says so when it is asked for this pass.
    """
    check_input(probe.model, size, name, graph=probe.needs_graph, attacked=attacked)
    if probe.head is not None and probe.head.classes != classes:
        raise InputError(
            f"expected a model of {classes} classes for this data, found a head of {probe.head.classes}; "
            "choose data to match the model"
        )


def check_input(
    model: nn.Module, size: tuple[int, ...], name: str, *, graph: bool = False, attacked: bool = True
) -> Any:
    """The model's output for two images of a size (C, H, W), in eval mode; its modes are as before.

    ``graph``: with the graph of gradients. ``attacked``: the images will be used beside the model, by an attack.

    Raises:
        InputError: the model refuses such images, or changes them where they are ``attacked``.
    """
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.rand(2, *size, dtype=torch.float32, device=device, generator=generator)
    before = images.clone()
    try:
        with evaluation_mode(model), torch.set_grad_enabled(graph):
            output = model(images)
    except _REFUSALS as error:
        place = place_in_user_code(error)
        where = "" if place is None else f" in {Path(place.filename).name}, line {place.lineno}"
        raise InputError(
            f"expected a model for images of {'×'.join(map(str, size))}, found that {name} refuses them "
            f"({one_line(error, 120)}{where}); choose data or model to match"
        ) from error
    if output is None:
        raise InputError(f"expected logits of {name}, found that its forward returns None; return them")
    if attacked and not torch.equal(images, before):
        raise InputError(
            f"expected a model that leaves its images as they are, found that {name} changes them in place, which an "
            "attack uses; let its forward change a copy (images.clone())"
        )
    return output


def versions() -> dict[str, str]:
    """Of this package, torch, numpy, and those of the ecosystem's libraries that took part."""
    return installed_versions([*_ALWAYS, *(name for name in _LIBRARIES if name in sys.modules)])
