"""All that is wrong with a recipe's content at once: each fault with its key, what was expected and what was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ccf_plugin.errors import Fault, InputError, did_you_mean
from ccf_plugin.threat import ThreatModel
from ccf_plugin.training.objectives import build_objective, find_objective, is_adversarial
from ccf_plugin.training.recipe import DistillSection, Recipe, evaluation_threat, training_threat
from ccf_plugin.zoo.python_code import is_python


def checked_recipe(content: Mapping[str, Any]) -> Recipe:
    """The recipe, its parts looked up in the zoo and held against each other.

    Raises:
        InputError: faults, one a line; of two faults of one key the schema's, which is the nearer.
    """
    faults: list[Fault | str] = []
    try:
        recipe = recipe_by_schema(content)
    except InputError as error:
        faults += error.faults
    keys = {fault.key for fault in faults if isinstance(fault, Fault)}
    faults += [fault for fault in _contradictions(content) if fault.key not in keys]
    faults += [fault for key, fault in _unknown_parts(content) if key not in keys]
    if faults:
        raise InputError(*faults)
    return recipe


def recipe_by_schema(content: Mapping[str, Any]) -> Recipe:
    """The recipe by keys, types and ranges alone: nothing that it names is looked up.

    Raises:
        InputError: faults, one a line and key; where a key may have several types, all are named.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(*schema_faults(error, Recipe)) from None


def _contradictions(content: Mapping[str, Any]) -> Iterator[Fault]:
    """Parts that do not go together, or could do nothing. Values of a wrong type are left to the schema."""
    objective, data, evaluate, average = (
        _table(content, name) for name in ("objective", "data", "evaluate", "average")
    )
    loss, mix = objective.get("loss", "madry"), data.get("mix", "none")
    of_one_class = [f"[{name}]" for name in ("ensembling", "crossclass") if content.get(name) is not None]
    if isinstance(loss, str) and (known := find_objective(loss)) is not None:
        yield from known.faults(objective)
        of_one_class = [*([] if known.takes_smoothing else [f"loss {loss!r}"]), *of_one_class]
        if content.get("stop") is not None and known.attack is None:
            yield Fault("stop", f"no [stop] with loss {loss!r}, whose training raises no alarm", "one", "remove it")
    if _table(content, "model").get("checkpoint_key") is not None and "weights" not in _table(content, "model"):
        yield Fault("model.checkpoint_key", "model.weights that it is a key of", "none")
    if evaluate.get("select") == "validation" and data.get("validation") is None:
        yield Fault("evaluate.select", "data.validation images to select by", "none")
    if data.get("extra") is None and data.get("extra_share") is not None:
        yield Fault("data.extra_share", "data.extra images to be the share of", "none")
    for part in of_one_class if mix != "none" else ():
        yield Fault("data.mix", f"'none' with {part}, whose images have one class each", repr(mix))
    optim = _table(content, "optim")
    points = optim.get("points", [])
    if (optim.get("schedule") == "points") != bool(points):
        yield Fault("optim.points", "points with schedule 'points', and with that alone", str(points or "none"))
    if optim.get("nesterov") is True and (optim.get("name") == "adamw" or optim.get("momentum", 0.9) == 0):
        yield Fault("optim.nesterov", "false with AdamW or without momentum", "true")
    start, stop = average.get("start_epoch", 0), average.get("stop_epoch")
    if isinstance(stop, int) and isinstance(start, int) and stop <= start:
        yield Fault("average.stop_epoch", f"an epoch after start_epoch {start}", str(stop))
    for name in ("ensembling", "crossclass"):
        if _ends_too_soon(ramp := _table(content, name).get("ramp")):
            yield Fault(f"{name}.ramp", "a ramp that ends after it starts", str(ramp))
    yield from _teacher_faults(content)


def _teacher_faults(content: Mapping[str, Any]) -> Iterator[Fault]:
    tables = content.get("distill")
    teachers = [table if isinstance(table, dict) else {} for table in tables] if isinstance(tables, list) else []
    total, epoch = max(_sums_of_weights(teachers), key=lambda sum_and_epoch: (sum_and_epoch[0], -sum_and_epoch[1]))
    if total > 1 + 1e-9:
        yield Fault("distill", "teachers' weights that add up to 1 at most", f"{total:g} in epoch {epoch}")
    for place, table in enumerate(teachers):
        key = f"distill.{place}"
        if _ends_too_soon(table.get("ramp")):
            yield Fault(f"{key}.ramp", "a ramp that ends after it starts", str(table["ramp"]))
        if "weight_after" in table and "ramp" not in table:
            yield Fault(f"{key}.weight_after", "a ramp that it follows", "none", "state it in weight")
        if table.get("teacher") == "average" and "average" not in content:
            yield Fault(f"{key}.teacher", "an [average] for the teacher 'average'", "none")


def _sums_of_weights(teachers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, int]]:
    """Σλ where it can be largest, at the epochs where a ramp begins or ends; invalid teachers are left out."""
    sections = []
    for table in teachers:
        with contextlib.suppress(ValidationError):
            sections.append(DistillSection.model_validate(table))
    edges = {edge + step for section in sections for edge in section.ramp or () for step in (-1, 0, 1)}
    for epoch in {1, *edges} - {-1, 0}:
        yield sum(section.weight_at(epoch) for section in sections), epoch


def _unknown_parts(content: Mapping[str, Any]) -> list[tuple[str, Fault | str]]:
    """The zoo's faults of names and threat models, and those of the user's own code, by key."""
    from ccf_plugin.zoo.attack_names import attack_class
    from ccf_plugin.zoo.attacks import check_attack
    from ccf_plugin.zoo.datasets import check_spec
    from ccf_plugin.zoo.models import check_name

    model, data, attack, evaluate, objective = (
        _table(content, name) for name in ("model", "data", "attack", "evaluate", "objective")
    )

    def named(section: Mapping[str, Any], check: Callable[[str], object], key: str = "name") -> None:
        if isinstance(section.get(key), str):
            check(section[key])

    def check_loss(loss: str) -> None:
        if is_python(loss) and isinstance(options := objective.get("options", {}), dict):
            build_objective(loss, options=options)

    def check_section(section: Mapping[str, Any], threat: ThreatModel, mode: Any = "eval") -> None:
        if isinstance(section.get("name"), str | None) and isinstance(section.get("options", {}), dict):
            check_attack(section.get("name"), threat, section.get("options", {}), mode=mode)

    trains_on_attack = is_adversarial(str(objective.get("loss", "madry")))
    mode = "train" if trains_on_attack and attack.get("batchnorm", "train") == "train" else "eval"
    checks: list[tuple[str, Callable[[], object]]] = [
        ("model.name", lambda: named(model, check_name)),
        ("data.name", lambda: named(data, check_spec)),
        ("data.extra", lambda: named(data, check_spec, "extra")),
        ("objective.loss", lambda: named(objective, check_loss, "loss")),
        ("attack.name", lambda: named(attack, attack_class)),
        ("evaluate.name", lambda: named(evaluate, attack_class)),
        ("attack", lambda: check_section(attack, training_threat(attack), mode)),
        ("evaluate", lambda: check_section(evaluate, evaluation_threat(attack, evaluate))),
    ]
    faults: list[tuple[str, Fault | str]] = []
    for key, check in checks:
        try:
            check()
        except InputError as error:
            if key in ("attack", "evaluate") and any(known.startswith(("attack.", f"{key}.")) for known, _ in faults):
                continue  # the same fault again, its own or inherited
            faults += [_placed(key, fault) for fault in error.faults]
    return faults


def _placed(key: str, fault: Fault | str) -> tuple[str, Fault | str]:
    """A fault under a recipe's key; one that names a parameter under that key's own."""
    if isinstance(fault, str):
        return key, f"{key}: {fault}"
    whole = f"{key}.{fault.key}" if fault.key else key
    return whole, replace(fault, key=whole)


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return section if isinstance(section := content.get(name, {}), dict) else {}


def _ends_too_soon(ramp: object) -> bool:
    are_epochs = isinstance(ramp, list) and len(ramp) == 2 and all(isinstance(epoch, int) for epoch in ramp)
    return are_epochs and ramp[0] >= ramp[1]  # type: ignore[index]


def schema_faults(error: ValidationError, schema: type[BaseModel]) -> list[Fault]:
    """Of a file of this schema, one fault per key; where a key may have several types, all are named."""
    expected: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"] if not _is_type(part))
        name = str(fault["loc"][-1])
        found[key] = repr(fault["input"])
        if fault["type"] == "extra_forbidden":
            valid = _valid_keys(schema, fault["loc"][:-1])
            found[key] = repr(name) + (did_you_mean(name, valid) or f"; valid here: {', '.join(valid)}")
            expected[key] = ["a known key"]
        elif fault["type"] == "missing":
            found[key] = "none; add it"
            expected[key] = ["a value"]
        else:
            expected.setdefault(key, []).append(str(fault["msg"]).removeprefix("Input should be "))
            if key == "distill" and isinstance(fault["input"], dict):
                found[key] = "one table; write [[distill]]"
    return [Fault(key, " or ".join(expected[key]), found[key]) for key in expected]


def _is_type(part: str | int) -> bool:
    """Whether a part of a fault's place names one of several types that a key may have, and not the key."""
    return part in ("str", "float", "int", "constrained-int") or str(part).startswith("literal[")


def _valid_keys(schema: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    section: Any = schema
    for part in location:
        if isinstance(part, str):  # a number counts the tables of a list
            annotation = section.model_fields[part].annotation
            section = (get_args(annotation) or (annotation,))[0]  # of a list, or of a section that may be None
    return list(section.model_fields)
