"""Where a model's head is in its forward passes, and what the latest pass showed there, checked against its logits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.outputs import Choice, describe_output, path_name
from ccf_plugin.errors import InputError
from ccf_plugin.probe.calls import LayerCall, PassRecord
from ccf_plugin.probe.detect import detect_head, detect_in_output, gradient_members
from ccf_plugin.probe.forward_pass import OWN_OUTPUT, ForwardPass
from ccf_plugin.probe.head import Head, LinearHead
from ccf_plugin.probe.layers import unwrapped
from ccf_plugin.probe.linear_map import Reading, read
from ccf_plugin.probe.plan import Plan
from ccf_plugin.probe.tensors import version
from ccf_plugin.probe.terms import at_mean, check_rows, runs_of
from ccf_plugin.probe.watch import PassWatcher

GRADIENT = "gradient"


class HeadTracer:
    """Watches ``model``; ``take`` gives the latest complete forward pass, once, and ``read`` what it shows."""

    def __init__(self, model: nn.Module, head: str | LinearHead | None = None, output: Choice | None = None) -> None:
        if isinstance(head, nn.Module):
            known = getattr(model, "named_modules", list)()
            name = next((name for name, module in known if module is head), "its.name")
            raise InputError(
                f"expected head to be a layer's name, found a module ({type(head).__name__}); use head={name!r}"
            )
        if not isinstance(output, (int, str, tuple, type(None))) or isinstance(output, bool):
            raise InputError(
                f"expected output to be an index or a key, found {output!r}; such as output=0 or output='out'"
            )
        model = unwrapped(model)
        self._gradient = head == GRADIENT
        self._has_explicit_weight = isinstance(head, LinearHead)
        self._by_hand = head.features if isinstance(head, LinearHead) else None if self._gradient else head
        self._output = output
        self._head: Head | None = None
        self._plans: dict[Any, Plan] = {}  # by the structure of the passes that they read
        self._offsets: dict[Any, Tensor] = {}  # what the constant row was beside the layers' own biases, likewise
        weight = None
        if isinstance(head, LinearHead):
            source = head.weight

            def weight() -> Tensor | str:
                return _given_weight(source, model)

        self.watcher = PassWatcher(
            model,
            name=self._by_hand,
            output=output,
            keeps_graph=self._gradient,
            weight=weight,
            completed=self._search,
        )

    @property
    def head(self) -> Head | None:
        """The head, or None before the first pass, or where it was not found."""
        if self._head is None and self.watcher.latest is not None:
            self._search(self.watcher.latest)
        return self._head

    def take(self) -> PassRecord | None:
        """The latest pass since the last `take` or `drop`, or None where none came.

        Raises:
            InputError: it is of another thread, and came after one of this thread.
        """
        record, self.watcher.latest = self.watcher.latest, None
        self.watcher.alike, self.watcher.ran_outside = {True: 0, False: 0}, set()
        this, waiting = threading.get_ident(), self.watcher.threads
        if record is not None and record.thread not in (0, this) and this in waiting:
            waiting.discard(this)
            raise InputError(
                "expected this thread's pass to be the last before update, found one of another thread after it; let "
                "one thread at a time run the model and update, or give each a copy of the model with a probe"
            )
        return record

    def peek(self) -> ForwardPass | None:
        """What the latest pass shows; it stays to be taken. Raises InputError where it cannot be measured."""
        return None if self.watcher.latest is None else self.read(self.watcher.latest)

    def drop(self) -> None:
        """Forget the latest pass."""
        self.watcher.drop()

    def search_again(self) -> None:
        """Look for the head anew in the next pass, among all layers."""
        self._head = None
        self._watch_all()

    def _watch_all(self) -> list[str]:
        """Watch every layer in the next pass, and forget what was known of passes; the names of layers built since."""
        self._plans.clear()
        self._offsets.clear()
        return self.watcher.widen()

    def detach(self) -> None:
        """Remove every hook and drop what was noted."""
        self.head  # noqa: B018  (found in the pending pass, to be told afterwards)
        self.watcher.detach()

    def read(self, record: PassRecord, shape: tuple[int, int] | None = None) -> ForwardPass:
        """Features, weight and logits of a pass, with the check of the one against the other.

        Args:
            record: the pass.
            shape: (K, n) of the head in the passes that were counted so far, where there are any.

        Raises:
            InputError: the head cannot be found in it, or it is of another shape than before.
        """
        if record.is_empty():
            raise InputError("expected a pass of 1 or more samples, found none; leave empty batches out")
        try:
            return self._read(record, shape)
        except InputError as error:
            raise self._refuse_and_search_again(error, record, shape is not None) from error
        except Exception as error:  # any failure is reported as a pass that cannot be read
            message = " ".join(str(error).split())
            raise InputError(
                f"expected a pass that the probe can read, found one where it fails ({type(error).__name__}: "
                f"{message}); name the head by hand with head='its.name' or head=LinearHead(features=…, weight=…)"
            ) from error

    def _refuse_and_search_again(self, error: InputError, record: PassRecord, counted: bool) -> InputError:
        """The refusal of a pass, in the words that fit; what is watched changes so that the next may show the head."""
        message = str(error)
        if failure := self.watcher.failure():
            message += f" ({failure})"
        if any(call.inputs is None for call in record.calls):
            self.watcher.narrow(record, (), {entry.logits.shape[1] for entry in record.entries}, None, products=True)
            return InputError(message)
        if self._head is not None and counted:
            gone = next((name for name in self._head.name.split(" + ") if not record.runs(name)), None)
            if gone is not None:
                message = (
                    f"expected the head {gone!r} to run in every pass, found that the last pass went around it; probe "
                    f"the part of the model that always runs, or attach before torch.compile's first call ({message})"
                )
        self.watcher.copies_early = True  # the model may change in place what its head has read, or its weights
        new = self.watcher.layers.have_grown()
        if new or self._head is not None:
            self._head = None
            built = ", ".join(map(repr, self._watch_all()))
            message += f". The layers {built} were built in this pass or since" if new else ""
            message += ". All layers are watched in the next pass: run another, then update"
        return InputError(message) if message != str(error) else InputError(*error.faults)

    def _read(self, record: PassRecord, shape: tuple[int, int] | None) -> ForwardPass:
        if record.fault:
            raise InputError(record.fault)
        if record.compiled and self.watcher.is_followed():
            raise InputError(
                "expected the probe's hook to be the last in a compiled pass, found a forward hook of the model that "
                "was registered after it, which may change the output; attach the probe after that hook"
            )
        record.calls = [call.to_plain() for call in record.calls]
        with torch.set_grad_enabled(self._gradient):
            if self._gradient:
                return self._read_members(record)
            plan = self.plan_of(record)
            logits = self._logits(plan, record)
            signature = record.signature()
            reading = read(plan, record, logits, self._offsets.get(signature))
            if len(logits) > 1:
                self._offsets[signature] = reading.offset
            if any(term.rows is not None and record.runs(term.links[0].name)[-1].gathered for term in plan.terms):
                raise InputError(
                    "expected logits of all classes in each process, found a tensor-parallel head that gives each some "
                    "of them; gather its output, as ColwiseParallel(output_layouts=Replicate()) does"
                )
            reason = ""
            # On a CPU nothing waits for a look at the check: the pass itself may show the head that is right.
            if logits.device.type == "cpu" and bool(reading.missed.numpy()):
                plan, reading, reason = self._read_anew(plan, record, reading, shape)
                logits = self._logits(plan, record)
            if self.watcher.layers.have_moved(term.links[0].name for term in plan.terms):
                self._watch_all()
        return ForwardPass(
            reading.features.detach(),
            self._predicting(plan, record, logits).detach(),
            reading.weight.detach(),
            record.training,
            reading.dtype,
            _place(plan, record),
            reading,
            reason=reason,
        )

    def plan_of(self, record: PassRecord) -> Plan:
        """The plan for passes of this structure; found in this pass where there is none yet."""
        signature = record.signature()
        plan = self._plans.get(signature)
        if plan is None:
            plan = self._detect(record)
            self._learn(plan, record, read(plan, record, self._logits(plan, record)))
            self._plans[record.signature()] = plan
        return plan

    def _read_anew(
        self, plan: Plan, record: PassRecord, missed: Reading, shape: tuple[int, int] | None
    ) -> tuple[Plan, Reading, str]:
        """Another plan that this pass shows, if it is of the shape that is counted; and otherwise why there is none."""
        try:
            new = self._detect(record)
            reading = read(new, record, self._logits(new, record))
        except InputError as error:
            return plan, missed, str(error)
        now = (reading.weight.shape[0], reading.features.shape[1])
        if shape is not None and now != shape:
            names, _ = self._named(new, record)
            return plan, missed, f"they are those of {names!r} now, of shape (K, n) = {now}"
        names, kinds = self._named(new, record)
        self._head = Head(names, kinds, *now)
        self._plans[record.signature()] = new
        return new, reading, ""

    def _detect(self, record: PassRecord) -> Plan:
        if self._by_hand is None:
            return detect_in_output(record, self._output)
        return self._detect_by_hand(record)

    def _detect_by_hand(self, record: PassRecord) -> Plan:
        name = self._by_hand
        runs = record.runs(name or "")
        if self._has_explicit_weight and runs and runs[-1].inputs is not None:
            width = runs[-1].positions().shape[2]
            matrix = runs[-1].tensors["weight"]
            if matrix.shape[1] != width:
                raise InputError(
                    f"expected the weight of LinearHead to be of shape (K, {width}), as {name!r} gives {width} "
                    f"features, found {tuple(matrix.shape)}"
                )
        if not runs:
            raise InputError(f"expected layer {name!r} to run in the pass, found that it did not")
        refusal: InputError | None = None
        for entry, origin in zip(record.entries, record.origins, strict=True):
            try:
                return detect_head(record, entry.logits, entry.path, origin)
            except InputError as error:
                refusal = refusal or error
        if self._has_explicit_weight:
            raise refusal or InputError(
                f"expected a classifier's logits of shape (N, K), found an output of {record.described}"
            )
        call = runs[-1]
        if not isinstance(call.output, Tensor) or call.output.ndim < 2:
            raise InputError(f"expected layer {name!r} to give (N, K) logits, found {describe_output(call.output)}")
        made = at_mean(call.output_positions())
        narrower = [entry.logits.shape[1] for entry in record.entries if entry.logits.shape[1] < made.shape[1]]
        if narrower and all(len(entry.logits) == len(made) for entry in record.entries):
            raise InputError(
                f"expected the model's {narrower[0]} logits to be rows of {name!r}, which has {made.shape[1]} classes, "
                f"found that they are not; which class is which cannot be told: probe the part of the model whose "
                f"output {name!r} makes"
            )
        return replace(detect_head(record, made, None, call.serial), path=None)

    def _logits(self, plan: Plan, record: PassRecord) -> Tensor:
        """The model's (N, K); a head named by hand may have other classes than the model's output: then its own."""
        if plan.path is None:
            return at_mean(record.runs(self._by_hand or "")[-1].output_positions())
        for entry in record.entries:
            if entry.path == plan.path:
                return entry.logits
        raise InputError(f"expected logits at output{path_name(plan.path)} in every pass, found none in the last")

    def _predicting(self, plan: Plan, record: PassRecord, logits: Tensor) -> Tensor:
        """What the accuracy is of: the whole model's output, where it has the head's classes."""
        if plan.path is None:
            for entry in record.entries:
                if entry.logits.shape == logits.shape:
                    return entry.logits
        return logits

    def _search(self, record: PassRecord) -> None:
        """Find the head in a pass if possible; ``read`` raises the refusal."""
        with contextlib.suppress(InputError):
            self.read(record)

    def _learn(self, plan: Plan, record: PassRecord, reading: Reading) -> None:
        """The head is known: watch only layers that may be it from now on."""
        names, kinds = self._named(plan, record)
        classes, features = len(reading.weight), reading.features.shape[1]
        self._head = Head(names, kinds, classes, features)
        linked = {link.name for term in plan.terms for link in term.links}
        runs = [record.runs(term.links[0].name)[-1] for term in plan.terms]
        heights = {len(matrix) for run in runs for _, matrix in run.matrices()}
        products = any(run.is_function for run in runs)
        self.watcher.narrow(record, linked, {classes, *heights}, features, products)
        if products and self.watcher.layers.have_grown():  # a layer that was built in this pass, seen as its function
            self.watcher.widen()

    def _read_members(self, record: PassRecord) -> ForwardPass:
        """A pass of head='gradient': no map to check, the members are those that the graph shows."""
        logits, groups, names, kinds = self._members(record)
        for call in (call for group in groups for call in group):
            check_rows(call.positions(), logits)
            if not (call.inputs is not None and call.inputs.requires_grad):
                raise InputError(
                    f"expected what {call.name!r} reads to have a gradient for head='gradient', found none; run the "
                    "pass outside torch.no_grad, on inputs that require gradients"
                )
            if version(call.inputs) != call.version or call.is_overwritten():
                raise InputError(
                    f"expected the features and weights of {call.name!r} as the pass left them, found that they were "
                    "changed in place since; call update before that"
                )
        features = [torch.stack([at_mean(call.positions().detach()) for call in group]).sum(0) for group in groups]
        joined = torch.cat(features, 1)
        if self._head is None:
            self._head = Head(names, kinds, logits.shape[1], joined.shape[1])
            calls = [call for group in groups for call in group]
            products = any(call.is_function for call in calls)
            self.watcher.narrow(record, names.split(" + "), {logits.shape[1]}, joined.shape[1], products)
        return ForwardPass(
            joined, logits.detach(), None, record.training, features[0].dtype, names, members=groups, graph=logits
        )

    def _members(self, record: PassRecord) -> tuple[Tensor, tuple[tuple[LayerCall, ...], ...], str, str]:
        """The logits, groups of runs whose shares are added, and the heads' names and kinds."""
        with contextlib.suppress(InputError):
            plan = detect_in_output(record, self._output)
            # runs whose shares are added, with what they have in common: the weights, or the features
            groups: list[tuple[set[Any], list[LayerCall]]] = []
            for term in plan.used:
                for call in runs_of(term.links[-1], record):
                    marks = {("weight", term.matrices), ("features", call.source)}
                    group = next((group for group in groups if group[0] & marks), None)
                    if group is None:
                        groups.append((marks, [call]))
                    elif all(call.inputs is not other.inputs for other in group[1]):
                        # one tensor's gradient holds the shares of all that read it
                        group[0].update(marks)
                        group[1].append(call)
            names, kinds = self._named(plan, record)
            return self._logits(plan, record), tuple(tuple(group) for _, group in groups), names, kinds
        if not record.entries:
            detect_in_output(record, self._output)  # says what is wrong with the output
        logits = record.entries[0].logits
        members = gradient_members(record, logits)
        distinct = {id(call.inputs): call for call in members}
        names, kinds = " + ".join(call.name for call in members), " + ".join(call.kind for call in members)
        return logits, tuple((call,) for call in distinct.values()), names, kinds

    def _named(self, plan: Plan, record: PassRecord) -> tuple[str, str]:
        """The names and kinds of a plan's layers."""
        names = [term.links[0].name for term in plan.used or plan.terms]
        return " + ".join(names), " + ".join(record.runs(name)[-1].kind for name in names)


def _given_weight(source: Tensor | Callable[[nn.Module], Tensor], model: nn.Module) -> Tensor | str:
    """A copy of the weight that a user gave, or why there is none."""
    if isinstance(source, Tensor):
        value = source
    elif torch.compiler.is_compiling():
        value = source(model)
    else:
        try:
            with torch.no_grad():
                value = source(model)
        except Exception as error:
            return f"a function that fails ({type(error).__name__}: {' '.join(str(error).split())})"
    if not isinstance(value, Tensor):
        return f"{type(value).__name__}"
    return value.detach().clone() if value.ndim == 2 else f"one of shape {tuple(value.shape)}"


def _place(plan: Plan, record: PassRecord) -> str:
    """Where the head is, in words: its layers, which of their runs, and which entry of the output."""
    parts = []
    for term in plan.used or plan.terms:
        link = term.links[0]
        runs = len(record.runs(link.name))
        where = repr(link.name) if link.name else "the model itself"
        if len(term.links) > 1:
            where += " after " + " and ".join(repr(further.name) for further in term.links[1:])
        if runs > 1:
            where += f" (mean of {runs} runs)" if link.run is None else f" (run {runs + link.run + 1} of {runs})"
        parts.append(where)
    if plan.path is None:
        parts[-1] += OWN_OUTPUT
    return " + ".join(parts) + (f" at output{path_name(plan.path)}" if plan.path else "")
