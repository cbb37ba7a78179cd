"""Overfitting, named while a run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ccf_plugin.probe.confidence import mcnemar
from ccf_plugin.runs.log import EpochRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Robust overfitting: the chance of a false alarm that one epoch's test may take, over all epochs that it may be
# compared with. tests/benchmarks/false_alarms.py simulates what this gives along whole runs.
LEVEL = 0.002
# Catastrophic overfitting begins where test RA falls below COLLAPSE times what it was within SUDDEN evaluations; or
# where it falls as in robust overfitting, and training images withstand the evaluation's attack less than COLLAPSE
# times as often as the training attack, which they did not at the most robust epoch. It is over from RECOVERED times
# on: with one bound for both, the noise of 100 training images would give one decline two names in turn.
SUDDEN, COLLAPSE, RECOVERED = 3, 0.5, 0.75
# CAS falling: CAS beyond chance is under this share of what it was at the most robust epoch.
EXCESS_MARGIN = 0.8
# Each alarm, and what it says of an epoch.
ALARMS = {
    "catastrophic overfitting": (
        f"within {SUDDEN} evaluations test RA fell below {COLLAPSE:.0%} of what it was, while train RA rose; or test "
        "RA fell as in robust overfitting, and training images withstand the evaluation's attack under "
        f"{COLLAPSE:.0%} as often as the training attack. It lasts while test RA is down, until they withstand it "
        f"{RECOVERED:.0%} as often"
    ).replace("%", " %"),
    "robust overfitting": (
        "at this and the evaluated epoch before, fewer test images withstand the attack than at the most robust epoch, "
        f"while train RA is higher; by McNemar's exact test, with p below {LEVEL} divided by the number of earlier "
        "evaluations"
    ),
    "CAS falling": (
        f"robust or catastrophic overfitting stands, and CAS beyond chance is below {EXCESS_MARGIN:.0%} of that of "
        "the most robust epoch"
    ).replace("%", " %"),
}


def alarms(rows: Sequence[EpochRow], row: EpochRow) -> list[str]:
    """What to say of an epoch, given those before it: any of ``ALARMS``.

    Each needs a training RA above that of the epoch that it is compared with: else training got worse too.

    robust overfitting (Rice et al. 2020): at this and the evaluated epoch before, fewer test images withstand the
    attack than at the most robust epoch, by McNemar's test of the images that differ (``robust_fall_p``), with p below
    ``LEVEL`` over the number of earlier evaluations.
    catastrophic overfitting (Wong et al. 2020): test RA fell under ``COLLAPSE`` times what it was within ``SUDDEN``
    evaluations; or it fell as in robust overfitting, and training images withstand the evaluation's attack under
    ``COLLAPSE`` times as often as the training attack. It lasts while test RA is down and that share is below
    ``RECOVERED``, of which a log without ``train_attacked_accuracy`` says nothing; test RA is down as in robust
    overfitting, or below ``RECOVERED`` times its highest. It is not called robust overfitting too.
    CAS falling: one of the two stands, and CAS beyond chance is below ``EXCESS_MARGIN`` of that of the most robust
    epoch.
    """
    before = [earlier for earlier in rows if earlier.test_robust_accuracy is not None]
    if not before or row.test_robust_accuracy is None or row.train_robust_accuracy is None:
        return []
    best = max(before, key=_robust)
    raised = []
    if _is_catastrophic([*before, row]):
        raised.append("catastrophic overfitting")
    elif _is_overfitted(before, row):
        raised.append("robust overfitting")
    excess, at_best = (_beyond_chance(epoch) for epoch in (row, best))
    if raised and excess is not None and at_best is not None and excess < EXCESS_MARGIN * at_best:
        raised.append("CAS falling")
    return raised


def fall_p(best: NDArray[np.bool_], present: NDArray[np.bool_]) -> float:
    """The chance that as many test images, or more, are lost against the most robust epoch where RA is the same.

    Args:
        best, present: whether each image withstands the attack, (N,) bool, the same images.

    Returns:
        McNemar's exact p, one-sided; 1 where no more images are lost than won.
    """
    test = mcnemar(best, present)
    return test.p / 2 if test.only_first > test.only_second else 1.0


def _robust(row: EpochRow) -> float:
    return row.test_robust_accuracy or 0.0


def _trains_better(row: EpochRow, earlier: EpochRow) -> bool:
    return (row.train_robust_accuracy or 0.0) > (earlier.train_robust_accuracy or 0.0)


def _falls(before: Sequence[EpochRow], row: EpochRow) -> bool:
    """Whether test RA is below that of the most robust of the evaluated epochs before, beyond chance."""
    return bool(before) and row.robust_fall_p is not None and row.robust_fall_p < LEVEL / len(before)


def _is_overfitted(before: Sequence[EpochRow], row: EpochRow) -> bool:
    best = max(before, key=_robust)
    return _trains_better(row, best) and _falls(before, row) and _falls(before[:-1], before[-1])


def _is_catastrophic(evaluated: Sequence[EpochRow]) -> bool:
    """Whether it began at one of these epochs and lasted at each since, by their figures, not by their alarms."""
    for place in range(len(evaluated) - 1, 0, -1):
        before, row = evaluated[:place], evaluated[place]
        if _begins(before, row):
            return True
        if not _lasts(before, row):
            return False
    return False


def _begins(before: Sequence[EpochRow], row: EpochRow) -> bool:
    best, peak, share = max(before, key=_robust), max(before[-SUDDEN:], key=_robust), _share(row)
    if _robust(row) < COLLAPSE * _robust(peak) and _trains_better(row, peak):
        return share is None or share < RECOVERED
    at_best = _share(best)
    is_blind = share is not None and share < COLLAPSE and (at_best is None or at_best >= COLLAPSE)
    return is_blind and _is_overfitted(before, row)


def _lasts(before: Sequence[EpochRow], row: EpochRow) -> bool:
    best, share = max(before, key=_robust), _share(row)
    is_low = _robust(row) < RECOVERED * _robust(best)
    is_down = is_low if share is None else share < RECOVERED and (is_low or _falls(before, row))
    return is_down and _trains_better(row, best)


def _share(row: EpochRow) -> float | None:
    """How often training images withstand the evaluation's attack, over how often the training attack."""
    attacked, trained = row.train_attacked_accuracy, row.train_robust_accuracy
    return None if attacked is None or not trained else attacked / trained


def _beyond_chance(row: EpochRow) -> float | None:
    return row.cas if row.cas_excess is None else row.cas_excess


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
