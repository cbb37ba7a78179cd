"""Results of models that are made of random numbers."""

from __future__ import annotations

import torch
from torch import nn

from ccf_plugin import CrossClassProbe, CrossClassResult


def drawn(seed: int, shared: float = 0.5, noise: int = 0, classes: int = 4, images: int = 40) -> CrossClassResult:
    """A model on images of each of 4 classes; classes 0 and 1 share ``shared`` of a direction. ``noise`` is its own."""
    labels = torch.arange(classes).repeat_interleave(images)
    common = torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(seed))
    own = torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(10_000 + 7 * seed + noise))
    means = 1.5 * torch.eye(classes, 12)
    means[:2, 8] += shared
    head = nn.Linear(12, classes, bias=False)
    nn.init.ones_(head.weight)  # A(x) is what the head reads
    with torch.no_grad(), CrossClassProbe(head, head="", inputs="clean") as probe:
        head(means[labels] + 0.5 * common + 0.3 * own)
        probe.update(labels)
        return probe.compute()
