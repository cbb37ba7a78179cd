"""A measurement that is repeated with other seeds of the attack's random start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.measuring.evaluate import Progress
from ccf_plugin.measuring.subject import Subject
from ccf_plugin.probe import CrossClassResult


def measure_with_seeds(
    subject: Subject,
    seeds: int,
    *,
    instances: bool = False,
    progress: Callable[[int], Progress] = lambda _: lambda batches, _: batches,
) -> CrossClassResult:
    """Measure with ``seeds`` seeds, from the attack's own on.

    Args:
        seeds: 1 or more.
        instances: measure I-CAS too.
        progress: told the seed, gives what wraps the batches.

    Returns:
        The first seed's result; with several seeds ``repeats`` has the figures of all.

    Raises:
        InputError: several seeds of clean images, which have none; as ``Subject.measure``.
    """
    attack = subject.attack
    if attack is None and seeds > 1:
        raise InputError(Fault("seeds", "an attack to repeat", "clean images, which give the same figures each time"))
    first = subject.measure(instances=instances, progress=progress(0 if attack is None else attack.seed))
    if attack is None or seeds == 1:
        return first
    others = [
        replace(subject, attack=replace(attack, seed=seed)).run(instances=instances, progress=progress(seed))
        for seed in range(attack.seed + 1, attack.seed + seeds)
    ]
    return replace(first, repeats=tuple(result.figures() for result in (first, *others)))
