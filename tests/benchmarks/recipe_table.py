"""The column "measured here" of recipes/README.md, from what is committed of studies in docs/results: nothing is typed.

    python tests/benchmarks/recipe_table.py

A run counts for the recipe whose training it is, whatever its seed, threads, device, precision and place of the data;
``folder:PATH/cifar10`` is CIFAR-10 as files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccf_plugin.measuring.study_results import COLUMNS
from ccf_plugin.runs.layout import RECIPE
from ccf_plugin.runs.study_file import read_study
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import describe_recipe, load_recipe, read_recipe, shipped_recipes

ROOT = Path(__file__).parents[2]
TABLE, RESULTS = ROOT / "recipes" / "README.md", ROOT / "docs" / "results"
NOT_YET = "not yet"
# What changes nothing of what is trained and measured, or only within rounding.
_ASIDE = ("seed", "threads", "device", "precision", "compile", "data.root", "checkpoint_minutes")
_SHOWN = {"best": ("best_ra", "best_cas"), "last": ("last_ra", "last_cas")}


def filled(text: str, results: Path = RESULTS) -> str:
    """The page with its table's last column as the results have it, and a row for each shipped recipe."""
    found = measured(results)
    lines = text.splitlines()
    rows = {match[1]: place for place, line in enumerate(lines) if (match := re.match(r"\| `(\w+)` \|", line))}
    for name, place in rows.items():
        cells = lines[place].strip("|").split("|")
        lines[place] = f"|{'|'.join(cells[:-1])}| {found.get(name, NOT_YET)} |"
    last = max(rows.values())
    missing = [name for name in shipped_recipes() if name not in rows]
    lines[last + 1 : last + 1] = [
        f"| `{name}` | {describe_recipe(shipped_recipes()[name])[0]} | see its header | {found.get(name, NOT_YET)} |"
        for name in missing
    ]
    return "\n".join(lines) + "\n"


def measured(results: Path) -> dict[str, str]:
    """What was measured, by recipe: of the study with most seeds, with a link to its page."""
    trained = {name: _what_is_trained(load_recipe(name)) for name in shipped_recipes()}
    cells: dict[str, tuple[int, str]] = {}
    for folder in sorted(path.parent for path in results.glob("*/study.json")):
        study = read_study(folder)
        for row in study["table"]:
            run = next(run for run in study["runs"] if run["name"] == row["run"] and run["status"] == "finished")
            recipe = _what_is_trained(read_recipe(folder / run["folder"] / RECIPE))
            for name in (name for name, known in trained.items() if known == recipe):
                if row["seeds"] > cells.get(name, (0, ""))[0]:
                    cells[name] = (row["seeds"], _cell(row, f"../docs/results/{folder.name}.md"))
    return {name: cell for name, (_, cell) in cells.items()}


def _what_is_trained(recipe: Recipe) -> dict[str, Any]:
    """Its keys; of teachers that are runs only that they are."""
    flat = {key: value for key, value in recipe.flat().items() if key.split(".")[0] not in ("probe", "checkpoints")}
    flat["distill"] = [
        {**one, "teacher": "a run" if "/" in one["teacher"] else one["teacher"]} for one in flat.get("distill", [])
    ]
    flat["data.name"] = re.sub("^(folder|npz):(.*/)?", "", flat["data.name"])
    return {key: value for key, value in flat.items() if key not in _ASIDE}


def _cell(row: Mapping[str, Any], page: str) -> str:
    columns = {column.name: column for column in COLUMNS}
    parts = [
        f"{which} " + " / ".join(str(columns[name].cell(row["figures"].get(name))) for name in names)
        for which, names in _SHOWN.items()
    ]
    seeds = "" if row["seeds"] == 1 else f" ({row['seeds']} seeds)"
    return f"[{', '.join(parts)}{seeds}]({page})"


if __name__ == "__main__":
    TABLE.write_text(filled(TABLE.read_text("utf-8")), encoding="utf-8")
