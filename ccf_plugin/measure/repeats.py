"""A measurement that is repeated with other seeds of the attack's random start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.measure.evaluate import Progress
from ccf_plugin.measure.subject import Subject
from ccf_plugin.probe import CrossClassResult


def measure_with_seeds(
    subject: Subject,
    seeds: int,
    *,
    instances: bool = False,
    progress: Callable[[int], Progress] = lambda _: lambda batches, _: batches,
) -> CrossClassResult:
    """Measure with so many seeds, from the attack's own on.

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
    if attack is None:
        if seeds > 1:
            fault = Fault("seeds", "an attack to repeat", "clean images, which give the same figures each time")
            raise InputError(fault)
        return subject.measure(instances=instances, progress=progress(0))
    results = [
        replace(subject, attack=replace(attack, seed=seed)).measure(instances=instances, progress=progress(seed))
        for seed in range(attack.seed, attack.seed + seeds)
    ]
    return replace(results[0], repeats=tuple(result.figures() for result in results) if seeds > 1 else ())
