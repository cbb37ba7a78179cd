"""What may have made one entry of a pass: the terms that the runs offer, and whether a plan of some of them holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.calls import LayerCall, PassRecord
from ccf_plugin.probe.linear_map import EQUATIONS, are_determined, read
from ccf_plugin.probe.plan import Link, Plan, Term
from ccf_plugin.probe.terms import at_mean, bias_of, link_holds, runs_of, term_product


def links_of(call: LayerCall, rows: int, samples: int) -> Iterator[Link]:
    """The matrices of a run that map its input to ``rows`` outputs."""
    if call.inputs is None or call.inputs.ndim < 2 or call.inputs.shape[0] != samples:
        return
    width = call.inputs.shape[1 if call.channel_first else -1]
    for name, tensor in call.matrices():
        for transposed in (False, True):
            if (tensor.T if transposed else tensor).shape == (rows, width):
                yield Link(call.name, -1, name, transposed)


class Trials:
    """The terms of a pass, and trials of whether they give the logits of one entry: ``wanted``, (N, K)."""

    def __init__(
        self, record: PassRecord, wanted: Tensor, path: tuple[int | str, ...] | None, maker: int | None
    ) -> None:
        self.record, self.wanted, self.path, self._maker = record, wanted, path, maker
        self._runs: dict[int, int] = {}
        latest_run: dict[str, int] = {}
        for call in reversed(record.calls):
            latest_run[call.name] = latest_run.get(call.name, 0) - 1
            self._runs[call.serial] = latest_run[call.name]
        self.is_constant = len(self.wanted) > 1 and not bool((wanted - wanted.mean(0)).any())
        # what a refusal tells: layers with K outputs and how far each is off, whether any has several positions
        self.errors: dict[str, float] = {}
        self.several_positions = False
        self.too_alike = False  # features vary in so few ways that factors fit by chance
        self.dropped: list[str] = []

    def ordered(self) -> list[LayerCall]:
        """The run that made the logits first, then the last to run first; functions after layers."""
        calls = sorted(self.record.calls, key=lambda call: (call.serial != self._maker, call.is_function, -call.serial))
        self.dropped = [call.name for call in calls if call.inputs is None]
        return [call for call in calls if call.inputs is not None]

    def terms_of(self, call: LayerCall, rows: int) -> Iterator[Term]:
        """The chains of linear runs that begin with this one, the longest first."""
        for link in links_of(call, rows, len(self.wanted)):
            chain, last = [replace(link, run=self._runs[call.serial], alike=self._alike(call))], call
            while (before := self._read_by(last)) is not None and (further := self._linear(before)) is not None:
                chain.append(further)
                last = before
            for length in range(len(chain), 0, -1):
                yield Term(tuple(chain[:length]))

    def holds(self, terms: tuple[Term, ...], factors: tuple[float | tuple[float, ...], ...]) -> Plan | None:
        """The plan with these terms, its factors as they are fitted, where it gives the logits."""
        plan = Plan(self.path, terms, factors, alike=self.copies_among(terms))
        try:
            reading = read(plan, self.record, self.wanted)
        except InputError:
            return None
        if len(terms) == 1 and terms[0].rows is None:  # any layer has rows to try
            name, error = terms[0].links[0].name, float(reading.error.detach())
            self.errors[name] = min(error, self.errors.get(name, error))
        if bool(reading.missed) or any(self.innermost(term).is_changed() for term in terms):
            return None  # what was changed in place by a constant would pass for what was read
        if len(terms) == 1 and bool(reading.refitted) and not self._determine_a_factor(reading.features):
            self.too_alike = True
            return None
        fitted = reading.factors.T.tolist() if plan.per_class else reading.factors.tolist()
        as_tuples = tuple(tuple(factor) if isinstance(factor, list) else factor for factor in fitted)
        plan = replace(plan, factors=as_tuples, explicit=reading.is_explicit())
        if not reading.is_informative():
            made_it = len(terms) == 1 and self._is_output_of(terms[0], bool(self.made(terms[0]).any()))
            is_known = made_it or (plan.explicit and self._tells_classes_apart(plan, float(reading.allowed.amax())))
            return plan if is_known else None
        return plan

    def _determine_a_factor(self, features: Tensor) -> bool:
        """Whether there are as many equations as one factor needs, however often the same images are repeated."""
        return bool(are_determined([features], EQUATIONS // 2, self.wanted.shape[1], by_class=False))

    def gives(self, term: Term) -> Tensor:
        """Which classes' logits a term's own outputs are, as far as rounding tells, (K,) bool."""
        reading = read(Plan(self.path, (term,), (1.0,)), self.record, self.wanted)
        return (reading.beside.abs() <= reading.allowed).all(0)

    def made(self, term: Term) -> Tensor:
        """g Wᵀ of a term, (N, K)."""
        return term_product(term, self.record, self.wanted.dtype)

    def made_by_head(self, term: Term) -> Tensor:
        """What a term's head alone made of what it read, with its bias, (N, K)."""
        made = self.made(replace(term, links=term.links[:1]))
        bias = bias_of(self.outermost(term), made.shape[1])
        return made if bias is None else made + bias.detach().to(made.dtype)

    def innermost(self, term: Term) -> LayerCall:
        """The run whose input a term reads."""
        return runs_of(term.links[-1], self.record)[-1]

    def outermost(self, term: Term) -> LayerCall:
        """The run whose output a term is."""
        return runs_of(term.links[0], self.record)[-1]

    def copies_among(self, terms: tuple[Term, ...]) -> tuple[int, ...]:
        """For each term the first that reads the same features in the same place; () for one term alone."""
        if len(terms) == 1:
            return ()
        read = [None if term.links[-1].run is None else self.innermost(term) for term in terms]
        return tuple(
            next(
                (
                    first
                    for first in range(index)
                    if call is not None
                    and (other := read[first]) is not None
                    and terms[first].position == terms[index].position
                    and self.read_the_same(call, other)
                ),
                index,
            )
            for index, call in enumerate(read)
        )

    def read_the_same(self, first: LayerCall, second: LayerCall) -> bool:
        """Whether two runs read one tensor, or copies or casts of one with the same values."""
        if first.source == second.source:
            return True
        if not first.root == second.root != 0 or first.inputs is None or second.inputs is None:
            return False
        rows = [call.positions().to(self.wanted.dtype) for call in (first, second)]
        return rows[0].shape == rows[1].shape and torch.equal(rows[0], rows[1])

    def _read_by(self, call: LayerCall) -> LayerCall | None:
        """The run whose output this one read, in the same shape."""
        before = None if call.reads is None else self.record.by_serial(call.reads)
        if before is None or not isinstance(before.output, Tensor) or before.output.ndim < 2:
            return None
        return before if before.output_positions().shape == call.positions().shape else None

    def _linear(self, call: LayerCall) -> Link | None:
        """The link whose matrix times the run's input is its output."""
        run = self._runs[call.serial]
        names = [Link(call.name, run, "")] if call.slope is not None else []
        for name, _ in call.matrices():
            names += [Link(call.name, run, name, at, self._alike(call)) for at in (False, True)]
        return next((link for link in names if link_holds(link, call)), None)

    def _alike(self, call: LayerCall) -> int | None:
        """The last run of a function whose matrix equals this one's."""
        if not call.is_function:
            return None
        matrix = call.tensors["weight"]
        runs = self.record.runs(call.name)
        equal = (other for other in reversed(runs) if torch.equal(other.tensors["weight"], matrix))
        return self._runs[next(equal, call).serial]

    def _is_output_of(self, term: Term, matters: bool) -> bool:
        """Whether the logits are what a term's run made; where that ``matters`` not what was computed from it only.

        Values that are the same for all samples show neither another order of the classes nor factors.
        """
        call = self.record.by_serial(self._maker)
        link = term.links[0]
        if call is None or term.rows is not None or (call.name, self._runs[call.serial]) != (link.name, link.run):
            return False
        return not matters or torch.equal(at_mean(call.output_positions()).to(self.wanted), self.wanted)

    def _tells_classes_apart(self, plan: Plan, allowed: float) -> bool:
        """Whether the heads' own g Wᵀ is far from zero, and it and the logits from what rounding explains."""
        shares = [
            self.made(replace(term, links=term.links[:1])) * factor
            for term, factor in zip(plan.terms, plan.factors, strict=True)
            if not isinstance(factor, tuple)
        ]
        if not shares:
            return False
        made, wanted = float(torch.stack(shares).sum(0).abs().amax()), float(self.wanted.abs().amax())
        return min(made, wanted) > 4 * allowed and made > 1e-2 * wanted
