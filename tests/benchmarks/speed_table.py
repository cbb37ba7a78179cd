"""The tables of docs/results/speed.md, from the files in ``results/``: this program prints them.

Each file is what its command wrote, those of an AMD processor in ``results/amd/``; a row without one is "not measured".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

RESULTS = Path(__file__).parent / "results"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """``value`` takes the content of ``<file>.json``, which ``command`` wrote."""

    what: str
    reach: str
    file: str
    value: Callable[[Figures], str]
    command: str
    absent: str = "not measured"


def _ratio(name: str) -> Callable[[Figures], str]:
    return lambda figures: f"{figures['reference'][name]:.2f}×"


def _share(*names: str) -> Callable[[Figures], str]:
    return lambda figures: f"{sum(figures['shares'][name] for name in names):.1%}"


def _utilisation(figures: Figures) -> str:
    tera = figures["flops_per_image"]["training"] * figures["images_per_second"] / 1e12
    return (
        f"{tera:.3g} of {figures['matrix_product_flops_per_second'] / 1e12:.3g} TFLOP/s: {figures['utilisation']:.0%}"
    )


_BENCH = "ccf bench --recipe preact_linf --set data.name=folder:PATH --set threads=2"
_QUICK = f"{_BENCH} --quick --epochs 3"
_AVX512 = f"ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 {_BENCH} --quick --epochs 1 --reference-steps 1"
_EPOCH = f"{_BENCH} --epochs 1 --set data.train_per_class=100 --set data.test_limit=200"

ROWS = (
    Row("PGD-10 step in bf16 (AMX units; on AMD AVX-512's)", "≥ 4.0×", "cpu_bf16", _ratio("step_ratio"), _QUICK),
    Row("its share of the bf16 matrix-product rate", "≥ 85 %", "cpu_bf16", _utilisation, _QUICK),
    Row("PGD-10 step in bf16 without AMX", "≥ 4.0×", "cpu_avx512", _ratio("step_ratio"), _AVX512, "as above"),
    Row("its share of the bf16 matrix-product rate", "≥ 85 %", "cpu_avx512", _utilisation, _AVX512, "as above"),
    Row("whole epoch in bf16", "≥ 4.0×", "cpu_epoch", _ratio("epoch_ratio"), _EPOCH),
    Row(
        "what is not forward or backward, of that epoch",
        "≤ 5 %",
        "cpu_epoch",
        _share("data", "optimizer", "writing", "other"),
        _EPOCH,
    ),
    Row("PGD-10 step in float32", "≥ 1.7×", "cpu_float32", _ratio("step_ratio"), f"{_QUICK} --set precision=float32"),
    Row(
        "clean accuracy, RA, C and CAS in float32",
        "≥ 1.7×",
        "cpu_float32",
        _ratio("evaluation_ratio"),
        f"{_QUICK} --set precision=float32",
    ),
    Row("the same, crafted in bf16", "≥ 3.5×", "cpu_bf16", _ratio("evaluation_ratio"), _QUICK),
    Row(
        "I-CAS of 10,000 × 512, in similarity products",
        "≤ 1.0",
        "instance_cas",
        lambda figures: f"{figures['ratio']:.2f}",
        "python tests/benchmarks/instance_cas.py --out …",
    ),
    Row("data and augmentation, of an epoch", "≤ 2 %", "cpu_epoch", _share("data"), _EPOCH),
    Row(
        "probe in the training loop, of a step",
        "≤ 1 %",
        "cpu_bf16",
        lambda figures: f"{figures['probe']['share_of_step']:.2%}",
        _QUICK,
    ),
    Row(
        "two processes of one thread, against one",
        "≥ 1.8×",
        "two_processes",
        lambda figures: f"{figures['ratio']:.2f}× (median)",
        "python tests/benchmarks/two_processes.py --data folder:PATH --rounds 3 --out …",
    ),
)


def table() -> str:
    """Markdown: the rows, and the commands by the letters that the rows name them by."""
    letters: dict[str, str] = {}
    lines = ["| what | reach | Intel Xeon | AMD EPYC | by |", "|---|---|---|---|---|"]
    for row in ROWS:
        measured = " | ".join(_measured(row, folder) for folder in (RESULTS, RESULTS / "amd"))
        letter = letters.setdefault(row.command, ascii_lowercase[len(letters)])
        lines.append(f"| {row.what} | {row.reach} | {measured} | {letter} |")
    commands = [f"{letter}: {command}" for command, letter in letters.items()]
    return "\n".join([*lines, "", "```text", *commands, "```"])


def _measured(row: Row, folder: Path) -> str:
    path = folder / f"{row.file}.json"
    return row.value(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else row.absent


def demonstrations_table() -> str:
    """Markdown: how long the runs take that are promised in minutes."""
    rows = json.loads((RESULTS / "amd" / "demonstrations.json").read_text(encoding="utf-8"))["rows"]
    lines = ["| command | time | RA, best → last | CAS |", "|---|---|---|---|"]
    for recipe, row in rows.items():
        minutes, seconds = divmod(round(row["seconds"]), 60)
        best, last = row["best"], row["last"]
        robust = f"{best['test_robust_accuracy']:.1%} → {last['test_robust_accuracy']:.1%}"
        lines.append(
            f"| `ccf train {recipe}` | {minutes} min {seconds} s | {robust} | {best['cas']:.1f} → {last['cas']:.1f} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class GpuRow:
    """``before`` names a figure of ``h100_before.json``, ``now`` takes the rows of ``on_gpu.json``."""

    what: str
    reach: str
    before: str
    now: Callable[[Figures], str]


def _epoch(name: str, part: str) -> Callable[[Figures], str]:
    return lambda rows: f"{min(epoch[part] for epoch in rows[name]['figures']['epochs']):.1f} s"


GPU_ROWS = (
    GpuRow(
        "`preact_linf`, training of one epoch", "≤ 6 s", "training_epoch_seconds", _epoch("epochs", "training_seconds")
    ),
    GpuRow(
        "evaluation of 10,000 images under PGD-20",
        "≤ 1.5 s",
        "evaluation_seconds",
        lambda rows: f"{min(rows['evaluation']['figures']['replayed_1000']['seconds']):.1f} s",
    ),
    GpuRow(
        "writing of an epoch, of the loop's time", "≤ 0.1 s", "writing_seconds", _epoch("epochs", "writing_seconds")
    ),
    GpuRow(
        "all 200 epochs, each evaluated (extrapolated)",
        "≤ 25 min",
        "run_minutes",
        lambda rows: f"{rows['epochs']['figures']['whole_run_minutes']:.0f} min",
    ),
    GpuRow(
        "`digits`, the quick start",
        "≤ 15 s",
        "digits_seconds",
        lambda rows: f"{rows['digits']['figures']['seconds']:.0f} s",
    ),
    GpuRow("`preact_fast`, training of one epoch", "≤ 1.5 s", "fast_epoch_seconds", _epoch("fast", "training_seconds")),
    GpuRow(
        "I-CAS of 10,000 × 512, in similarity products",
        "≤ 3",
        "instance_cas_products",
        lambda rows: f"{rows['instance_cas']['figures']['10_classes']['products']:.1f}",
    ),
    GpuRow(
        "`probe.update`, with waiting",
        "≤ 1 % of an epoch",
        "update_ms",
        lambda rows: (
            f"{rows['probe']['figures']['with_waiting_ms']:.2f} ms, {rows['probe']['figures']['ratio'] - 1:.1%}"
        ),
    ),
)
_UNITS = {"seconds": "s", "minutes": "min", "ms": "ms", "products": ""}


def gpu_table() -> str:
    """Markdown: what an H100 gave before the work for GPUs, and what it gives now."""
    before = json.loads((RESULTS / "h100_before.json").read_text(encoding="utf-8"))["figures"]
    path = RESULTS / "on_gpu.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else None
    lines = ["| on one H100 | reach | before | now |", "|---|---|---|---|"]
    for row in GPU_ROWS:
        unit = _UNITS[row.before.rsplit("_", 1)[1]]
        now = "not measured" if rows is None else row.now(rows)
        lines.append(f"| {row.what} | {row.reach} | {f'{before[row.before]:g} {unit}'.strip()} | {now} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), demonstrations_table(), gpu_table(), sep="\n\n")
