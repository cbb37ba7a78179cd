"""torchattacks' names: the class behind each, the norm that it works in, and what may be said of it.

Those of ``zoo.further_attacks`` count as torchattacks' wherever a name is looked up. What
``python:package.module:name`` names is the user's own, see ``zoo.attacks``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ccf_plugin.errors import Fault, InputError, did_you_mean
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.python_code import is_python, load_object

Mode = Literal["eval", "train"]

_DEFAULT_ATTACK = {"Linf": "PGD", "L2": "PGDL2"}
# One method under two names; the norm says which is meant.
_L2_TWINS = {"PGD": "PGDL2", "PGDRS": "PGDRSL2", "TPGD": "TPGDL2", "CWPGD": "CWPGDL2"}
# The norms of those that a name or a parameter does not tell; "none" is bounded in no norm.
_NORMS = {
    **dict.fromkeys(("CW", "DeepFool"), "L2"),
    **dict.fromkeys(("EADL1", "EADEN"), "L1"),
    **dict.fromkeys(("OnePixel", "Pixle", "JSMA", "SparseFool"), "L0"),
    **dict.fromkeys(("GN", "VANILA"), "none"),
}
# LGV trains copies of the model and MultiAttack takes attacks instead of a model.
_NOT_ATTACKS = {"LGV", "MultiAttack"}
# They run the model on single images, or on those that are not fooled yet; BatchNorm in train mode would then take its
# statistics from these, or fail for one.
_NOT_ON_WHOLE_BATCHES = {
    *("APGD", "APGDT", "FAB", "Square", "AutoAttack"),
    *("JSMA", "DeepFool", "SparseFool", "OnePixel", "Pixle"),
}
# What the classes call the fields of a threat model.
FROM_THREAT = {
    "eps": "eps",
    "max_epsilon": "eps",
    "alpha": "step_size",
    "step_size": "step_size",
    "steps": "steps",
    "num_iter_set": "steps",
    "nb_iter": "steps",
    "norm": "norm",
}


def attack_names() -> list[str]:
    """The names that ``build_attack`` knows, as torchattacks spells them."""
    import torchattacks

    from ccf_plugin.zoo.further_attacks import FURTHER

    return [name for name in (*torchattacks.__all__, *FURTHER) if name not in _NOT_ATTACKS]


def attack_class(name: str) -> tuple[str, Callable[..., Any]]:
    """The attack's exact name and its class, or the user's own callable. Raises InputError where there is none."""
    if is_python(name):
        function = load_object(name)
        if not callable(function):
            raise InputError(f"attack {name}: expected a class or function, found {type(function).__name__}")
        return name, function
    import torchattacks

    from ccf_plugin.zoo.further_attacks import FURTHER

    known = {known.lower(): known for known in attack_names()}
    if name.lower() in {wrapper.lower() for wrapper in _NOT_ATTACKS}:
        raise InputError(f"attack {name!r} is not an attack on its own; name one such as PGD, APGD or AutoAttack")
    if name.lower() not in known:
        raise InputError(f"attack {name!r} is not in torchattacks{did_you_mean(name, known.values())}")
    exact = known[name.lower()]
    class_: type = FURTHER.get(exact) or getattr(torchattacks, exact)
    return exact, class_


def class_for(name: str, threat: ThreatModel) -> tuple[str, Callable[..., Any]]:
    """As ``attack_class``, where in L2 a name of Linf stands for its L2 twin."""
    exact, chosen = attack_class(name)
    return attack_class(_L2_TWINS[exact]) if threat.norm == "L2" and exact in _L2_TWINS else (exact, chosen)


def find_attack(
    name: str | None, threat: ThreatModel, options: Mapping[str, Any], mode: Mode
) -> tuple[str, Callable[..., Any], dict[str, inspect.Parameter], dict[str, Any]]:
    """An attack's name, class, parameters without the model, and options; None is PGD.

    Raises InputError for all that can be wrong before there is a model.
    """
    name, chosen = class_for("PGD" if name is None else name, threat)
    parameters = _parameters(name, chosen)
    _check_norm(name, parameters, threat)
    if mode == "train" and name in _NOT_ON_WHOLE_BATCHES:
        raise InputError(
            Fault("batchnorm", f"'eval' with attack {name}, which runs the model on parts of a batch", "'train'")
        )
    return name, chosen, parameters, _check_options(name, parameters, options)


def norm_of(name: str) -> str:
    """The norm of an attack that takes none as a parameter."""
    return _NORMS.get(name, "L2" if name.endswith("L2") else "Linf")


def _parameters(name: str, chosen: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        _, *others = inspect.signature(chosen).parameters.items()
    except ValueError as error:  # no parameter at all, or a callable of C
        raise InputError(f"attack {name}: expected a class or function of a model, found other parameters") from error
    return dict(others)


def _check_norm(name: str, parameters: Mapping[str, Any], threat: ThreatModel) -> None:
    if "norm" in parameters or is_python(name):
        return
    norm = norm_of(name)
    if norm in _DEFAULT_ATTACK and norm != threat.norm:
        other = _DEFAULT_ATTACK[threat.norm]
        raise InputError(f"attack {name} works in {norm}, but the norm is {threat.norm}; use {other} or norm {norm}")


def _check_options(name: str, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    valid = [key for key in parameters if key not in FROM_THREAT]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in options:
        if key in FROM_THREAT:
            raise InputError(f"attack {name}: {key} is set through the threat model ({FROM_THREAT[key]})")
        if key not in valid and not takes_any:
            known = ", ".join(valid) or "none"
            raise InputError(f"attack {name} has no option {key!r}; its options: {known}{did_you_mean(key, valid)}")
    return dict(options)
