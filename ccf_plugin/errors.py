"""The package's exceptions. Each message is one line: what was expected, what was found, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Self

_LONGEST = 1200
# How an extra is installed. The package is not on PyPI; once it is, 'ccf_plugin[{extra}]' stands for '.[{extra}]'.
_INSTALL = "in a clone of ccf_plugin: pip install '.[{extra}]'"
_PARAMETER = re.compile(r"\{([a-z]\w*(?:=(?:[^{}]|\{[^{}]*\})+)?)\}")


@dataclass(frozen=True)
class Fault:
    """What is wrong with one value: its ``key`` (a parameter, a recipe's key, or ""), and what to do about it.

    ``expected`` and ``remedy`` refer to parameters in braces, by name or with a value as Python writes it: ``"choose
    another {out}"``, ``"pass {download=True}"``. Python shows that as it is; the command line shows its options.
    """

    key: str
    expected: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return self.render()

    def render(self, spell: Callable[[str], str] = str) -> str:
        """The fault in one line. ``spell`` turns ``limit`` or ``limit=5`` into what the reader types."""
        place, colon, name = self.key.rpartition(": ")
        key = f"{place}{colon}{spell(name)}: " if self.key else ""
        expected, remedy = (spelled(text, spell) for text in (self.expected, self.remedy))
        return f"{key}expected {expected}, found {self.found}" + (f"; {remedy}" if remedy else "")


def spelled(text: str, spell: Callable[[str], str]) -> str:
    """A text with its references to parameters, in braces, as ``spell`` writes them."""
    return _PARAMETER.sub(lambda match: spell(match[1]), text)


class CCFError(Exception):
    """Base of every error that the package raises on purpose. ``exit_code`` is what ``ccf`` exits with.

    Each argument is a line (several where a recipe has several faults): a ``Fault``, or its text. ``faults`` keeps
    them as they were given, ``args`` is what is printed of them.
    """

    exit_code = 1

    def __init__(self, *lines: str | Fault) -> None:
        self.faults: tuple[str | Fault, ...] = lines
        super().__init__(*self.lines())

    def __str__(self) -> str:
        return "\n".join(self.args)

    def lines(self, spell: Callable[[str], str] = str) -> list[str]:
        """What is printed, a line for each fault; ``spell`` as ``Fault.render`` takes it."""
        return [_printable(fault.render(spell) if isinstance(fault, Fault) else fault) for fault in self.faults]

    def within(self, place: str) -> Self:
        """The same error with each line headed by the file or table that it arose in."""
        return type(self)(
            *(
                replace(fault, key=f"{place}: {fault.key}" if fault.key else place)
                if isinstance(fault, Fault)
                else f"{place}: {fault}"
                for fault in self.faults
            )
        )


class InputError(CCFError, ValueError):
    """Something that the user gave (a name, a value, a file, a tensor) is not what was expected."""

    exit_code = 2


class UnavailableError(CCFError, RuntimeError):
    """The request is fine but cannot be met here and now: no network, no device, a failed download."""

    exit_code = 1


def missing_extra(what: str, library: str, extra: str) -> UnavailableError:
    """The error of a part that needs a library of one of the package's extras."""
    return UnavailableError(
        f"{what}: expected the package {library}, found that it is not installed; {_INSTALL.format(extra=extra)}"
    )


class DivergedError(CCFError):
    """Training gave a loss, weights or logits that are not finite."""


def _printable(line: str) -> str:
    """Somebody's file names and keys may hold line breaks, control characters, or a million letters."""
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def check_at_least(least: int, **values: int | None) -> None:
    """Raise InputError for the first of these parameters that is less; None is not given."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(Fault(name, f"at least {least}", str(value)))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the nearest of ``known``, or ``""`` when nothing is near."""
    return or_these(close_to(name, known))


def or_these(names: Sequence[str]) -> str:
    """``"; did you mean 'a' or 'b'?"``, or ``""`` for no names."""
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def close_to(name: str, known: Iterable[str]) -> list[str]:
    """The nearest of ``known``, three at most: by spelling, and those that begin so."""
    by_lower = {option.lower(): option for option in known}
    typed = name.lower()
    close = get_close_matches(typed, by_lower, n=3, cutoff=0.55)
    begun = [option for option in by_lower if len(typed) > 2 and option.startswith(typed) and option not in close]
    return [by_lower[match] for match in (close + begun)[:3]]


def counted(count: int, noun: str) -> str:
    """A number with its noun, as in "1 model", "2 models"."""
    return f"{count:d} {noun}{'' if count == 1 else 's'}"


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first names of what may be thousands."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def one_line(error: BaseException, limit: int = 240) -> str:
    """``"Type: message"`` of somebody else's exception on one line of at most about ``limit`` characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}{'…' if len(text) > limit else ''}" if text else type(error).__name__
