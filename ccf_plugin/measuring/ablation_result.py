"""What an ablation gives: figures of pairs of classes without features, their tests, and what stands in the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
SHARED, SPECIFIC, MATCHED, RANDOM = "shared", "specific", "matched", "random"
# What is removed, and the margins, as people read them.
REMOVED = {
    SHARED: "shared by the pair",
    SPECIFIC: "of one class",
    MATCHED: "others of the same mass",
    RANDOM: "random others",
}
MARGIN_WORDS = {"rest": "the pair against the rest", "between": "one of the pair against the other"}
KINDS = tuple(REMOVED)
MARGINS = tuple(MARGIN_WORDS)

Pair = tuple[int, int]


@dataclass(frozen=True)
class Figures:
    """Of the images of two classes i and j: mean margins, in logits, and accuracies, fractions.

    Attributes:
        rest: the margin of the pair against the rest, max(z_i, z_j) - the largest other logit.
        between: the margin of the true class against the other of the two.
        rest_accuracy, between_accuracy: how often these are above 0.
        accuracy: how often both are.
    """

    rest: float
    between: float
    rest_accuracy: float
    between_accuracy: float
    accuracy: float

    def minus(self, other: Figures) -> Figures:
        """The differences, figure by figure."""
        return Figures(*(left - right for left, right in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Removal:
    """What the removal of some features changes.

    Attributes:
        features: the removed ones; empty for random ones, of which there are several draws.
        mass: Σ_k |A_i[k]| + |A_j[k]| over them (in logits; the mean of the draws).
        change: figures without them less the figures with them.
        p: of the Wilcoxon signed-rank tests, over the images, of whether the shared features change this margin as much
            (two-sided; Holm's correction over all tests of all pairs), by margin; empty for the shared ones.
    """

    features: tuple[int, ...]
    mass: float
    change: Figures
    p: dict[str, float]


@dataclass(frozen=True)
class PairAblation:
    """Two classes: C[i, j], the number of their images, figures of the intact model, and each removal by its kind."""

    pair: Pair
    correlation: float
    images: int
    intact: Figures
    removals: dict[str, Removal]


@dataclass(frozen=True)
class Dose:
    """The mean change of both margins over pairs when ``count`` features of each kind are removed, by kind."""

    count: int
    rest: dict[str, float]
    between: dict[str, float]


@dataclass(frozen=True)
class Ablation:
    """What removing features does on clean images, and to some pairs under attack.

    Attributes:
        count: m, how many features are removed, of ``features``.
        pairs: largest C[i, j] first.
        left_out: how many pairs were not measured, because there are more than 5,000; the others are spread evenly over
            the ranks of C.
        attacked: pairs under the attack on the model without these features; changes are against the intact model under
            the attack on it.
        threat: the attack, or None.
        versions: of the libraries that took part.
    """

    model: str
    data: dict[str, Any]
    classes: tuple[str, ...]
    head: str
    features: int
    count: int
    pairs: tuple[PairAblation, ...]
    doses: tuple[Dose, ...]
    left_out: int = 0
    attacked: tuple[PairAblation, ...] = ()
    threat: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def mean_change(self, kind: str) -> Figures:
        """The mean of the changes over the pairs, clean."""
        return Figures(*np.mean([list(vars(pair.removals[kind].change).values()) for pair in self.pairs], axis=0))

    @property
    def spearman(self) -> dict[str, float]:
        """Spearman's ρ over the pairs between C[i, j] and the margin that is lost with the shared features, by margin.

        NaN where nothing varies. Pairs of one class are not independent: no p is given.
        """
        from scipy.stats import spearmanr

        correlations = [pair.correlation for pair in self.pairs]
        lost = {name: [-getattr(pair.removals[SHARED].change, name) for pair in self.pairs] for name in MARGINS}
        varies = len(set(correlations)) > 1
        return {
            name: float(spearmanr(correlations, values).statistic) if varies and len(set(values)) > 1 else float("nan")
            for name, values in lost.items()
        }

    @property
    def over_pairs(self) -> dict[str, dict[str, float]]:
        """p of Wilcoxon signed-rank tests over the pairs: do the shared features change a margin as much as others?

        By kind of the others and margin; two-sided, with Holm's correction.
        """
        tests = {
            (kind, name): wilcoxon(
                [
                    getattr(pair.removals[SHARED].change, name) - getattr(pair.removals[kind].change, name)
                    for pair in self.pairs
                ]
            )
            for kind in KINDS[1:]
            for name in MARGINS
        }
        corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
        return {kind: {name: corrected[kind, name] for name in MARGINS} for kind in KINDS[1:]}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; NaN becomes null."""
        return {
            "model": self.model,
            "data": self.data,
            "head": self.head,
            "features": self.features,
            "count": self.count,
            "mean_change": {kind: asdict(self.mean_change(kind)) for kind in KINDS},
            "spearman": {name: None if np.isnan(value) else value for name, value in self.spearman.items()},
            "over_pairs": self.over_pairs,
            "doses": [asdict(dose) for dose in self.doses],
            "pairs": [self._described(pair) for pair in self.pairs],
            "left_out": self.left_out,
            "threat": self.threat,
            "attacked": [self._described(pair) for pair in self.attacked],
            "versions": self.versions,
            "format": FORMAT,
        }

    def _described(self, pair: PairAblation) -> dict[str, Any]:
        return {
            "pair": [self.classes[index] for index in pair.pair],
            "correlation": pair.correlation,
            "images": pair.images,
            "intact": asdict(pair.intact),
            "removals": {
                kind: {**asdict(removal), "features": list(removal.features)} for kind, removal in pair.removals.items()
            },
        }


def wilcoxon(differences: Sequence[float] | NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired differences; 1 where all are 0."""
    from scipy.stats import wilcoxon as signed_rank

    return float(signed_rank(differences).pvalue) if np.any(differences) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: p-values that may all be compared with one level, in their order."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]
