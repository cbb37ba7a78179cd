"""One recipe over several values of its keys: which runs that means, and what they found."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.runs.folder import has_begun
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.run import Run


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    folder: Path
    allow_change: Sequence[str] = ()

    @property
    def run(self) -> Run:
        """The run in its folder; InputError where another recipe made it."""
        return Run.reopen(self.folder, self.recipe, allow_change=self.allow_change)

    @property
    def has_begun(self) -> bool:
        """Whether its folder holds a state to resume from."""
        return has_begun(self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.has_begun and self.run.is_finished


def plan_sweep(
    name_or_path: str,
    settings: Sequence[str],
    common: Sequence[str],
    folder: Path,
    *,
    allow_code: bool = False,
    allow_change: Sequence[str] = (),
) -> list[Point]:
    """Every combination of the settings' values, such as ``attack.eps=2/255,4/255``, each in a folder of its own.

    Args:
        name_or_path: the recipe.
        settings: ``key=value,value,…``; commas inside brackets or quotes belong to a value.
        common: ``key=value`` for all runs.
        folder: where the runs' folders go.
        allow_code: whether the recipe's file may name code (``load_recipe``).
        allow_change: keys that may differ from those of a run that is there already (``Run.reopen``).

    Raises:
        InputError: a setting of another form, or a combination that is no valid recipe (before anything runs).
    """
    choices = []
    for setting in settings:
        key, equals, values = setting.partition("=")
        chosen = _split(values)
        if not equals or not key or not all(value.strip() for value in chosen):
            raise InputError(f"expected key=value,value such as attack.eps=2/255,4/255, found {setting!r}")
        choices.append([f"{key}={value}" for value in chosen])
    points = []
    for overrides in itertools.product(*choices):
        name = ",".join(overrides)
        recipe = load_recipe(name_or_path, [*common, *overrides], allow_code=allow_code)
        points.append(Point(name, overrides, recipe, folder / re.sub(r"[^\w.=,+-]", "_", name), allow_change))
    folder, count = Counter(point.folder for point in points).most_common(1)[0]
    if count > 1:
        remedy = "sweep them apart, each with its own {out}"
        raise InputError(Fault("", "a folder for each run", f"{count} for {folder}", remedy))
    return points


def _split(text: str) -> list[str]:
    """The values between the commas that are not inside brackets or quotes."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            values.append("")
            continue
        values[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
    return values
