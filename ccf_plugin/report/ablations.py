"""What `ccf ablate` wrote of a run's model: the page's curves and table, from its JSON alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.ablation_result import KINDS, MARGIN_WORDS, MARGINS, REMOVED, SHARED
from ccf_plugin.report.words import signed
from ccf_plugin.runs.reading import RunFiles
from ccf_plugin.threat import threat_sentence

_ACCURACIES = {"rest_accuracy": "pair found among all", "between_accuracy": "right of the two", "accuracy": "accuracy"}
_COLUMNS = ["removed", *(f"margin: {text}" for text in MARGIN_WORDS.values()), *_ACCURACIES.values(), "p"]


def find_ablations(runs: Sequence[RunFiles], given: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """The ablations that are given, and those whose JSON lies in a run's folder or one folder below.

    Raises:
        InputError: a given file is no ablation's JSON.
    """
    ablations = [_described(_read(path), path.stem) for path in given]
    for run in runs:
        for path in sorted([*run.folder.glob("*.json"), *run.folder.glob("ablation*/*.json")]):
            try:
                ablations.append(_described(_read(path), f"{run.name}, {path.stem}"))
            except InputError:  # another file of the run
                continue
    return ablations


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"mean_change", "doses", "pairs", "over_pairs"} <= content.keys():
            raise ValueError("it has other keys")
        _described(content, "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"expected the JSON that `ccf ablate` writes in {path}, found none that can be read ({error})"
        ) from None
    return content


def _described(ablation: Mapping[str, Any], name: str) -> dict[str, Any]:
    data, pairs = ablation["data"], len(ablation["pairs"])
    measured = f"{pairs} pairs" + (f" of {pairs + ablation['left_out']}" if ablation["left_out"] else "")
    images = f"{data['count']} clean {data['split']} images of {data['name']}"
    counts = [dose["count"] for dose in ablation["doses"]]
    return {
        "name": name,
        "what": f"{ablation['count']} of {ablation['features']} features before {ablation['head']} replaced by their "
        f"means; {measured}, {images}",
        "counts": counts,
        "count": ablation["count"],
        "features": ablation["features"],
        "margins": [
            {
                "heading": MARGIN_WORDS[margin],
                "curves": [
                    {"name": REMOVED[kind], "values": [float(dose[margin][kind]) for dose in ablation["doses"]]}
                    for kind in KINDS
                ],
            }
            for margin in MARGINS
        ],
        "table": {
            "columns": _COLUMNS,
            "rows": [
                [REMOVED[kind], *_changes(ablation["mean_change"][kind]), _p(ablation["over_pairs"].get(kind, {}))]
                for kind in KINDS
            ],
        },
        "ranks": " and ".join(
            f"{'none' if (rank := ablation['spearman'][margin]) is None else signed(rank, '.2f')} with "
            f"{MARGIN_WORDS[margin]}"
            for margin in MARGINS
        ),
        "attacked": [_attacked(pair, ablation["threat"]) for pair in ablation["attacked"]],
    }


def _attacked(pair: Mapping[str, Any], threat: Mapping[str, Any] | None) -> dict[str, Any]:
    intact = pair["intact"]
    before = [f"{intact[margin]:.2f}" for margin in MARGINS] + [f"{intact[name] * 100:.1f} %" for name in _ACCURACIES]
    return {
        "name": f"{' – '.join(pair['pair'])} under {threat_sentence(threat)}, {pair['images']} images, "
        f"C = {pair['correlation']:.2f}",
        "columns": _COLUMNS,
        "rows": [
            ["nothing", *before, ""],
            *(
                [REMOVED[kind], *_changes(removal["change"]), "" if kind == SHARED else _p(removal["p"])]
                for kind, removal in pair["removals"].items()
            ),
        ],
    }


def _changes(change: Mapping[str, float]) -> list[str]:
    margins = [signed(change[margin], ".2f") for margin in MARGINS]
    return margins + [f"{signed(change[name] * 100, '.1f')} points" for name in _ACCURACIES]


def _p(tests: Mapping[str, float]) -> str:
    return "; ".join(f"{value:.1g}" for value in tests.values())
