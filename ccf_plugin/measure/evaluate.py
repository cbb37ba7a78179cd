"""One pass over a finished model: clean accuracy, RA, C, CAS and, where asked, I-CAS from the same examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.probe import CrossClassProbe, CrossClassResult
from ccf_plugin.probe.probe import evaluation_mode
from ccf_plugin.zoo.attacks import Attack, build_attack
from ccf_plugin.zoo.datasets import Split
from ccf_plugin.zoo.precision import Forward, Precision
from ccf_plugin.zoo.threat import ThreatModel

Batches = Iterable[tuple[Tensor, Tensor]]


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
    batch_size: int = 250,
    instances: bool = False,
    max_per_class: int | None = None,
    head: str | None = None,
    seed: int = 0,
    precision: Precision = "float32",
    progress: Callable[[Batches, int], Batches] = lambda batches, _: batches,
) -> CrossClassResult:
    """Measure a classifier on a split, in eval mode, under an attack (``threat`` None: clean).

    Args:
        model: [0, 1] images (N, C, H, W) → logits (N, K); lies on the device that is used.
        split: the images and their labels.
        classes: the data's K class names; the model's head must have as many.
        precision: of the attack's passes. Logits and features behind every figure are float32.
        progress: wraps the batches (and is told their number) to show progress.

    Raises:
        InputError: the head's class count is not the data's, or a fault that the probe or the attack names.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    total = split.count_batches(batch_size)
    attack: Attack | None = None
    if threat is not None:
        attack = build_attack(attack_name, Forward(model, precision=precision), threat)
    with CrossClassProbe(model, head=head, instances=instances, max_per_class=max_per_class) as probe:
        _check_classes(probe, split, device, len(classes))
        result = probe.run(progress(split.batches(batch_size, device), total), attack, seed=seed)
    described: dict[str, Any] | None = None if result.threat is None else {**result.threat, "precision": precision}
    return replace(
        result,
        class_names=classes,
        model=model_name,
        data={"name": data_name, "split": split_name, "count": len(split)},
        threat=described,
    )


def _check_classes(probe: CrossClassProbe, split: Split, device: torch.device, classes: int) -> None:
    """Find the head on a few images, before an attack is run for nothing."""
    with evaluation_mode(probe.model), torch.no_grad():
        probe.model(next(split.batches(8, device))[0])
    if probe.head is not None and probe.head.classes != classes:
        raise InputError(
            f"expected a model of {classes} classes for this data, found a head of {probe.head.classes}; "
            "choose data to match the model"
        )
