"""How the layers of a model make its logits: terms, each a chain of linear runs, with their factors.

A plan names runs and tensors, and holds none: `linear_map.read` reads any pass of the same structure by it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """One matrix of one run of a layer, found again in other passes by the run's number from the pass's end.

    Attributes:
        name: the layer's.
        run: -1 is its last run in a pass; None stands for all of them, averaged.
        matrix: the tensor's name among the layer's; "" is a BatchNorm's slope.
        transposed: whether it is (n, K).
        alike: a function's product has a matrix in each call; this is the last run with an equal one. None: a layer.
    """

    name: str
    run: int | None
    matrix: str
    transposed: bool = False
    alike: int | None = None

    @property
    def weight(self) -> tuple[object, ...]:
        """What tells its matrix from others: a layer's is that of all its runs."""
        return self.name, self.matrix, self.transposed, self.alike


@dataclass(frozen=True)
class Term:
    """A chain of links from the logits inwards, its positions, and the rows of its matrix that are the classes.

    Attributes:
        links: the head first, then what it reads.
        position: which of the positions (N, T, n) counts: "mean", "nearest" (for each sample the one that gives its
            logits), or weights, one for each position.
        rows: the rows of the matrix that are the classes, where these are not all.
    """

    links: tuple[Link, ...]
    position: str | tuple[float, ...] = "mean"
    rows: tuple[int, ...] | None = None

    @property
    def matrices(self) -> tuple[object, ...]:
        """What tells its weight from other terms' weights, whichever run it is of."""
        return tuple(link.weight for link in self.links), self.rows


@dataclass(frozen=True)
class Plan:
    """Which terms make which entry of the output.

    Attributes:
        path: of the entry; None where a head named by hand is measured for its own output.
        terms: in the order of their layers.
        factors: f_t as they were found: one for each term, or for each term one for each of the K classes.
        alike: for each term the first that reads the same features, though in another tensor: a copy or a cast.
        explicit: whether the constant row is the sum of the layers' own biases.
    """

    path: tuple[int | str, ...] | None
    terms: tuple[Term, ...]
    factors: tuple[float | tuple[float, ...], ...]
    alike: tuple[int, ...] = ()
    explicit: bool = True

    @property
    def per_class(self) -> bool:
        """Whether each class has its own factor."""
        return any(isinstance(factor, tuple) for factor in self.factors)

    @property
    def used(self) -> tuple[Term, ...]:
        """The terms that have a share; others read the same features and may get one."""
        return tuple(term for term, factor in zip(self.terms, self.factors, strict=True) if factor != 0)
