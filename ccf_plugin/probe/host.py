"""What `CrossClassProbe.run` borrows from the host and gives back, and what an attack says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from ccf_plugin.engine.gradients import GradientWatch
from ccf_plugin.errors import InputError


def images_and_labels(batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images and labels of a loader's batch, on the device.

    Raises:
        InputError: the batch is neither a pair (or more), nor a mapping with keys of the usual names.
    """
    pair: tuple[Any, Any] | None = None
    if isinstance(batch, Mapping):
        images, labels = (next((key for key in keys if key in batch), None) for keys in (_IMAGES, _LABELS))
        if images is None or labels is None:
            raise InputError(
                f"expected batches with one of the keys {', '.join(_IMAGES)} and one of {', '.join(_LABELS)}, found "
                f"{', '.join(map(str, batch))}; give a loader of (images, labels)"
            )
        pair = batch[images], batch[labels]
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        pair = batch[0], batch[1]
    if pair is None or not all(isinstance(part, Tensor) for part in pair):
        kinds = type(batch).__name__ if pair is None else " and ".join(type(part).__name__ for part in pair)
        raise InputError(f"expected batches of images and labels as tensors, found {kinds}; give a loader of such")
    if pair[0].ndim < 2:
        raise InputError(
            f"expected batches of images and labels, in this order, found tensors of shape {tuple(pair[0].shape)} and "
            f"{tuple(pair[1].shape)}; give a loader of such"
        )
    # copies of tensors that were made in inference mode may take part in an attack's gradients
    first, second = (part.clone() if part.is_inference() else part for part in pair)
    return first.to(device), second.to(device)


_IMAGES = ("image", "images", "pixel_values", "x", "input", "inputs", "img", "data")
_LABELS = ("label", "labels", "y", "target", "targets", "fine_label")


def keeps_order(loader: object) -> bool:
    """Whether a loader gives its images in one order each time, as far as its sampler tells."""
    return not isinstance(getattr(loader, "sampler", None), _SHUFFLING)


_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def attacked(
    images: Tensor, labels: Tensor, attack: Callable[[Tensor, Tensor], Any], model: nn.Module, *, first: bool
) -> Tensor:
    """The attack's adversarial examples of a batch against a model, detached. The first batch may bring a warning.

    Raises:
        InputError: it returned something else than images like those that it got; it needs gradients of the images,
            and the model passes them none.
    """
    images, labels = images.clone(), labels.clone()  # an attack may write into them, and they are the loader's
    with torch.enable_grad():
        adversarial = _watched(images, labels, attack, model) if first else attack(images, labels)
    expected = f"expected the attack to return images, a {images.dtype} tensor of shape {tuple(images.shape)}, found"
    if isinstance(adversarial, (tuple, list)):
        raise InputError(
            f"{expected} a {type(adversarial).__name__} of {len(adversarial)}; pass the part that holds the images, "
            "such as lambda x, y: attack(x, y)[0]"
        )
    if adversarial is None:
        raise InputError(f"{expected} None; let it return the adversarial images")
    if not isinstance(adversarial, Tensor):
        raise InputError(
            f"{expected} {type(adversarial).__name__}; convert it, such as lambda x, y: torch.from_numpy(attack(x, y))"
        )
    problem = f"{expected} one of {adversarial.dtype} and shape {tuple(adversarial.shape)}"
    if adversarial.shape != images.shape:
        raise InputError(f"{problem}; let it return one image for each that it got")
    if not adversarial.is_floating_point():
        raise InputError(
            f"{problem}; images are in [0, 1]: convert it, such as lambda x, y: attack(x, y).to(x.dtype) / 255"
        )
    if adversarial.dtype != images.dtype:
        raise InputError(f"{problem}; convert it, such as lambda x, y: attack(x, y).to(x.dtype)")
    return adversarial.detach().to(images.device)


def _watched(images: Tensor, labels: Tensor, attack: Callable[[Tensor, Tensor], Any], model: nn.Module) -> Any:
    """What the attack returns, with a look at its gradients; not where the attack itself looks (``zoo.attacks``)."""
    is_compiled = getattr(model, "_compiled_call_impl", None) is not None  # a hook would have it compiled anew
    if hasattr(attack, "describe") or is_compiled:
        return attack(images, labels)
    name = getattr(attack, "__name__", type(attack).__name__)
    remedy = "leave attack out, or give one that needs none, such as torchattacks.Square"
    with GradientWatch(model) as gradients:
        try:
            adversarial = attack(images, labels)
        except RuntimeError as error:
            gradients.check(name, len(images), remedy, error)
            raise
    gradients.check(name, len(images), remedy)
    return adversarial


def unnormalised(images: Tensor, attack: object) -> Tensor:
    """The images in [0, 1], where a torchattacks attack takes them normalised (``set_normalization_used``)."""
    if getattr(attack, "_normalization_applied", None) is True:
        return cast(Tensor, attack.inverse_normalize(images))  # type: ignore[attr-defined]
    return images


def describe_attack(attack: object) -> dict[str, Any]:
    """What an attack says of itself: ``describe()`` where it has one, else what torchattacks' attributes tell."""
    describe = getattr(attack, "describe", None)
    if callable(describe):
        return dict(describe())
    attributes = {key: getattr(attack, name) for key, name in _TORCHATTACKS_NAMES.items() if hasattr(attack, name)}
    return {"attack": getattr(attack, "__name__", type(attack).__name__), **attributes}


_TORCHATTACKS_NAMES = {"eps": "eps", "step_size": "alpha", "steps": "steps"}
