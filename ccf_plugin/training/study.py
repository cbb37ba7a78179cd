"""A study: runs by recipe and changes, their seeds, teachers among them, and claims. From a TOML file, or one line.

    seeds = [0, 1, 2]
    claims = ["madry.delta_cas > kd.delta_cas"]

    [common]                # what all runs build on: a recipe's keys, and ``base``
    base = "preact_linf"

    [runs.madry]            # a run's own keys, over the common ones

    [runs.kd]
    distill = [{ teacher = "run:madry", weight = 0.8, temperature = 2.0 }]

``run:NAME`` is the run of the same seed, or the only seed of it, as the folder of a run stands for its best checkpoint.
"""

from __future__ import annotations

import itertools
import keyword
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ccf_plugin.errors import Fault, InputError, did_you_mean
from ccf_plugin.files import expanded_path
from ccf_plugin.measuring.claims import Comparison, Figure, parse_claim
from ccf_plugin.runs.folder import has_begun
from ccf_plugin.runs.metrics import all_metrics
from ccf_plugin.training.recipe import Recipe, Seed
from ccf_plugin.training.recipe_faults import schema_faults
from ccf_plugin.training.recipe_files import (
    base_content,
    build_recipe,
    find_file,
    load_recipe,
    merged,
    read_toml,
    shipped_recipes,
)
from ccf_plugin.training.run import Run
from ccf_plugin.training.schedule import is_due

_OF_A_RUN = ("seeds", "seconds_per_epoch")  # what a run's table may say beside a recipe's keys
_RUN = "run:"


class StudyFile(BaseModel):
    """The keys of a study's file; those of ``common`` and ``runs`` are a recipe's."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    title: str = ""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    baseline: str | None = None
    claims: list[str] = []
    seconds_per_epoch: Annotated[float, Field(gt=0)] | None = None
    common: dict[str, Any] = {}
    runs: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


@dataclass(frozen=True)
class Member:
    """One run of a study.

    Attributes:
        name: what its seeds have in common.
        seed: its seed where the study has seeds.
        label: how people know it.
        folder: of the run.
        teachers: folders of the study's runs that must be finished before.
        overrides: of a sweep, by which ``ccf train`` makes the same run.
        seconds_per_epoch: about how long an epoch takes, where the study says it.
    """

    name: str
    seed: int | None
    label: str
    recipe: Recipe
    folder: Path
    teachers: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()
    seconds_per_epoch: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether its folder holds a state to resume from."""
        return has_begun(self.folder)

    def reopen(self, allow_change: Sequence[str] = ()) -> Run:
        """The run in its folder; InputError where another recipe made it."""
        return Run.reopen(self.folder, self.recipe, allow_change=allow_change)


@dataclass(frozen=True)
class Study:
    """Runs in the order in which they can be done, and what is claimed of them.

    Attributes:
        name: of the study.
        title: in words.
        folder: holds the runs' folders.
        members: the runs.
        claims: the comparisons that each is true with.
        baseline: the run that the others are compared with.
        command: by which all of it is done.
        allow_change: keys that may differ from those of runs that are there already (``Run.reopen``).
    """

    name: str
    title: str
    folder: Path
    members: Sequence[Member]
    claims: Mapping[str, Sequence[Comparison]]
    baseline: str
    command: Sequence[str] = ()
    allow_change: Sequence[str] = ()

    @cached_property
    def names(self) -> list[str]:
        """Of the runs, each once."""
        return list(dict.fromkeys(member.name for member in self.members))


def shipped_studies() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    folder = next(iter(shipped_recipes().values())).parent / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_study(
    name_or_path: str,
    common: Sequence[str] = (),
    folder: Path | None = None,
    *,
    allow_code: bool = False,
    allow_change: Sequence[str] = (),
) -> Study:
    """A study from its file, or a shipped one by name.

    Args:
        name_or_path: the file.
        common: ``key=value`` for all runs.
        folder: where the runs' folders go; None: runs/<the file's name>.
        allow_code: whether the file may name code (``load_recipe``).
        allow_change: see ``Study``.

    Raises:
        InputError: no such file, or faults in it, before anything runs.
    """
    if any(one.partition("=")[0].strip() == "seed" for one in common):
        raise InputError("expected seeds in the study's file, found one that changes all runs; edit its seeds")
    shipped = shipped_studies()
    path = find_file(name_or_path, "study", shipped, f"there are {', '.join(shipped)}")
    file = _checked(path, read_toml(path))
    folder = expanded_path(folder or Path("runs") / path.stem)
    seeds = {name: _seeds(path, name, file) for name in file.runs}
    members: list[Member] = []
    faults: list[str | Fault] = []
    for name, table in file.runs.items():
        for seed in seeds[name]:
            try:
                members.append(_member(path, file, name, table, seed, seeds, folder, common, allow_code))
            except InputError as error:
                faults += [fault for fault in error.faults if fault not in faults]
    claims: dict[str, Sequence[Comparison]] = {}
    for claim in file.claims:
        try:
            claims[claim] = parse_claim(claim, list(file.runs))
        except InputError as error:
            faults += error.within(str(path)).faults
    faults += [f"{path}: {fault}" for fault in _epoch_faults(claims, members)]
    if faults:
        raise InputError(*faults)
    by_seed = sorted(members, key=lambda member: seeds[member.name].index(member.seed))
    baseline = file.baseline or next(iter(file.runs))
    return Study(
        name=path.stem,
        title=file.title or path.stem,
        folder=folder,
        members=_teachers_first(path, by_seed),
        claims=claims,
        baseline=baseline,
        allow_change=allow_change,
    )


def sweep_study(
    name_or_path: str,
    settings: Sequence[str],
    common: Sequence[str],
    folder: Path,
    *,
    allow_code: bool = False,
    allow_change: Sequence[str] = (),
) -> Study:
    """Every combination of the settings' values, such as ``attack.eps=2/255,4/255``, each a run; several seeds are one.

    Args:
        name_or_path: the recipe.
        settings: ``key=value,value,…``; commas inside brackets or quotes belong to a value.
        common: ``key=value`` for all runs.
        folder: where the runs' folders go.
        allow_code: whether the recipe's file may name code (``load_recipe``).
        allow_change: see ``Study``.

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
    members = []
    for overrides in itertools.product(*choices):
        label = ",".join(overrides)
        recipe = load_recipe(name_or_path, [*common, *overrides], allow_code=allow_code)
        place = folder / re.sub(r"[^\w.=,+-]", "_", label)
        without_seed = [one for one in overrides if one.partition("=")[0].strip() != "seed"]
        seed = None if len(without_seed) == len(overrides) else recipe.seed
        name = ",".join(without_seed) or Path(name_or_path).stem
        members.append(Member(name, seed, label, recipe, place, overrides=overrides))
    twice, count = Counter(member.folder for member in members).most_common(1)[0]
    if count > 1:
        remedy = "sweep them apart, each with its own {out}"
        raise InputError(Fault("", "a folder for each run", f"{count} for {twice}", remedy))
    return Study(
        name=folder.name,
        title=f"{name_or_path}: {' '.join(settings)}",
        folder=folder,
        members=members,
        claims={},
        baseline=members[0].name,
        allow_change=allow_change,
    )


def _checked(path: Path, content: Mapping[str, Any]) -> StudyFile:
    """The file, its own keys checked; a recipe's keys are checked run by run."""
    try:
        file = StudyFile.model_validate(content)
    except ValidationError as error:
        raise InputError(*schema_faults(error, StudyFile)).within(str(path)) from None
    faults = []
    for name in file.runs:
        if not re.fullmatch(r"[A-Za-z]\w{0,39}", name, re.ASCII) or keyword.iskeyword(name):
            faults.append(f"runs: expected names of letters, digits and _ that claims can name, found {name[:60]!r}")
    if len(lowered := {name.lower() for name in file.runs}) < len(file.runs):
        faults.append(
            f"runs: expected names that differ in more than capitals, found {len(file.runs)} of {sorted(lowered)}"
        )
    if file.baseline is not None and file.baseline not in file.runs:
        faults.append(f"baseline: expected one of {', '.join(file.runs)}, found {file.baseline!r}")
    if faults:
        raise InputError(*faults).within(str(path))
    return file


def _epoch_faults(claims: Mapping[str, Sequence[Comparison]], members: Sequence[Member]) -> list[str]:
    """Claims on epochs that a run does not reach or evaluate: they would be undecided when all is trained."""
    recipes = {member.name: member.recipe for member in members}
    leaves = [(claim, leaf) for claim, parts in claims.items() for part in parts for leaf in part.leaves]
    at_evaluations = {metric.name for metric in all_metrics() if metric.take is not None}
    faults = []
    for claim, figure in dict.fromkeys(leaves):
        if not isinstance(figure, Figure) or not isinstance(figure.at, int) or figure.run not in recipes:
            continue
        recipe = recipes[figure.run]
        epochs, every = recipe.optim.epochs, recipe.evaluate.every
        start, found = f"claim {claim[:200]!r}: expected an epoch", f"found {figure.at}"
        if not 1 <= figure.at <= epochs:
            faults.append(f"{start} of {figure.run}, 1 to {epochs}, {found}")
        elif figure.column in at_evaluations and not is_due(every, figure.at, recipe.optim):
            faults.append(
                f"{start} at which {figure.run} is evaluated, a multiple of evaluate.every = {every}, {found}"
            )
    return faults


def _seeds(path: Path, name: str, file: StudyFile) -> list[int | None]:
    given = file.runs[name].get("seeds", file.seeds)
    try:
        seeds = StudyFile.model_validate({"seeds": given, "runs": {"a": {}}}).seeds
    except ValidationError as error:
        raise InputError(*schema_faults(error, StudyFile)).within(f"{path}: runs.{name}") from None
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: runs.{name}: expected each seed once, found {seeds}")
    return list(seeds)


def _member(
    path: Path,
    file: StudyFile,
    name: str,
    table: Mapping[str, Any],
    seed: int | None,
    seeds: Mapping[str, Sequence[int | None]],
    folder: Path,
    common: Sequence[str],
    allow_code: bool,
) -> Member:
    source = f"{path}: runs.{name}"
    changes = merged(file.common, {key: value for key, value in table.items() if key not in _OF_A_RUN})
    if "seed" in changes:
        raise InputError(f"{source}.seed: expected seeds = [{changes['seed']}], found seed; a study repeats its runs")
    base = changes.pop("base", None)
    if not isinstance(base, str):
        raise InputError(f"{source}.base: expected a recipe's name or path, here or in [common], found {base!r}")
    teachers: list[Path] = []

    def folder_of(spec: str) -> str:
        other = spec.removeprefix(_RUN)
        if other not in seeds:
            raise InputError(
                f"{source}: expected run:NAME of {', '.join(seeds)}, found {spec!r}{did_you_mean(other, seeds)}"
            )
        theirs = seeds[other]
        if seed not in theirs and len(theirs) > 1:
            raise InputError(f"{source}: expected a seed {seed} of {spec!r} too, found {theirs}; add it")
        teachers.append(folder / f"{other}-{seed if seed in theirs else theirs[0]}")
        return str(teachers[-1])

    try:
        below = base_content(base, path)
    except InputError as error:
        raise error.within(f"{source}.base") from None
    content = merged(below, _with_runs(changes, folder_of))
    if isinstance(published := content.get("published"), dict) and changes:
        published["changed"] = [*published.get("changed", []), *changes]
    recipe = build_recipe({**content, "seed": seed}, source, common, allow_code=allow_code)
    seconds = table.get("seconds_per_epoch", file.seconds_per_epoch)
    if not isinstance(seconds, int | float | None):
        raise InputError(f"{source}.seconds_per_epoch: expected a number, found {seconds!r}")
    label = f"{name}, seed {seed}"
    return Member(name, seed, label, recipe, folder / f"{name}-{seed}", tuple(teachers), (), seconds)


def _with_runs(changes: Mapping[str, Any], folder_of: Any) -> dict[str, Any]:
    """A run's tables with folders in place of run:NAME, in teachers and in the weights that training starts from."""
    tables = dict(changes)
    distill, model = changes.get("distill"), changes.get("model")
    if isinstance(distill, list):
        tables["distill"] = [
            {**one, "teacher": folder_of(one["teacher"])}
            if isinstance(one, dict) and _is_run(one.get("teacher"))
            else one
            for one in distill
        ]
    if isinstance(model, dict) and _is_run(model.get("weights")):
        tables["model"] = {**model, "weights": folder_of(model["weights"])}
    return tables


def _is_run(spec: object) -> bool:
    return isinstance(spec, str) and spec.startswith(_RUN)


def _teachers_first(path: Path, members: Sequence[Member]) -> list[Member]:
    """The members, each behind its teachers."""
    by_folder = {member.folder: member for member in members}
    ordered: dict[Path, Member] = {}

    def visit(member: Member, waiting: tuple[Path, ...]) -> None:
        if member.folder in waiting:
            circle = " → ".join(by_folder[folder].name for folder in (*waiting, member.folder))
            raise InputError(f"{path}: expected teachers without a circle, found {circle}")
        if member.folder not in ordered:
            for teacher in member.teachers:
                visit(by_folder[teacher], (*waiting, member.folder))
            ordered[member.folder] = member

    for member in members:
        visit(member, ())
    return list(ordered.values())


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
