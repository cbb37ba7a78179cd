"""The learning rate as a function of how far a run is, so that a resumed run needs no scheduler's state."""

from __future__ import annotations

import math
from bisect import bisect_right

from ccf_plugin.training.recipe import OptimSection


def learning_rate(optim: OptimSection, epochs_done: float) -> float:
    """The rate of the step that begins after ``epochs_done`` epochs (a fraction within an epoch).

    multistep: lr · decay_rate^d, d the decay epochs that are over: a decay at 100 first shows in epoch 101.
    cosine: half a period, from lr to 0 (Loshchilov and Hutter 2017). cyclic: linear from 0 to lr at half the run and
    back (Wong et al. 2020). constant: lr. All rise linearly from 0 over the first warmup_epochs.
    """
    share = epochs_done / optim.epochs
    factor = {
        "multistep": lambda: optim.decay_rate ** bisect_right(sorted(optim.decay_epochs), epochs_done),
        "cosine": lambda: (1 + math.cos(math.pi * share)) / 2,
        "cyclic": lambda: 1 - abs(2 * share - 1),
        "constant": lambda: 1.0,
    }[optim.schedule]()
    warmth = min(1.0, epochs_done / optim.warmup_epochs) if optim.warmup_epochs else 1.0
    return optim.lr * factor * warmth
