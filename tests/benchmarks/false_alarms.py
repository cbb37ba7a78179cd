"""How often `alarms` cries wolf, and how late it is: simulated runs, and the product's own function.

    python tests/benchmarks/false_alarms.py --runs 200 --out tests/benchmarks/results/false_alarms.json

Each test image withstands the attack with a probability of its own, at every evaluation anew. These are drawn from a
Beta distribution of mean RA: narrow ones make every evaluation a new sample of images ("restless"), wide ones images
that nearly always or nearly never withstand ("settled"), as a trained network has them. Train RA rises along the run,
and under the evaluation's attack it falls, so that what falls on test images is called catastrophic; CAS is constant
with noise. With a fall, every image's probability is multiplied so that RA falls linearly by so many points within ten
evaluations from the middle of the run on; the delay is counted from the first of these.

Which name a fall gets is simulated apart, at an RA so low that the 100 training images say little: 8 points are lost,
1,000 images, 30 evaluations. Training images withstand the evaluation's attack a fixed share as often as the training
attack ("ordinary"), or a share that falls from 1 to 0.2 within 15 evaluations ("catastrophic").
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ccf_plugin.runs.alarms import alarms, fall_p
from ccf_plugin.runs.log import EpochRow

RA = 0.48
SPREADS = {"restless": 8.0, "settled": 0.5}  # a + b of the Beta distribution


def simulated_run(
    images: int,
    evaluations: int,
    spread: float,
    fall: float,
    seed: int,
    ra: float = RA,
    share: Callable[[int], float] | None = None,
) -> list[EpochRow]:
    """The rows of a run, with its alarms; ``share`` is that of the training images at an evaluation, see above."""
    rng = np.random.default_rng(seed)
    chances = rng.beta(ra * spread, (1 - ra) * spread, images)
    rows: list[EpochRow] = []
    best = None
    for place in range(evaluations):
        fallen = fall * min(1.0, max(0.0, (place - evaluations // 2 + 1) / 10))
        withstands = rng.random(images) < chances * (1 - fallen / ra)
        robust = float(withstands.mean())
        trained, attacked = 0.4 + 0.5 * place / evaluations, 0.4 - 0.4 * place / evaluations
        if share is not None:
            trained = 0.15 + 0.2 * place / evaluations
            attacked = rng.binomial(100, share(place) * trained) / 100
        row = EpochRow(
            epoch=place + 1,
            lr=0.1,
            train_loss=1.0,
            seconds=1.0,
            images_per_second=1.0,
            train_robust_accuracy=trained,
            train_attacked_accuracy=attacked,
            test_clean_accuracy=0.8,
            test_robust_accuracy=robust,
            cas=15.0 + rng.normal() * 0.5,
            cas_excess=5.0 * (1 - 4 * fallen) + rng.normal() * 0.5,
            robust_fall_p=None if best is None else fall_p(best, withstands),
        )
        raised = alarms(rows, row)
        if best is None or robust > max(earlier.test_robust_accuracy or 0.0 for earlier in rows):
            best = withstands
        rows.append(EpochRow(**{**row.as_dict(), "alarm": "; ".join(raised)}))
    return rows


def summarise(images: int, evaluations: int, kind: str, fall: float, runs: int) -> dict[str, Any]:
    """The share of runs with an alarm, and the median delay in evaluations of those with a fall."""
    first = []
    for seed in range(runs):
        rows = simulated_run(images, evaluations, SPREADS[kind], fall, seed)
        alarmed = [place for place, row in enumerate(rows) if row.alarm]
        first.append(alarmed[0] if alarmed else None)
    raised = [place for place in first if place is not None]
    start = evaluations // 2
    return {
        "images": images,
        "evaluations": evaluations,
        "kind": kind,
        "fall_in_points": 100 * fall,
        "runs": runs,
        "share_with_an_alarm": len(raised) / runs,
        "share_with_an_alarm_too_early": sum(place < start for place in raised) / runs,
        "median_delay": None if not fall or not raised else float(np.median([place - start for place in raised])),
    }


def names(kind: str, share: Callable[[int], float], runs: int) -> dict[str, Any]:
    """Of falls of a kind: the share called catastrophic, at all and twice in a row; how often the name is lost."""
    called, twice, lost = 0, 0, 0
    for seed in range(runs):
        rows = simulated_run(1_000, 30, SPREADS["settled"], 0.08, seed, 0.2, share)
        is_catastrophic = ["catastrophic overfitting" in row.alarm for row in rows]
        called += any(is_catastrophic)
        twice += any(before and now for before, now in pairwise(is_catastrophic))
        lost += sum(before and not now for before, now in pairwise(is_catastrophic))
    return {
        "kind": kind,
        "runs": runs,
        "share_called_catastrophic": called / runs,
        "share_called_so_twice_in_a_row": twice / runs,
        "name_lost_per_run": lost / runs,
    }


NAMES: dict[str, Callable[[int], float]] = {
    "ordinary, 1.0": lambda _: 1.0,
    "ordinary, 0.9": lambda _: 0.9,
    "ordinary, 0.8": lambda _: 0.8,
    "catastrophic": lambda place: 1.0 - 0.8 * min(1.0, max(0.0, (place - 12) / 15)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="without a fall; a fifth of them with each fall")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found = [
        summarise(images, evaluations, kind, fall, max(10, chosen.runs // 5) if fall else chosen.runs)
        for fall in (0.0, 0.02, 0.04, 0.08)
        for kind in SPREADS
        for images in (1_000, 10_000)
        for evaluations in (30, 200)
    ]
    named = [names(kind, share, chosen.runs) for kind, share in NAMES.items()]
    for one in found + named:
        print(json.dumps(one))
    if chosen.out is not None:
        described = {"processor": platform.processor() or platform.machine(), "numpy": np.__version__}
        described |= {"rows": found, "names": named}
        chosen.out.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
