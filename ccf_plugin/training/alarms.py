"""Overfitting, named while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence

from ccf_plugin.training.log import EpochRow

# Robust overfitting (Rice et al. 2020): test RA this far below its peak, while the training RA is above what it was.
MARGIN = 0.02
# Catastrophic overfitting (Wong et al. 2020): test RA under half its peak, while the attack of training is resisted.
COLLAPSE = 0.5


def alarm(rows: Sequence[EpochRow], row: EpochRow) -> str:
    """What to say of an epoch, given those before it: "", "robust overfitting" or "catastrophic overfitting"."""
    evaluated = [(other.test_robust_accuracy, other) for other in rows if other.test_robust_accuracy is not None]
    if row.test_robust_accuracy is None or row.train_robust_accuracy is None or not evaluated:
        return ""
    peak, best = max(evaluated, key=lambda pair: pair[0])
    if row.train_robust_accuracy <= (best.train_robust_accuracy or 0.0):
        return ""
    if row.test_robust_accuracy < COLLAPSE * peak:
        return "catastrophic overfitting"
    return "robust overfitting" if row.test_robust_accuracy < peak - MARGIN else ""
