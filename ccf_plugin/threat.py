"""Threat models in [0, 1] pixel units (paper, Appendix B): how they are written and checked, and what they are called.

``ThreatModel`` is what an attacker may do. A result describes the attack that was run by a mapping of ``attack`` (its
name), ``norm``, ``eps``, ``step_size`` and ``steps``, with None for what the attack does not take, and of its own
``options``, where some were given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ccf_plugin.errors import Fault, InputError, did_you_mean

Norm = Literal["Linf", "L2"]
Pixels = str | float | int
Description = Mapping[str, Any]

DEFAULT_STEPS = 20
_NORMS: dict[str, Norm] = {"linf": "Linf", "l2": "L2"}
_DEFAULT_EPS: dict[Norm, float] = {"Linf": 8 / 255, "L2": 128 / 255}
DEFAULT_STEP_SIZE: dict[Norm, str] = {"Linf": "eps/4", "L2": "eps/8"}
# Beyond these, the value was most likely meant in 0..255 units. An L2 ball of 16 already spans a third of the
# diameter of a 3×32×32 image.
_LARGEST_EPS: dict[Norm, float] = {"Linf": 1.0, "L2": 16.0}

_OPERATORS = {"*", "/"}
_WORD = re.compile(r"eps|[*/]|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may do. ``eps`` and ``step_size`` are in [0, 1] pixel units."""

    norm: Norm
    eps: float
    step_size: float
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """The four fields, ready for JSON."""
        return asdict(self)


def parse_pixels(value: Pixels, *, eps: float | None = None, key: str = "eps") -> float:
    """A value in [0, 1] pixel units from a number or from text such as ``"8/255"`` or ``"1.25*eps"``.

    Text may hold products and quotients of numbers and, where ``eps`` is given, the word ``eps``. ``key`` names the
    value in messages. Raises InputError for anything else and for a value that is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(Fault(key, "a number or text such as '8/255'", repr(value)))
    number = _evaluate(value, eps, key) if isinstance(value, str) else float(value)
    if not math.isfinite(number):
        raise InputError(Fault(key, "a finite number", repr(value)))
    return number


def threat_model(
    *, norm: str = "Linf", eps: Pixels | None = None, step_size: Pixels | None = None, steps: int = DEFAULT_STEPS
) -> ThreatModel:
    """A checked threat model; what is None takes the paper's value.

    Those are eps 8/255 and step eps/4 for Linf, eps 128/255 and step eps/8 for L2. ``step_size`` may refer to ``eps``.
    Raises InputError for an unknown norm, for values outside their range (with a word on units) and for steps below 1.
    """
    kind = norm_named(norm)
    radius = _DEFAULT_EPS[kind] if eps is None else parse_pixels(eps)
    _check_range("eps", radius, eps, kind)
    step_size = DEFAULT_STEP_SIZE[kind] if step_size is None else step_size
    step = parse_pixels(step_size, eps=radius, key="step_size")
    _check_range("step_size", step, step_size, kind)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(Fault("steps", "a whole number of at least 1", repr(steps)))
    return ThreatModel(norm=kind, eps=radius, step_size=step, steps=steps)


def norm_named(name: str) -> Norm:
    """The norm of a name in any case. Raises InputError for an unknown one."""
    if not isinstance(name, str) or name.lower() not in _NORMS:
        raise InputError(Fault("norm", "'Linf' or 'L2'", f"{name!r}{did_you_mean(str(name), _NORMS.values())}"))
    return _NORMS[name.lower()]


def show_pixels(value: float | None) -> str:
    """A value in [0, 1] pixel units as people write it, ``"8/255"``; ``"none"`` for None."""
    return "none" if value is None else f"{value * 255:.4g}/255"


def threat_sentence(threat: Description | None) -> str:
    """An attack in words: ``"PGD-20, Linf, eps 8/255, step 2/255"``; ``"clean images"`` for None.

    What the attack does not take, or what is not known of it, is left out: ``"CW, L2"``.
    """
    if threat is None:
        return "clean images"
    name, norm, steps = (threat.get(field) for field in ("attack", "norm", "steps"))
    parts = [] if name is None else [str(name) if steps is None else f"{name}-{steps}"]
    parts += [] if norm in (None, "none") else [str(norm)]
    lengths = (("eps", threat.get("eps")), ("step", threat.get("step_size")))
    parts += [f"{word} {show_pixels(value)}" for word, value in lengths if value is not None]
    parts += [f"{key} {value}" for key, value in (threat.get("options") or {}).items()]
    return ", ".join(parts) or "an attack"


def threat_label(threat: Description | None) -> str:
    """An attack's name with its steps, where it has any: ``"PGD-20"``, ``"FGSM"``; ``"clean"`` for None.

    Of ``python:package.module:Class`` it says the last part.
    """
    if threat is None:
        return "clean"
    name, steps = _short_name(threat) or "attack", threat.get("steps")
    return name if steps is None else f"{name}-{steps}"


def threat_file_part(threat: Description | None) -> str:
    """An attack in a file's name: ``"PGD20-Linf-8of255"``, ``"FGSM-L2-0.3"``; ``"clean"`` for None."""
    if threat is None:
        return "clean"
    name, norm, eps, steps = (_short_name(threat), *map(threat.get, ("norm", "eps", "steps")))
    parts = [name if steps is None or not name else f"{name}{'-' if name[-1].isdigit() else ''}{steps}"]
    parts += ["" if norm in (None, "none") else str(norm), "" if eps is None else file_pixels(eps)]
    return "-".join(part for part in parts if part) or "attack"


def _short_name(threat: Description) -> str:
    return str(threat.get("attack") or "").rpartition(":")[2]


def file_pixels(eps: float) -> str:
    """A value in [0, 1] pixel units in a file's name: ``"8of255"``, ``"0.3"``."""
    levels = round(eps * 255)
    return f"{levels}of255" if math.isclose(eps * 255, levels, rel_tol=1e-9, abs_tol=1e-9) else f"{eps:.4g}"


def _check_range(key: str, value: float, given: Pixels | None, norm: Norm) -> None:
    largest = _LARGEST_EPS[norm]
    if 0 <= value <= largest:
        return
    is_level = isinstance(given, int | str) and str(given).isdigit() and 0 < int(given) <= 255 * largest
    example = f"{given}/255" if is_level else "8/255"
    remedy = f"units are pixels in [0, 1], so write e.g. '{example}'"
    raise InputError(Fault(key, f"0 to {largest:g} for {norm}", repr(given), remedy))


def _evaluate(text: str, eps: float | None, key: str) -> float:
    """Left to right over ``factor (("*" | "/") factor)*``; deliberately not ``eval``, the text comes from files."""
    words = _WORD.findall(text)
    factors, operators = words[0::2], words[1::2]
    is_whole = "".join(words) == "".join(text.split()) and len(words) % 2 == 1
    if not is_whole or not _OPERATORS.issuperset(operators) or not _OPERATORS.isdisjoint(factors):
        raise InputError(Fault(key, "a number or text such as '8/255' or 'eps/4'", repr(text)))
    result = 1.0
    for operator, factor in zip(["*", *operators], factors, strict=True):
        if factor == "eps" and eps is None:
            raise InputError(Fault(key, "a number such as '8/255'", f"{text!r}: eps is not known here"))
        number = eps if factor == "eps" and eps is not None else float(factor)
        if operator == "/" and number == 0:
            raise InputError(Fault(key, "a finite number", f"{text!r}, which divides by zero"))
        result = result * number if operator == "*" else result / number
    return result
