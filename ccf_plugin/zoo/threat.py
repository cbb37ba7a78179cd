"""Threat models: the norm, its radius and the steps of the attack, in [0, 1] pixel units (paper, Appendix B)."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ccf_plugin.errors import InputError, did_you_mean

Norm = Literal["Linf", "L2"]
Pixels = str | float | int

_NORMS: dict[str, Norm] = {"linf": "Linf", "l2": "L2"}
_DEFAULT_EPS: dict[Norm, float] = {"Linf": 8 / 255, "L2": 128 / 255}
DEFAULT_STEP_SIZE: dict[Norm, str] = {"Linf": "eps/4", "L2": "eps/8"}
# Beyond these, the value was most likely meant in 0..255 units. An L2 ball of 16 already spans a third of the
# diameter of a 3×32×32 image.
_LARGEST_EPS: dict[Norm, float] = {"Linf": 1.0, "L2": 16.0}

_OPERATORS = {"*", "/"}
_WORD = re.compile(r"\s*(eps|[*/]|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


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


def parse_pixels(value: Pixels, *, eps: float | None = None, what: str = "eps") -> float:
    """A value in [0, 1] pixel units from a number or from text such as ``"8/255"`` or ``"1.25*eps"``.

    Text may hold products and quotients of numbers and, where ``eps`` is given, the word ``eps``. ``what`` names the
    value in messages. Raises InputError for anything else and for a value that is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{what}: expected a number or text such as '8/255', found {value!r}")
    number = _evaluate(value, eps, what) if isinstance(value, str) else float(value)
    if not math.isfinite(number):
        raise InputError(f"{what}: expected a finite number, found {value!r}")
    return number


def threat_model(
    *, norm: str = "Linf", eps: Pixels | None = None, step_size: Pixels | None = None, steps: int = 20
) -> ThreatModel:
    """A checked threat model; what is None takes the paper's value.

    Those are eps 8/255 and step eps/4 for Linf, eps 128/255 and step eps/8 for L2. ``step_size`` may refer to ``eps``.
    Raises InputError for an unknown norm, for values outside their range (with a word on units) and for steps below 1.
    """
    if not isinstance(norm, str) or norm.lower() not in _NORMS:
        raise InputError(f"norm: expected 'Linf' or 'L2', found {norm!r}{did_you_mean(str(norm), _NORMS.values())}")
    kind = _NORMS[norm.lower()]
    radius = _DEFAULT_EPS[kind] if eps is None else parse_pixels(eps)
    _check_range("eps", radius, eps, kind)
    step_size = DEFAULT_STEP_SIZE[kind] if step_size is None else step_size
    step = parse_pixels(step_size, eps=radius, what="step_size")
    _check_range("step_size", step, step_size, kind)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps: expected a whole number of at least 1, found {steps!r}")
    return ThreatModel(norm=kind, eps=radius, step_size=step, steps=steps)


def show_pixels(value: float | None) -> str:
    """A value in [0, 1] pixel units as people write it, ``"8/255"``; ``"none"`` for None."""
    return "none" if value is None else f"{value * 255:.4g}/255"


def _check_range(what: str, value: float, given: Pixels | None, norm: Norm) -> None:
    largest = _LARGEST_EPS[norm]
    if 0 <= value <= largest:
        return
    whole = isinstance(given, int | str) and str(given).isdigit() and 0 < int(given) <= 255 * largest
    example = f"{given}/255" if whole else "8/255"
    raise InputError(
        f"{what}: expected 0 to {largest:g} for {norm}, found {given!r}; "
        f"units are pixels in [0, 1], so write e.g. '{example}'"
    )


def _evaluate(text: str, eps: float | None, what: str) -> float:
    """Left to right over ``factor (("*" | "/") factor)*``; deliberately not ``eval``, the text comes from files."""
    words = _words(text)
    factors, operators = words[0::2], words[1::2]
    if len(words) % 2 == 0 or not _OPERATORS.issuperset(operators) or not _OPERATORS.isdisjoint(factors):
        raise InputError(f"{what}: expected a number or text such as '8/255' or 'eps/4', found {text!r}")
    result = 1.0
    for operator, factor in zip(["*", *operators], factors, strict=True):
        if factor == "eps" and eps is None:
            raise InputError(f"{what}: {text!r} refers to eps, which is not known here; write a number such as '8/255'")
        number = eps if factor == "eps" and eps is not None else float(factor)
        if operator == "/" and number == 0:
            raise InputError(f"{what}: {text!r} divides by zero")
        result = result * number if operator == "*" else result / number
    return result


def _words(text: str) -> list[str]:
    """Numbers, operators and ``eps`` of ``text``; an empty list where some part of it is not one."""
    found, position = [], 0
    while position < len(text):
        match = _WORD.match(text, position)
        if match is None:
            return []
        found.append(match.group(1))
        position = match.end()
    return found
