"""One pass over a finished model: clean accuracy, RA, C, CAS and, where asked, I-CAS from the same examples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.modes import device_of, evaluation_mode
from ccf_plugin.engine.precision import Precision
from ccf_plugin.errors import InputError
from ccf_plugin.probe import CrossClassProbe, CrossClassResult
from ccf_plugin.probe.distributed import num_processes, rank
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attacks import Attack, build_attack
from ccf_plugin.zoo.datasets import Split

_LIBRARIES = ("torchattacks", "robustbench", "timm", "torchvision")

Batches = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[Batches, int], Batches]  # wraps batches, told their number, to show progress


def measure(
    model: nn.Module,
    split: Split,
    threat: ThreatModel | None,
    *,
    classes: tuple[str, ...],
    model_name: str,
    data_name: str,
    split_name: str = "test",
    attack_name: str | None = None,
    attack_options: Mapping[str, Any] | None = None,
    batch_size: int = 250,
    instances: bool = False,
    max_per_class: int | None = None,
    head: str | None = None,
    output: int | str | None = None,
    seed: int = 0,
    precision: Precision = "float32",
    progress: Progress = lambda batches, _: batches,
    attack: Attack | None = None,
) -> CrossClassResult:
    """Measure a classifier on a split, in eval mode, under an attack (``threat`` None: clean).

    Where torch.distributed runs several processes, each measures its part of the split and all return the whole.

    Args:
        model: [0, 1] images (N, C, H, W) → logits (N, K); lies on the device that is used.
        split: the images and their labels.
        classes: the data's K class names; the model's head must have as many.
        head, output: as `CrossClassProbe` takes them.
        precision: of the attack's passes. Logits and features behind every figure are float32.
        progress: wraps the batches (and is told their number) to show progress.
        attack: what ``build_attack`` made of these settings for an earlier measurement of this model; else it is built.

    Raises:
        InputError: the model refuses such images, its head's class count is not the data's, or a fault that the
            probe or the attack names.
    """
    device = device_of(model)
    part = split.part(rank(), num_processes())
    if threat is None:
        attack = None
    elif attack is None:
        attack = build_attack(
            attack_name,
            Forward(model, precision=precision),
            threat,
            options=attack_options,
            num_classes=len(classes),
        )
    with CrossClassProbe(model, head=head, output=output, instances=instances, max_per_class=max_per_class) as probe:
        # On a few images, before an attack is run for nothing.
        find_head(probe, tuple(split.images.shape[1:]), model_name, len(classes))
        batches = progress(part.batches(batch_size, device), part.count_batches(batch_size))
        result = probe.run(batches, attack, seed=seed)
    described: dict[str, Any] | None = None if result.threat is None else {**result.threat, "precision": precision}
    return replace(
        result,
        class_names=classes,
        model=model_name,
        data={"name": data_name, "split": split_name, "count": len(split)},
        threat=described,
        versions={**result.versions, **_versions()},
    )


def find_head(probe: CrossClassProbe, size: tuple[int, ...], name: str, classes: int) -> None:
    """Run the probed model on two images of a size (C, H, W), in eval mode, so that its head is found.

    Raises:
        InputError: the model refuses such images, or its head has another number of classes. Where the head cannot be
            found, ``probe`` says so when it is asked for this pass.
    """
    with torch.enable_grad():  # which head="gradient" needs
        check_input(probe.model, size, name)
    if probe.head is not None and probe.head.classes != classes:
        raise InputError(
            f"expected a model of {classes} classes for this data, found a head of {probe.head.classes}; "
            "choose data to match the model"
        )


def check_input(model: nn.Module, size: tuple[int, ...], name: str) -> Any:
    """The model's output for two images of a size (C, H, W), in eval mode; its modes are as before.

    Raises:
        InputError: the model refuses such images.
    """
    device = device_of(model)
    try:
        with evaluation_mode(model):
            return model(torch.rand(2, *size, device=device, generator=torch.Generator(device).manual_seed(0)))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"expected a model for images of {'×'.join(map(str, size))}, found that {name} refuses them "
            f"({' '.join(str(error).split())[:120]}); choose data or model to match"
        ) from error


def _versions() -> dict[str, str]:
    """Of the ecosystem's libraries that took part."""
    return {name: metadata.version(name) for name in _LIBRARIES if name in sys.modules}
