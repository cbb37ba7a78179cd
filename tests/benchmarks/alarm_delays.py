"""How late the alarms of real runs are: the product's own rule on their logs.

    python tests/benchmarks/alarm_delays.py docs/results/overfit_small docs/results/*/*-? \\
        --out tests/benchmarks/results/alarm_delays.json

A delay is counted in evaluations, from the most robust one so far to the first with the alarm. Where a later one was
more robust still, RA came back, and the alarm was false.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ccf_plugin.runs.alarms import ALARMS, alarms
from ccf_plugin.runs.log import EpochRow, read_log


def delays(rows: list[EpochRow]) -> dict[str, Any]:
    """Of a run's rows: its evaluations, the most robust of them, and of each alarm that stands once, its delay."""
    evaluated = [row for row in rows if row.test_robust_accuracy is not None]
    robust = [row.test_robust_accuracy or 0.0 for row in evaluated]
    raised = [alarms(evaluated[:place], row) for place, row in enumerate(evaluated)]
    found = {}
    for name in ALARMS:
        places = [place for place, names in enumerate(raised) if name in names]
        if places:
            first = places[0]
            best = max(range(first), key=robust.__getitem__)
            found[name] = {
                "epoch": evaluated[first].epoch,
                "delay_in_evaluations": first - best,
                "points_lost": round(100 * (robust[best] - robust[first]), 4),
                "evaluations_with_it": len(places),
                "came_back": max(robust[first:]) > robust[best],
            }
    best = max(range(len(robust)), key=robust.__getitem__)
    return {
        "evaluations": len(evaluated),
        "most_robust_epoch": evaluated[best].epoch,
        "best_ra": robust[best],
        "last_ra": robust[-1],
        "alarms": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or what docs/results has of them")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found = {run.as_posix(): delays(read_log(run)) for run in chosen.runs}
    print(json.dumps(found, indent=1))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
