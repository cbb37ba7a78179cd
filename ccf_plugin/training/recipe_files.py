"""Recipes as files: finding them, building one on another, and changing their keys."""

from __future__ import annotations

import copy
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ccf_plugin.errors import Fault, InputError, did_you_mean
from ccf_plugin.files import expanded_path, toml_or_text
from ccf_plugin.threat import DEFAULT_STEP_SIZE
from ccf_plugin.training.objectives import find_objective
from ccf_plugin.training.recipe import Recipe
from ccf_plugin.training.recipe_faults import checked_recipe, recipe_by_schema
from ccf_plugin.zoo.python_code import code_in

_STEP_SIZE_OF_ATTACK = {"FFGSM": "1.25*eps", "FGSM": "eps"}  # of Wong et al. 2020, and of Goodfellow et al. 2015
_LARGEST_RECIPE = 1_000_000
_MOST_BASES = _DEEPEST = 20


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Recipe:
    """Read a recipe by path, or a shipped one by name, with ``key=value`` overrides ("optim.epochs=20").

    Args:
        name_or_path: the recipe.
        overrides: what the user has typed; it may name code (``python:…``).
        allow_code: whether the file may, too.

    Raises:
        InputError: no such recipe, not TOML, code that is not allowed, or faults in it (all of them, one per line).
    """
    path = find_recipe(name_or_path)
    return build_recipe(_with_base(path, visited=()), str(path), overrides, allow_code=allow_code)


def build_recipe(
    content: Mapping[str, Any], source: str, overrides: Sequence[str] = (), *, allow_code: bool = False
) -> Recipe:
    """The recipe of a file's content, as ``load_recipe`` makes it; ``source`` is what faults call the file."""
    made = copy.deepcopy(dict(content))
    named = [] if allow_code else list(code_in(made))
    if named:  # before anything looks at it closer, which would import it
        remedy = "if you trust it, add {allow_code=True}"
        faults = [Fault(f"{source}: {key}", "no code named by a file", repr(spec), remedy) for key, spec in named]
        raise InputError(*faults)
    for override in overrides:
        _apply(made, override)
    source = f"{source} with its overrides" if overrides else source
    _check_values(made, source)
    if overrides and isinstance(published := made.get("published"), dict):
        published["changed"] = [*published.get("changed", []), *overrides]
    try:
        return checked_recipe(_with_defaults(made))
    except InputError as error:
        raise error.within(source) from None


def read_recipe(path: Path) -> Recipe:
    """The recipe that a run has written, by its schema alone: nothing that it names is looked up.

    Raises:
        InputError: not TOML, or faults in it.
    """
    try:
        return recipe_by_schema(_with_defaults(read_toml(path), by_method=False))
    except InputError as error:
        raise error.within(str(path)) from None


def find_recipe(name_or_path: str) -> Path:
    """The recipe's file: a path that exists, or the name of a shipped recipe."""
    return find_file(name_or_path, "recipe", shipped_recipes(), "`ccf recipes` lists the shipped ones")


def find_file(name_or_path: str, kind: str, shipped: Mapping[str, Path], listed: str) -> Path:
    """A path that exists, or one of the shipped files by its name; ``listed`` says where their names are.

    Raises:
        InputError: neither.
    """
    path = expanded_path(name_or_path)
    if path.is_file():
        return path
    if name_or_path in shipped:
        return shipped[name_or_path]
    looks_like_path = path.suffix == ".toml" or len(path.parts) > 1
    raise InputError(
        f"expected {f'a {kind} file' if looks_like_path else f'a {kind} file or the name of a shipped {kind}'}, found "
        f"no {name_or_path!r}{did_you_mean(path.stem, shipped) or f'; {listed}'}"
    )


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    inside_wheel = Path(str(resources.files("ccf_plugin"))) / "recipes"
    folder = inside_wheel if inside_wheel.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def describe_recipe(path: Path) -> tuple[str, str]:
    """What a recipe is, in one line, and where it is from: its first comment line, and its source's first clause."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    title, *rest = (line.lstrip("# ").rstrip() for line in lines)
    # the dot of "et al. 2020" ends no clause
    source = re.search(r"Source: *(.*?) *([;:]|\.(?=\s+[A-Z]|$)|$)", " ".join(rest))
    return title.rstrip("."), source[1] if source else ""


def _with_base(path: Path, visited: tuple[Path, ...]) -> dict[str, Any]:
    """The file's tables over those of its ``base``, which is a path beside it or a shipped recipe's name."""
    if path.resolve() in visited:
        raise InputError(f"expected recipes to build on others without a circle, found one at {path}; remove a base")
    if len(visited) > _MOST_BASES:
        raise InputError(f"expected a base of at most {_MOST_BASES} others, found more at {path}; join some of them")
    content = read_toml(path)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise InputError(f"{path}: base: expected a recipe's name or path, found {base!r}")
    below = _with_base(_find_base(base, path.parent), (*visited, path.resolve()))
    below.pop("published", None)  # these figures are not those of the changed recipe
    return merged(below, content)


def base_content(base: str, study: Path) -> dict[str, Any]:
    """The tables of the recipe that a study's file names as a ``base``; raises as loading does."""
    beside = _find_base(base, study.parent)
    is_itself = beside.resolve() == study.resolve()  # a study may have its recipe's name
    return _with_base(find_recipe(base) if is_itself else beside, ())


def _find_base(base: str, folder: Path) -> Path:
    beside = expanded_path(folder / (base if base.endswith(".toml") else f"{base}.toml"))
    return beside if beside.is_file() else find_recipe(base)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file; raises InputError for one that is not to be read, is no TOML, or is no recipe's size."""
    try:
        size = path.stat().st_size
        if size > _LARGEST_RECIPE:
            raise InputError(f"expected a recipe under 1 MB, found {size} bytes in {path}; is it another file?")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"expected TOML in {path}, found too many brackets inside one another; remove some") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected TOML in {path}, found a fault: {error}; correct the file") from None
    except InputError:
        raise
    except ValueError:
        raise InputError(f"expected TOML in {path}, found a number of thousands of digits; shorten it") from None
    except OSError as error:
        raise InputError(f"expected a readable recipe, found {path}: {error.strerror}") from None
    _check_values(content, str(path))
    return content


def _check_values(content: Mapping[str, Any], source: str) -> None:
    """Raise InputError for whole numbers beyond TOML's 64 bits, and for more tables in one another than any recipe has.

    Python accepts both, and libraries that receive such values fail in ways of their own.
    """
    inside: list[tuple[str, Any, int]] = [("", content, 0)]
    while inside:
        key, value, depth = inside.pop()
        if depth > _DEEPEST:
            raise InputError(f"{source}: {key[:60]}…: expected at most {_DEEPEST} tables in one another, found more")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{source}: {key}: expected less than 2^63 in size, found a larger number")
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        inside += [(f"{key}.{name}".lstrip("."), item, depth + 1) for name, item in items]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables over tables, key by key; lists are replaced, and so are ``options`` by an empty table.

    Options belong to what is named beside them, and one who names another has no other way to be rid of the base's.
    """
    both = dict(below)
    for key, value in above.items():
        are_tables = isinstance(value, dict) and isinstance(both.get(key), dict)
        is_clearing = key == "options" and not value
        both[key] = merged(both[key], value) if are_tables and not is_clearing else value
    return both


def _apply(content: dict[str, Any], override: str) -> None:
    """Set ``a.b=value`` in place; ``files.toml_or_text`` reads the value."""
    key, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise InputError(Fault("overrides", "key=value such as optim.epochs=20", repr(override)))
    *tables, last = (part.strip() for part in key.split("."))
    inside: Any = content
    for table in tables:
        if isinstance(inside, list) and table in map(str, range(len(inside))):
            inside = inside[int(table)]  # distill.0.weight
        elif isinstance(inside, dict):
            inside = inside.setdefault(table, {})
        else:
            inside = None
    if not isinstance(inside, dict):
        remedy = f"{'.'.join(tables)} is not a table"
        raise InputError(Fault("overrides", "a key inside a table", repr(override), remedy))
    inside[last] = toml_or_text(text)


def _with_defaults(content: Mapping[str, Any], *, by_method: bool = True) -> dict[str, Any]:
    """The content with what other keys decide where it is silent: the attack that a loss is made for, the mode of the
    model under it, and step sizes.

    What is no table or no norm is left to the faults. Without ``by_method`` silence means PGD in train mode and steps
    by the norm, as it did in the recipes that runs of earlier versions wrote.
    """
    attack, evaluate, objective = (content.get(name, {}) for name in ("attack", "evaluate", "objective"))
    if not all(isinstance(section, dict) for section in (attack, evaluate, objective)):
        return dict(content)
    name, mode = _fitting_attack(objective) if by_method else ("PGD", "train")
    attack, norm = {"name": name, "batchnorm": mode, **attack}, attack.get("norm", "Linf")
    attack = {"step_size": _step_size(norm, attack["name"] if by_method else None), **attack}
    evaluate = {"name": "PGD", "step_size": _step_size(evaluate.get("norm", norm)), **evaluate}
    return {**content, "attack": attack, "evaluate": evaluate}


def _fitting_attack(objective: Mapping[str, Any]) -> tuple[str, str]:
    """The attack that a loss is made for, and the mode of the model under it."""
    known = find_objective(str(objective.get("loss", "madry")))
    return ("PGD", "train") if known is None or known.attack is None else (known.attack, known.batchnorm)


def _step_size(norm: object, attack: object = None) -> str | None:
    """The step size of the attack's own paper, else this paper's for the norm; None for an unknown norm."""
    default = next((step for known, step in DEFAULT_STEP_SIZE.items() if known == norm), None)
    return _STEP_SIZE_OF_ATTACK.get(str(attack).upper(), default)
