"""The training methods side by side on a few thousand CIFAR-10 images: the table in docs/results/small-runs.md.

    python tests/benchmarks/compare_methods.py --data folder:PATH --out runs/methods --seeds 0 1 2

Each run is one ``ccf train recipes/cifar_small.toml`` (a process of its own) with the settings below, skipped when it
is finished and resumed when it is not. The last lines printed are the table. About 8 minutes a run on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from ccf_plugin.runs.layout import AVERAGE
from ccf_plugin.runs.log import EpochRow, read_log

COMMON = ["data.train_per_class=200", "data.test_limit=500", "attack.steps=7", "optim.batch_size=64"]
COMMON += ["optim.epochs=28", "optim.decay_epochs=[14,21]", "evaluate.every=4", "threads=1"]
AVERAGE_TEACHER = '[{teacher="average", weight=0.8, temperature=2.0, ramp=[14, 21], weight_after=1.0}]'
TWO_TEACHERS = (
    'distill=[{{teacher="{standard}", weight=0.1, temperature=2.0}}, '
    '{{teacher="{madry}", weight=0.6, temperature=2.0}}]'
)
METHODS = {
    "standard": ["objective.loss=standard", "evaluate.every=28"],
    "madry": [],
    "label smoothing": ["objective.label_smoothing=0.1"],
    "KD": [TWO_TEACHERS],
    "WAKE": ['average={kind="ema", every="step", decay=0.99, stop_epoch=20}', f"distill={AVERAGE_TEACHER}"],
    "fast-AT": ["attack.name=FFGSM"],
}


def train(method: str, seed: int, data: str, out: Path) -> Path:
    """One run; its folder."""
    folder = out / f"{method.replace(' ', '_')}_{seed}"
    teachers = {name: out / f"{name}_{seed}" for name in ("standard", "madry")}
    settings = [text.format(**teachers) if method == "KD" else text for text in METHODS[method]]
    command = [sys.executable, "-m", "ccf_plugin", "train", "recipes/cifar_small.toml", "--out", str(folder)]
    for setting in [f"data.name={data}", f"seed={seed}", *COMMON, *settings]:
        command += ["--set", setting]
    if folder.is_dir():
        if json.loads((folder / "state" / "last.json").read_text())["epoch"] >= 28:
            return folder
        command += ["--resume"]
    subprocess.run(command, check=True)
    return folder


def figures(rows: list[EpochRow], suffix: str) -> dict[str, float]:
    """RA in percent and CAS at the epoch of the best test RA and at the last one, raw weights ("") or averaged ones."""
    accuracy = f"test_robust_accuracy{suffix}"
    tested = [row for row in rows if getattr(row, accuracy) is not None]
    best, last = max(tested, key=lambda row: getattr(row, accuracy)), tested[-1]
    return {
        "best RA": 100 * getattr(best, accuracy),
        "best CAS": getattr(best, f"cas{suffix}"),
        "last RA": 100 * getattr(last, accuracy),
        "last CAS": getattr(last, f"cas{suffix}"),
        "best epoch": best.epoch,
    }


def table(logs: dict[str, list[list[EpochRow]]]) -> str:
    """Mean and range over the seeds, one Markdown row a method; runs with averaged weights get a second one."""
    columns = ["best RA", "best CAS", "last RA", "last CAS", "best epoch"]
    lines = [f"| method | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for method, runs in logs.items():
        for suffix in ("", AVERAGE) if runs[0][-1].cas_average is not None else ("",):
            found = [figures(rows, suffix) for rows in runs]
            cells = []
            for column in columns:
                values = [one[column] for one in found]
                cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
            lines.append(f"| {method}{', averaged weights' if suffix else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="data spec: cifar10, or folder:PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    logs: dict[str, list[list[EpochRow]]] = {}
    for seed in arguments.seeds:
        for method in METHODS:
            folder = train(method, seed, arguments.data, arguments.out)
            if method != "standard":
                logs.setdefault(method, []).append(read_log(folder))
    print(table(logs))


if __name__ == "__main__":
    main()
