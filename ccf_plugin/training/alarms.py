"""Overfitting, named while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence

from ccf_plugin.run_log import EpochRow

ALARMS = ("catastrophic overfitting", "robust overfitting", "CAS falling")
# Robust overfitting (Rice et al. 2020): test RA this far below its peak, while the training RA is above what it was.
RA_MARGIN = 0.02
# CAS falling: it is under this share of its peak, while the training RA is above what it was.
CAS_MARGIN = 0.8
# Catastrophic overfitting (Wong et al. 2020): test RA under this share of its peak, while the training attack fails.
COLLAPSE = 0.5


def alarms(rows: Sequence[EpochRow], row: EpochRow) -> list[str]:
    """What to say of an epoch, given those before it: any of ``ALARMS``, and never of the most robust one so far."""
    before = [other for other in rows if other.test_robust_accuracy is not None]
    if not before or row.test_robust_accuracy is None or row.cas is None or row.train_robust_accuracy is None:
        return []
    best = max(before, key=lambda other: other.test_robust_accuracy or 0.0)
    richest = max(before, key=lambda other: other.cas or 0.0)
    if row.test_robust_accuracy > (best.test_robust_accuracy or 0.0):
        return []  # CAS also falls while a network begins to learn
    found = []
    if row.train_robust_accuracy > (best.train_robust_accuracy or 0.0):
        peak = best.test_robust_accuracy or 0.0
        if row.test_robust_accuracy < COLLAPSE * peak:
            found.append("catastrophic overfitting")
        elif row.test_robust_accuracy < peak - RA_MARGIN:
            found.append("robust overfitting")
    if row.train_robust_accuracy > (richest.train_robust_accuracy or 0.0) and row.cas < CAS_MARGIN * (richest.cas or 0):
        found.append("CAS falling")
    return found


def should_stop(rows: Sequence[EpochRow], on: Sequence[str], patience: int) -> bool:
    """Whether each of the last ``patience`` evaluated epochs has one of the alarms."""
    evaluated = [row for row in rows if row.test_robust_accuracy is not None][-patience:]
    return len(evaluated) == patience and all(set(on) & set(row.alarm.split("; ")) for row in evaluated)
