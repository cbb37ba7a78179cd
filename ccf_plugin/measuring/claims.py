"""The claims of a study, as trees: ``kd.delta_cas < 0.5 * madry.delta_cas``, ``spearman(ra, cas) > 0``.

A figure is ``run.figure``: ``ra``, ``clean``, ``cas``, ``cas_excess``, ``icas``, ``epoch`` or any column of log.csv.
Alone it is that of the last epoch; ``best_``, ``last_`` and ``delta_`` before it are that of the best epoch, of the
last, and best − last; ``_50`` behind it is epoch 50's. Without a run it is each run's, and the claim must be true of
all. ``halved(run.ra)`` is the epoch from which on a figure stays below half of its highest. A chain
``a.ra < b.ra < c.ra`` claims each of its comparisons. Python's grammar parses the text, which is never run as code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from ccf_plugin.errors import InputError, did_you_mean
from ccf_plugin.runs.metrics import all_metrics

SHORT = {
    "ra": "test_robust_accuracy",
    "clean": "test_clean_accuracy",
    "train_ra": "train_robust_accuracy",
    "icas": "instance_cas",
    "epochs": "epoch",
}
_PLACES = ("best", "last", "delta")
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "min": lambda *values: reduce(np.minimum, values),
    "max": lambda *values: reduce(np.maximum, values),
}
_SIGNS: dict[type[ast.cmpop], int] = {ast.Gt: 1, ast.GtE: 1, ast.Lt: -1, ast.LtE: -1}
_LONGEST = 300


@dataclass(frozen=True)
class Figure:
    """A figure of a run, by its column in log.csv, at the "best" or "last" epoch, an epoch's number, or best − last."""

    run: str
    column: str
    at: str | int

    def __str__(self) -> str:
        name = next((short for short, column in SHORT.items() if column == self.column), self.column)
        named = f"{name}_{self.at}" if isinstance(self.at, int) else f"{self.at}_{name}"
        return f"{self.run}.{named}"


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two figures along the epochs of their run."""

    first: Figure
    second: Figure


@dataclass(frozen=True)
class Halving:
    """The epoch from which on a figure stays below half of its highest."""

    of: Figure


Leaf = Figure | Correlation | Halving


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Call:
    """An operation on what others give; it takes numbers and arrays alike."""

    function: Callable[..., Any]
    arguments: tuple[Node, ...]


Node = Leaf | Number | Call


@dataclass(frozen=True)
class Comparison:
    """``margin``, the difference of two sides, is claimed to be above 0."""

    text: str
    left: Node
    right: Node
    sign: int

    @property
    def leaves(self) -> list[Leaf]:
        """What it is about, each once, in its order."""
        return list(dict.fromkeys([*_leaves(self.left), *_leaves(self.right)]))

    def margin(self, value: Callable[[Leaf], Any]) -> Any:
        """How far it is true: (left − right) for ``>``, (right − left) for ``<``; a number, or an array of them."""
        return self.sign * (value_of(self.left, value) - value_of(self.right, value))


def parse_claim(text: str, runs: Sequence[str]) -> list[Comparison]:
    """The comparisons that a claim is true with.

    Args:
        text: the claim.
        runs: the names of the study's runs.

    Raises:
        InputError: no claim; a name that there is not, and what there is instead.
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError("a long text")
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _fault(text, "a comparison such as madry.delta_cas > kd.delta_cas", "none that can be read") from None
    if not isinstance(tree, ast.Compare):
        raise _fault(text, "a comparison by < or > such as madry.delta_cas > kd.delta_cas", "none")
    reader = _Reader(text, runs)
    try:
        sides = [reader.read(side) for side in (tree.left, *tree.comparators)]
    except RecursionError:
        raise _fault(text, "a claim of few operations", "too many inside one another") from None
    compared = []
    for place, operator in enumerate(tree.ops):
        if (sign := _SIGNS.get(type(operator))) is None:
            raise _fault(text, "<, >, <= or >=, which a test can judge", f"{_symbol(operator)}")
        symbol = _symbol(operator)
        both = [ast.unparse(side) for side in (tree.left, *tree.comparators)[place : place + 2]]
        words = f"{both[0]} {symbol} {both[1]}"
        compared.append(Comparison(words, sides[place], sides[place + 1], sign))
    if not any(comparison.leaves for comparison in compared):
        raise _fault(text, "a figure of a run in it", "none")
    return [one for comparison in compared for one in _for_each_run(comparison, runs)]


def value_of(node: Node, value: Callable[[Leaf], Any]) -> Any:
    """What an expression is where ``value`` gives its leaves."""
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Call):
        with np.errstate(divide="ignore", invalid="ignore"):
            return node.function(*(value_of(argument, value) for argument in node.arguments))
    return value(node)


def is_linear(node: Node) -> bool:
    """Whether it is made of figures by + and −, and by numbers."""
    if not isinstance(node, Call):
        return isinstance(node, Figure | Number)
    if node.function in (np.multiply, np.divide):
        constant = [not list(_leaves(argument)) for argument in node.arguments]
        is_scaled = constant[1] or (constant[0] and node.function is np.multiply)
        return is_scaled and all(map(is_linear, node.arguments))
    return node.function in (np.add, np.subtract, np.negative) and all(map(is_linear, node.arguments))


class _Reader:
    """Turns Python's tree of a claim into ours; anything but figures, numbers and the operations is a fault."""

    def __init__(self, text: str, runs: Sequence[str]) -> None:
        self._text, self._runs = text, runs

    def read(self, node: ast.expr) -> Node:
        if isinstance(node, ast.Constant):
            return self._number(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return Call(np.negative, (self.read(node.operand),))
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return Call(_ARITHMETIC[type(node.op)], (self.read(node.left), self.read(node.right)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id, node.args)
        if isinstance(node, ast.Name):
            return self._figure("", node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return self._figure(node.value.id, node.attr)
        raise _fault(self._text, "numbers, run.figure, + - * / and functions", ast.unparse(node)[:80])

    def _number(self, node: ast.Constant) -> Number:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 1e300:
            raise _fault(self._text, "numbers, run.figure, + - * / and functions", ast.unparse(node)[:80])
        return Number(float(value))

    def _call(self, name: str, arguments: list[ast.expr]) -> Node:
        known = ["spearman", "halved", *_FUNCTIONS]
        if name not in known:
            raise _fault(self._text, f"a function among {', '.join(known)}", repr(name), did_you_mean(name, known))
        expected = {"spearman": 2, "halved": 1, "abs": 1}.get(name)
        if (expected is None and len(arguments) < 2) or (expected is not None and len(arguments) != expected):
            found = f"{len(arguments)} arguments"
            number = {1: "one argument", 2: "two arguments", None: "two arguments or more"}[expected]
            raise _fault(self._text, f"{number} of {name}", found)
        read = tuple(self.read(argument) for argument in arguments)
        if name in _FUNCTIONS:
            return Call(_FUNCTIONS[name], read)
        figures = [side for side in read if isinstance(side, Figure) and side.at == "last"]
        is_placed = any(ast.unparse(side).split(".")[-1].startswith("last_") for side in arguments)
        if len(figures) < len(read) or is_placed:
            example = {"spearman": "spearman(kd.ra, kd.cas)", "halved": "halved(kd.ra)"}[name]
            raise _fault(self._text, f"figures of a run without an epoch in {name}, as in {example}", "others")
        if name == "halved":
            return Halving(figures[0])
        first, second = figures
        if first.run != second.run:
            raise _fault(self._text, "two figures of one run in spearman", f"{first.run!r} and {second.run!r}")
        return Correlation(first, second)

    def _figure(self, run: str, name: str) -> Figure:
        if run and run not in self._runs:
            expected = f"a run of this study ({', '.join(self._runs)})"
            raise _fault(self._text, expected, repr(run), did_you_mean(run, self._runs))
        place, _, rest = name.partition("_")
        at: str | int = "last"
        if place in _PLACES:
            at, name = place, rest
        elif match := re.fullmatch(r"(.+)_(\d{1,9})", name):
            name, at = match[1], int(match[2])
        columns = _columns()
        if name not in columns:
            listed = ", ".join([*SHORT, "cas", "cas_excess"])
            raise _fault(
                self._text,
                f"a figure such as {listed}, or a column of log.csv, with best_, last_ or delta_ before it",
                repr(name),
                did_you_mean(name, columns),
            )
        return Figure(run, columns[name], at)


def _columns() -> dict[str, str]:
    """The columns of log.csv by the names that claims give them."""
    return {metric.name: metric.name for metric in all_metrics()} | {"epoch": "epoch"} | SHORT


def _for_each_run(comparison: Comparison, runs: Sequence[str]) -> Iterator[Comparison]:
    """A comparison of figures without a run, for each run."""
    if all(figure.run for leaf in comparison.leaves for figure in _figures(leaf)):
        yield comparison
        return
    for run in runs:
        left, right = (_with_run(side, run) for side in (comparison.left, comparison.right))
        text = comparison.text if len(runs) == 1 else f"{run}: {comparison.text}"
        yield replace(comparison, text=text, left=left, right=right)


def _with_run(node: Node, run: str) -> Node:
    if isinstance(node, Figure):
        return node if node.run else replace(node, run=run)
    if isinstance(node, Correlation):
        return node if node.first.run else Correlation(replace(node.first, run=run), replace(node.second, run=run))
    if isinstance(node, Halving):
        return node if node.of.run else Halving(replace(node.of, run=run))
    if isinstance(node, Call):
        return replace(node, arguments=tuple(_with_run(argument, run) for argument in node.arguments))
    return node


def _figures(leaf: Leaf) -> tuple[Figure, ...]:
    if isinstance(leaf, Correlation):
        return leaf.first, leaf.second
    return (leaf.of,) if isinstance(leaf, Halving) else (leaf,)


def runs_of(comparison: Comparison) -> list[str]:
    """The runs that a comparison is about, in its order."""
    return list(dict.fromkeys(figure.run for leaf in comparison.leaves for figure in _figures(leaf)))


def _leaves(node: Node) -> Iterator[Leaf]:
    if isinstance(node, Call):
        for argument in node.arguments:
            yield from _leaves(argument)
    elif not isinstance(node, Number):
        yield node


def _symbol(operator: ast.cmpop) -> str:
    compared = ast.Compare(ast.Name("a"), [operator], [ast.Name("b")])
    return ast.unparse(compared)[1:-1].strip()


def _fault(text: str, expected: str, found: str, near: str = "") -> InputError:
    return InputError(f"claim {text[:200]!r}: expected {expected}, found {found}{near}")
