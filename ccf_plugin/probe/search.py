"""The search for the plan that reads one entry of a pass, from the plainest way to the widest.

One layer (the one whose output the logits are, else the last to run), several runs of one layer averaged, several
layers combined by least squares, some rows of larger layers and one factor for each class, a weighting of positions:
the first plan that `read` finds to be the logits is the head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ccf_plugin.probe.calls import LayerCall
from ccf_plugin.probe.linear_map import EQUATIONS, are_determined
from ccf_plugin.probe.plan import Plan, Term
from ccf_plugin.probe.rounding import relative, units
from ccf_plugin.probe.terms import at_mean, matrix_of, products_at_positions
from ccf_plugin.probe.trials import Trials

# How many choices of rows are tried for each class, where they are looked for in layers of several sizes at once or at
# each of several positions. What lies beyond is refused.
_CHOICES = 2_000
_NUMBERS_AT_ONCE = 2**24
_CHANCE = 1e-6  # that rows or factors of a class fit though they are not the head's
_NEAR = 32  # units of roundoff: the share of a logit by which they may be off
_SMALL = 1e-3  # of the typical sample's largest logit: of smaller ones more is not known
_UNEXPLAINED = 1e-3  # of the variance of a class's logits, as far as half precision's rounding may put it


class Search:
    """The ways to read one entry of a pass, tried in turn."""

    def __init__(self, trials: Trials) -> None:
        self._trials, self._record, self._wanted = trials, trials.record, trials.wanted
        self._samples, self._classes = trials.wanted.shape
        # a huge sample's rounding exceeds what the others are: each counts relative to its largest logit
        sizes = trials.wanted.abs().amax(1)
        typical = sizes[sizes > 0].median() if bool(sizes.any()) else sizes.new_ones(())
        self._sizes = sizes.clamp(min=float(typical) * _SMALL)

    def find(self) -> Plan | None:
        """The first plan that holds; functions are looked at where the layers alone give none."""
        ordered = self._trials.ordered()
        layers = [call for call in ordered if not call.is_function]
        return self._find(layers) or (self._find(ordered) if len(ordered) > len(layers) else None)

    def _find(self, calls: list[LayerCall]) -> Plan | None:
        terms = [(call, term) for call in calls for term in self._trials.terms_of(call, self._classes)]
        for call, term in terms:
            if plan := self._alone(call, term):
                return self._with_others_on_the_same_features(plan)
        averaged = list(self._averaged(terms))
        for term in averaged:
            if plan := self._trials.holds((term,), (1.0,)):
                return plan
        first: dict[int, Term] = {}
        for call, term in terms:
            first.setdefault(call.serial, term)
        separately = [first[serial] for serial in sorted(first)]
        together = [
            *averaged,
            *(term for term in separately if all(term.links[0].name != other.links[0].name for other in averaged)),
        ]
        for several in (separately, together):
            if plan := self._combined(several):
                return plan
        return self._by_class(calls) or next(filter(None, (self._weighted_positions(term) for _, term in terms)), None)

    def _alone(self, call: LayerCall, term: Term) -> Plan | None:
        places: tuple[str, ...] = ("mean",)
        if call.positions().shape[1] > 1:
            self._trials.several_positions = True
            places = ("mean", "nearest")
        for place in places:
            if plan := self._trials.holds((replace(term, position=place),), (1.0,)):
                return plan
        return None

    def _with_others_on_the_same_features(self, plan: Plan) -> Plan:
        """With the terms that read the same tensor and have no share yet: a low-rank branch that starts at zero."""
        (term,) = plan.terms
        if term.position != "mean":
            return plan
        innermost, outermost = self._trials.innermost(term), self._trials.outermost(term).serial
        others: dict[int, Term] = {}
        for call in self._trials.ordered():
            for other in self._trials.terms_of(call, self._classes):
                if call.serial != outermost and self._trials.read_the_same(innermost, self._trials.innermost(other)):
                    others.setdefault(call.serial, other)
        if not others:
            return plan
        terms = (term, *others.values())
        return replace(
            plan, terms=terms, factors=(*plan.factors, *(0.0 for _ in others)), alike=self._trials.copies_among(terms)
        )

    def _averaged(self, terms: Sequence[tuple[LayerCall, Term]]) -> Iterator[Term]:
        """All runs of a layer that runs more than once, as one term."""
        for name in dict.fromkeys(call.name for call, _ in terms):
            runs = self._record.runs(name)
            if len(runs) < 2:
                continue
            for term in self._trials.terms_of(runs[-1], self._classes):
                chain = [self._record.runs(link.name) for link in term.links]
                shapes = {None if call.inputs is None else call.inputs.shape for call in chain[-1]}
                if all(len(calls) == len(runs) for calls in chain) and len(shapes) == 1 and None not in shapes:
                    yield Term(tuple(replace(link, run=None) for link in term.links))

    def _combined(self, terms: Sequence[Term]) -> Plan | None:
        """The factors with Σ factor · produced = wanted, up to a constant row or with the layers' biases."""
        if not terms or self._samples == 1:  # one sample's own scale or gate would pass for a factor
            return None
        with_biases = torch.stack([self._trials.made_by_head(term) for term in terms], 2)
        columns = torch.stack([self._trials.made(term) for term in terms], 2)
        for left, right, samples in (
            (with_biases / self._sizes.view(-1, 1, 1), self._wanted / self._sizes.unsqueeze(1), self._samples),
            (self._relative(columns), self._relative(self._wanted), self._samples - 1),
        ):
            if samples * self._classes < EQUATIONS * len(terms):
                continue
            if plan := self._fewest(terms, left.flatten(0, 1).unsqueeze(0), right.reshape(1, -1)):
                return plan
        return None

    def _relative(self, values: Tensor) -> Tensor:
        """Values (N, …) without the row that all samples share, relative to each sample's size."""
        return relative(values, self._sizes.view(-1, *(1 for _ in values.shape[1:])))

    def _fewest(self, terms: Sequence[Term], left: Tensor, right: Tensor) -> Plan | None:
        """The combination of (B, rows, m) columns that gives (B, rows) with the fewest terms, the last to run kept.

        B is 1 where a term has one factor, and K where it has one for each class.
        """
        chosen = list(range(len(terms)))
        factors, error = _least_squares(left, right)
        scale = float(right.abs().amax())
        for nearly, negligible in ((1e-4, 1e-7), (3e-2, 1e-3)):  # as far as float32 or half precision may put it
            if error > nearly * scale:
                continue
            for index in range(len(terms)):
                without = [other for other in chosen if other != index]
                if not without:
                    break
                fewer, further = _least_squares(left[..., without], right)
                if further <= max(4 * error, negligible * scale):
                    chosen, factors = without, fewer
            shares = [tuple(share) if len(right) > 1 else share[0] for share in factors.T.tolist()]
            fewest = tuple(terms[index] for index in chosen)
            if not self._determine(fewest, len(chosen), by_class=len(right) > 1):
                return None
            return self._trials.holds(fewest, tuple(shares))
        return None

    def _determine(
        self, terms: Sequence[Term], factors: int, *, by_class: bool = False, with_biases: bool = False
    ) -> bool:
        """Whether what the terms read determines their factors, see `are_determined`, and their rows.

        Args:
            terms, factors, by_class: which they are, how many, and whether each class has its own.
            with_biases: whether the layers' own biases are all that stands beside g Wᵀ, so that one sample shows it.
        """
        read = [at_mean(self._trials.innermost(term).positions()) for term in terms]
        if with_biases:  # as beside a sample of zeros
            read = [F.pad(rows, (0, 0, 1, 0)) for rows in read]
        if by_class or any(term.rows is not None for term in terms):
            factors, by_class = factors + self._spare_ways(terms) - 1, True
        determine = bool(are_determined(read, factors, self._classes, by_class=by_class))
        self._trials.too_alike = self._trials.too_alike or not determine
        return determine

    def _spare_ways(self, terms: Sequence[Term]) -> int:
        """In how many more ways than there are factors features must vary, so that no class is fitted by chance."""
        runs = [self._trials.outermost(term) for term in terms]
        heights = {len(matrix_of(t.links[0], run)) for t, run in zip(terms, runs, strict=True) if t.rows is not None}
        near = _NEAR * max(unit for run in runs for unit in units(run))
        return math.ceil((math.log(math.prod(heights)) - math.log(_CHANCE) / self._classes) / -math.log(near))

    def _by_class(self, calls: list[LayerCall]) -> Plan | None:
        """Rows of larger layers, a scale for each class, one of several positions, in any combination."""
        by_height: dict[int, list[Term]] = {}
        for call in reversed(calls):
            sizes = {size for _, matrix in call.matrices() for size in matrix.shape}
            for height in {size for size in sizes if size >= self._classes or self._has_fewer(call, size)}:
                if (term := next(self._trials.terms_of(call, height), None)) is not None:
                    by_height.setdefault(height, []).append(term)
        for terms in by_height.values():
            for term in reversed(terms):
                if plan := self._layer_outputs(term):
                    return plan
        for number in range(1, len(by_height) + 1):
            if number > 1 and math.prod(sorted(by_height)[:number]) > _CHOICES:
                break
            for heights in itertools.combinations(sorted(by_height), number):
                if number > 1 and math.prod(heights) > _CHOICES:
                    continue
                for terms in self._placed([term for height in heights for term in by_height[height]], heights):
                    if plan := self._explained(terms, heights):
                        return plan
        return None

    def _has_fewer(self, call: LayerCall, outputs: int) -> bool:
        """Whether a run made one output, which all classes may share, or one for each class but that of reference."""
        if outputs not in (1, self._classes - 1) or not isinstance(call.output, Tensor) or call.output.ndim < 2:
            return False
        return call.output_positions().shape[-1] == outputs

    def _layer_outputs(self, term: Term) -> Plan | None:
        """Some of a layer's own outputs, or all in another order; few samples are enough where no others fit."""
        made, wanted = self._trials.made_by_head(term).T, self._wanted.T
        distances = torch.cdist(wanted, made, p=torch.inf)  # (K, M)
        nearest = distances.argmin(1)
        plan = self._trials.holds((replace(term, rows=tuple(nearest.tolist())),), (1.0,))
        if plan is None or not plan.explicit or not self._determine(plan.terms, 0, with_biases=True):
            return None
        # those of equal outputs have equal rows
        others = distances.masked_fill(torch.cdist(made[nearest], made, p=torch.inf) == 0, torch.inf)
        distance, second = others.min(1)  # (K,)
        fit = distance.isfinite() & self._trials.gives(replace(term, rows=tuple(second.tolist())))
        self._trials.too_alike = self._trials.too_alike or bool(fit.any())
        return None if bool(fit.any()) else plan

    def _placed(self, terms: list[Term], heights: Sequence[int]) -> Iterator[list[Term]]:
        """The terms at the mean of their positions, and at each single position that they share."""
        yield terms
        rows = {term: self._trials.innermost(term).positions() for term in terms}
        for places in sorted({positions.shape[1] for positions in rows.values()} - {1}):
            if heights != (self._classes,) and places * math.prod(heights) > _CHOICES:
                continue
            some = [term for term in terms if rows[term].shape[1] in (1, places)]
            for place in range(places):
                only = tuple(float(place == other) for other in range(places))
                yield [term if rows[term].shape[1] == 1 else replace(term, position=only) for term in some]

    def _explained(self, terms: list[Term], heights: Sequence[int]) -> Plan | None:
        """The terms, with rows and factors that are found for each class: those that explain its logits alone."""
        if self._samples - 1 < len(terms) + EQUATIONS:
            return None
        wanted = self._relative(self._wanted)
        made = [self._relative(outputs) for outputs in map(self._trials.made, terms)]
        height_index = [heights.index(outputs.shape[1]) for outputs in made]
        all_classes = torch.arange(self._classes, device="cpu")
        each = [torch.arange(height, device="cpu") for height in heights]
        any_rows = torch.cartesian_prod(*each).view(-1, len(heights))
        if set(heights) == {self._classes} and (
            plan := self._with_rows(terms, [all_classes] * len(terms), made, wanted)
        ):
            return plan
        choices = any_rows[:, height_index]
        first = wanted.square().sum(0).argmax()  # of one class it is soon known that there are none
        if float(_best_rows(made, choices, wanted[:, first : first + 1])[1].detach()) > _UNEXPLAINED:
            return None
        best = any_rows[_best_rows(made, choices, wanted)[0]]
        return self._with_rows(terms, [best[:, index] for index in height_index], made, wanted)

    def _with_rows(self, terms: list[Term], rows: list[Tensor], made: list[Tensor], wanted: Tensor) -> Plan | None:
        """The terms with these rows, and one factor each, or one for each class."""
        chosen, columns = [], []
        for term, at, outputs in zip(terms, rows, made, strict=True):
            is_whole = outputs.shape[1] == len(at) and torch.equal(at, torch.arange(self._classes, device="cpu"))
            chosen.append(term if is_whole else replace(term, rows=tuple(at.tolist())))
            columns.append(outputs[:, at.to(outputs.device)])
        stacked = torch.stack(columns, 2)  # (N, K, m)
        one_factor = self._fewest(chosen, stacked.flatten(0, 1).unsqueeze(0), wanted.reshape(1, -1))
        return one_factor or self._fewest(chosen, stacked.transpose(0, 1), wanted.T)

    def _weighted_positions(self, term: Term) -> Plan | None:
        made = products_at_positions(term, self._record, self._wanted.dtype)
        places = made.shape[1]
        if places < 2 or (self._samples - 1) * self._classes < EQUATIONS * places:
            return None
        made, wanted = self._relative(made), self._relative(self._wanted)
        rows = made.transpose(1, 2).reshape(-1, places)
        weights, _ = _least_squares(rows.unsqueeze(0), wanted.reshape(1, -1))
        if not self._determine([term], places):
            return None
        return self._trials.holds((replace(term, position=tuple(weights[0].tolist())),), (1.0,))


def _least_squares(left: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """The factors of the columns, (B, m), and the largest difference that they leave; (B, rows, m) and (B, rows)."""
    driver = None if left.is_cuda else "gelsd"
    factors = torch.linalg.lstsq(left, right.unsqueeze(2), driver=driver).solution
    return factors.squeeze(2), float(((left @ factors).squeeze(2) - right).detach().abs().amax())


def _best_rows(made: Sequence[Tensor], rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """For each column of ``wanted``, (N, K), the choice of rows that explains it best, and the share that is left.

    Args:
        made: of each term, (N, M), centred.
        rows: (choices, m): one of each term's M columns.
        wanted: centred.
    """
    least = wanted.new_full(wanted.shape[1:], torch.inf)
    best = torch.zeros(wanted.shape[1], dtype=torch.int64, device="cpu")
    step = max(1, _NUMBERS_AT_ONCE // (len(wanted) * len(made) + wanted.shape[1]))
    for start in range(0, len(rows), step):
        some = rows[start : start + step].T.to(wanted.device)
        columns = torch.stack([outputs[:, at] for outputs, at in zip(made, some, strict=True)], 2)
        directions = torch.linalg.qr(F.normalize(columns, dim=0).transpose(0, 1))[0]  # (choices, N, m)
        lengths = wanted.square().sum(0).clamp(min=torch.finfo(wanted.dtype).tiny)
        unexplained, index = (1 - (directions.mT @ wanted).square().sum(1) / lengths).min(0)
        best = torch.where((unexplained < least).cpu(), index.cpu() + start, best)
        least = torch.minimum(unexplained, least)
    return best, least
