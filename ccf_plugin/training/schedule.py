"""What is a function of how far a run is, so that a resumed run needs no state of it: learning rate, evaluations."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

from ccf_plugin.training.recipe import OptimSection


def learning_rate(optim: OptimSection, epochs_done: float) -> float:
    """The rate of the step that begins after ``epochs_done`` epochs (a fraction within an epoch).

    multistep: lr · decay_rate^d, d the decay epochs that are over: a decay at 100 first shows in epoch 101.
    cosine: half a period, from lr to 0 (Loshchilov and Hutter 2017). cyclic: linear from 0 to lr and back, lr being at
    half the run, or where warmup_epochs end (Wong et al. 2020). linear: from lr to 0. constant: lr. All rise linearly
    from 0 to lr over the first warmup_epochs, and the cosine and the line begin there. points: straight lines between
    the recipe's own, the first and last of which hold outside them.
    """
    if optim.schedule == "points":
        epochs, rates = zip(*sorted(optim.points), strict=True)
        return float(np.interp(epochs_done, epochs, rates))
    begun = float(optim.warmup_epochs)
    if optim.schedule == "cyclic" and not begun:
        begun = optim.epochs / 2
    if epochs_done < begun:
        return optim.lr * epochs_done / begun
    share = (epochs_done - begun) / (optim.epochs - begun) if optim.epochs > begun else 0.0
    factor = {
        "multistep": lambda: optim.decay_rate ** bisect_right(sorted(optim.decay_epochs), epochs_done),
        "cosine": lambda: (1 + math.cos(math.pi * share)) / 2,
        "cyclic": lambda: 1 - share,
        "linear": lambda: 1 - share,
        "constant": lambda: 1.0,
    }[optim.schedule]()
    return optim.lr * factor


def is_due(interval: int, epoch: int, optim: OptimSection) -> bool:
    """Whether something that is done at each multiple of ``interval``, and at the end, is done in this epoch."""
    return epoch % interval == 0 or epoch == optim.epochs
