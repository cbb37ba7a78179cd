"""Overfitting, named while a run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ccf_plugin.runs.log import EpochRow

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
    raised = []
    if row.train_robust_accuracy > (best.train_robust_accuracy or 0.0):
        peak = best.test_robust_accuracy or 0.0
        if row.test_robust_accuracy < COLLAPSE * peak:
            raised.append("catastrophic overfitting")
        elif row.test_robust_accuracy < peak - RA_MARGIN:
            raised.append("robust overfitting")
    if row.train_robust_accuracy > (richest.train_robust_accuracy or 0.0) and row.cas < CAS_MARGIN * (richest.cas or 0):
        raised.append("CAS falling")
    return raised


def should_stop(rows: Sequence[EpochRow], on: Sequence[str], patience: int) -> bool:
    """Whether each of the last ``patience`` evaluated epochs has one of the alarms."""
    evaluated = [row for row in rows if row.test_robust_accuracy is not None][-patience:]
    return len(evaluated) == patience and all(set(on) & set(row.alarm.split("; ")) for row in evaluated)


def alarms_by_kind(rows: Iterable[EpochRow]) -> dict[str, list[int]]:
    """The epochs at which the log has each alarm."""
    epochs: dict[str, list[int]] = {}
    for row in rows:
        for alarm in filter(None, row.alarm.split("; ")):
            epochs.setdefault(alarm, []).append(row.epoch)
    return epochs


def alarms_in_words(rows: Sequence[EpochRow]) -> list[str]:
    """Each alarm with its epochs, neighbours among the evaluated ones joined: "CAS falling at epochs 40, 88 to 120"."""
    evaluated = [row.epoch for row in rows if row.test_clean_accuracy is not None]
    sentences = []
    for alarm, epochs in alarms_by_kind(rows).items():
        spans = [str(first) if first == last else f"{first} to {last}" for first, last in _spans(epochs, evaluated)]
        sentences.append(f"{alarm} at {'epochs' if len(epochs) > 1 else 'epoch'} {', '.join(spans)}")
    return sentences


def _spans(epochs: Sequence[int], evaluated: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each group of epochs that follow one another among the evaluated ones."""
    spans: list[tuple[int, int]] = []
    previous = None  # the place of the epoch before, among the evaluated ones
    for epoch in epochs:
        if epoch not in evaluated:
            continue
        place = evaluated.index(epoch)
        if previous is not None and place == previous + 1:
            spans[-1] = (spans[-1][0], epoch)
        else:
            spans.append((epoch, epoch))
        previous = place
    return spans
