"""What the field's code usually normalises the images of each data set by. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ccf_plugin.errors import Fault, InputError, did_you_mean


class Normalization(NamedTuple):
    """Per-channel constants of (images − mean) / std, for images in [0, 1]."""

    mean: Sequence[float]
    std: Sequence[float]


# Of CIFAR-10 as in Rice et al. 2020, Wong et al. 2020 and the paper's code, of ImageNet torchvision's.
USUAL = {
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tinyimagenet": Normalization((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def usual_normalization(data: str) -> Normalization:
    """What the field's code normalises a data set by. Raises InputError for one that ``USUAL`` does not have."""
    if data not in USUAL:
        raise InputError(Fault("normalize", f"one of {', '.join(USUAL)}", f"{data!r}{did_you_mean(data, USUAL)}"))
    return USUAL[data]
