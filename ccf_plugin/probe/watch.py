"""The hooks: they watch a model's forward passes and note what the layers that may be its head read and made.

What runs inside the host's pass only notes tensors, so that torch.compile can trace it and nothing in it can fail.
While the head is unknown every layer with a matrix is noted; from then on only the layers that may be it are, and their
tensors are copied as they run, since the host may change them in place afterwards.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ccf_plugin.engine.outputs import Choice, Entry, describe_output, output_entries
from ccf_plugin.probe.calls import PassRecord, is_channel_first
from ccf_plugin.probe.functions import COPY, ProductMode, not_recorded, split_operands
from ccf_plugin.probe.hook import Hook
from ccf_plugin.probe.layers import NORMS, batchnorm_slope, is_sharded, kind_of, may_cover, tensors_of
from ccf_plugin.probe.notes import Notes, copied_calls, relevant
from ccf_plugin.probe.tensors import is_batched, memory, snapshot
from ccf_plugin.probe.watched_layers import WatchedLayers


class PassWatcher:
    """Watches ``model``; ``latest`` is the record of its latest complete forward pass.

    Args:
        model: the root whose passes count.
        name: watch this module alone, named by hand; None: every layer that may be a head.
        output: the entry of the output that the user chose.
        keeps_graph: note tensors with their graph, uncopied.
        weight: where the named module's output is g: gives W of the pass, or says why it cannot.
        completed: called with the record when a pass has ended, while the head is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str | None,
        output: Choice | None,
        keeps_graph: bool,
        weight: Callable[[], Tensor | str] | None,
        completed: Callable[[PassRecord], None],
    ) -> None:
        self._model = model
        self._name = name
        self._output = output
        self._keeps_graph = keeps_graph
        self._weight = weight
        self._completed = completed
        self.latest: PassRecord | None = None
        self.alike = {True: 0, False: 0}  # passes in train and in eval mode; see PassRecord
        self.hooks: list[weakref.ref[Hook]] = []  # all that were put on the model
        self._narrow = False  # whether the head is known; then layers that may be it are copied as they run
        self.copies_early = False  # whether they are in the next pass too, since the last one showed no head
        self.ran_outside: set[str] = set()  # watched layers that have run since the latest pass, in none of the model
        self.bystander: str | None = None  # the layer that tells that the model ran, where the head is none
        self._unnoted: set[str | None] = set()  # watched for nothing else
        self._wants_products = name is None
        self._notes: Notes | None = None  # of the pass that goes on
        self._depth = 0
        self._sharded = False
        self._failure: Exception | None = None
        self._note_products = Hook(self._note_product, self._fail)
        self._distances: dict[str, None] = {}  # torch's functions of distances that the pass called
        self._thread = 0  # in which the pass that is noted began
        self.threads: set[int] = set()  # that made a pass, noted or not, since they took or dropped one
        self._memory_names: dict[int, str] = {}  # of the model's own tensors, by where they lie
        self.layers = WatchedLayers(model, name, self._hook, self._note, needs_matrix=weight is None)
        # The root's hooks enclose the layers', also where the root is itself the head.
        self._root = [self._hook(self._begin, model.register_forward_pre_hook, prepend=True)]
        self._root.append(self._hook(self._end, model.register_forward_hook, always_call=True))

    def failure(self) -> str:
        """Why something of the latest pass could not be noted, in words; "" where all could."""
        if self._failure is not None:
            message = " ".join(str(self._failure).split())
            return f"not all of the pass could be noted, for {type(self._failure).__name__}: {message}"
        scripted = [name for name, module in self._model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
        return f"{scripted[0]!r} is TorchScript, which shows nothing to hooks" if scripted else ""

    def narrow(
        self, record: PassRecord, names: Iterable[str], sizes: set[int], features: int | None, products: bool
    ) -> None:
        """The head is known: watch, from now on, these layers, those with a matrix of such a size, and what they read.

        Args:
            record: the pass in which it was found; it keeps the runs of these layers.
            names: of layers.
            sizes: of matrices.
            features: n.
            products: whether the head is a function's product.
        """
        names, ran = set(names), [call.name for call in record.calls if call.name and not call.is_function]
        self.bystander = next(iter(ran[-1:]), self.bystander) if names.isdisjoint(ran) else None
        watched = self.layers.narrow(record, names, sizes, features, self.bystander)
        self._unnoted = {self.bystander} - watched
        record.calls = [call for call in record.calls if call.name in watched and (products or not call.is_function)]
        self._wants_products, self._narrow = products, True

    def widen(self) -> list[str]:
        """Watch every layer again that may be a head; the names of those that were built since the last look."""
        self._narrow, self._wants_products, self.bystander = False, self._name is None, None
        self._unnoted = set()
        return self.layers.widen()

    def drop(self) -> None:
        """Forget the latest pass, and one that was broken off."""
        self.latest = None
        self.alike = {True: 0, False: 0}
        self.threads.discard(threading.get_ident())
        elsewhere = self._depth and self._thread != threading.get_ident()
        if not elsewhere and not _passes_around(self._model):
            self._forget()

    def detach(self) -> None:
        """Remove every hook and drop what was noted."""
        for hook in self._root:
            hook.remove()
        self.layers.unwatch_all_but(set())
        self._note_products.remove()
        self._forget()
        self.latest = None

    def is_followed(self) -> bool:
        """Whether hooks of the host come after the one that notes the model's output, and may change it."""
        for hook in reversed(self._model._forward_hooks.values()):
            if hook is self._root[1]:
                return False
            if not isinstance(hook, Hook):  # another probe's
                return True
        return False

    def _hook(self, call: Callable[..., None], register: Callable[..., Any], **options: Any) -> Hook:
        hook = Hook(call, self._fail).on(register, **options)
        self.hooks.append(weakref.ref(hook))
        return hook

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        if not self._depth:  # the pass's end failed: what it noted is of no use
            self._drop_notes()

    def _note(
        self, name: str, module: nn.Module, arguments: Sequence[Any], output: Any, computed: dict[str, Tensor]
    ) -> None:
        notes = self._notes
        given = [output] if self._weight is not None else [value for value in arguments if isinstance(value, Tensor)]
        inputs = given[0] if given else None
        if notes is None and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() == -1:
            self.ran_outside.add(name)  # not where a checkpoint runs it again, inside backward
        if notes is None or not isinstance(inputs, Tensor) or inputs.ndim < 2:
            return
        # compiled code must not depend on what is known already: it would be compiled again
        if not torch.compiler.is_compiling() and name in self._unnoted:
            return
        is_whole = self._weight is None and may_cover(module)
        # a view that is made now has no gradient
        if is_whole and (self._keeps_graph or inputs.shape[2:] != module.kernel_size):
            return
        slope = batchnorm_slope(module, inputs)
        if isinstance(module, NORMS) and slope is None:
            return
        tensors = {**tensors_of(module), **computed} if slope is None and self._weight is None else {}
        if is_whole:
            inputs, tensors = inputs.flatten(1), {key: t.flatten(1) if t.ndim > 1 else t for key, t in tensors.items()}
        copies = self._copies_at_once()
        made = output
        if isinstance(output, Tensor) and not self._keeps_graph:
            # a head named by hand may be measured for its own output, which the host may go on to change in place
            made = snapshot(output) if self._name is not None and self._weight is None else output.detach()
        notes.drop_products_of_layer(inputs, output, tensors)
        notes.add(
            inputs,
            output,
            copies=copies,
            name=name,
            kind=kind_of(module),
            tensors=tensors,
            made=made,
            channel_first=is_channel_first(module) and self._weight is None and not is_whole,
            slope=slope,
        )

    def _copies_at_once(self) -> bool:
        """Whether a layer's tensors are copied as it runs; in compiled code they are at the pass's end.

        Sharded models free the whole weights when the layer has run, so there the first pass copies too.
        """
        if torch.compiler.is_compiling() or self._keeps_graph:
            return False
        return self._narrow or self._sharded or self.copies_early

    def _note_product(self, name: str, first: Tensor, second: Tensor, output: Tensor) -> None:
        notes = self._notes
        if notes is None:
            return
        if not _passes_around(self._model):
            self._drop_notes()  # the mode itself cannot be left from inside
            return
        if name == COPY:
            notes.add_copy(first, output)
            return
        if first is second is output:  # a distance, of which nothing but its name is noted
            self._distances[name] = None
            return
        copies = self._copies_at_once()
        known = next((self._memory_names[m] for m in map(memory, (second, first)) if m in self._memory_names), "")
        for features, matrix in split_operands(name, first, second):
            notes.add(
                features,
                output,
                copies=copies,
                name=f"{name}({known})" if known else name,
                kind=name,
                tensors={"weight": matrix if copies else matrix.detach()},
                made=output if self._keeps_graph else output.detach(),
                is_function=True,
            )

    def _begin(self, *_: Any) -> None:
        compiled = torch.compiler.is_compiling()
        if _is_exporting() or (not compiled and torch._C._get_tracing_state()):
            return  # what is noted would become a part of the graph
        if not compiled and torch._C._current_graph_task_id() != -1:
            return  # recomputed inside backward (checkpointing): no pass
        if self._depth and (compiled or _passes_around(self._model) > 1):
            self._depth += 1  # the model calls itself
            return
        self._forget()
        if not compiled and self.is_followed():
            self._root[1].move_to_end()  # it notes the output that the host gets
        self._failure = None
        if not compiled:
            self.ran_outside = set()
        self._distances = {}
        self._depth = 1
        # compiled code must not depend on what is known already: it would be compiled again
        self._notes = Notes(self._keeps_graph, is_bounded=not compiled and not self._narrow)
        self.latest = None
        if compiled:
            return
        self._sharded = not self._narrow and is_sharded(self._model)
        self._thread = threading.get_ident()
        if self._wants_products and _may_use_modes(self._model):
            tensors = (*self._model.named_parameters(), *self._model.named_buffers())
            self._memory_names = {memory(tensor): name for name, tensor in tensors}
            ProductMode(self._note_products).__enter__()  # type: ignore[no-untyped-call]

    def _end(self, _: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.threads.add(threading.get_ident())
        notes = self._notes
        if notes is None or self._depth == 0:
            return
        self._depth -= 1
        if self._depth:
            return
        if output is None:  # the pass failed
            self._forget()
            return
        self._leave_mode()
        entries = output_entries(output, self._output, self._model)
        batched = not torch.compiler.is_compiling() and any(is_batched(entry.tensor) for entry in entries)
        makers = [notes.maker_of(entry.tensor) for entry in entries]
        calls = notes.calls
        fault = _UNDER_VMAP if batched else ""
        if self._weight is not None:
            given = self._weight()
            if isinstance(given, str):
                fault = f"expected the weight of LinearHead to be a tensor of shape (K, n), found {given}"
            elif entries:
                given = given.to(entries[0].tensor.device)
            calls = [replace(call, tensors={} if isinstance(given, str) else {"weight": given}) for call in calls]
        if torch.compiler.is_compiling():
            # only what may be the head: each copy is one more output of the compiled graph
            calls = relevant(calls, {entry.logits.shape[1] for entry in entries}) if self._name is None else calls
            calls = copied_calls(calls)
        # compiled code must not depend on what is known already: it would be compiled again
        fresh = not torch.compiler.is_compiling() and not self._narrow
        origins = makers
        if fresh:
            origins = [
                notes.origin_of(entry.tensor) if maker is None else maker
                for entry, maker in zip(entries, makers, strict=True)
            ]
        # the host may go on to change its output in place, and its graph is not ours to keep alive
        kept = [
            Entry(entry.path, entry.tensor.detach(), logits.clone())
            for entry in entries
            for logits in [entry.logits if self._keeps_graph else entry.logits.detach()]
        ]
        record = PassRecord(
            calls,
            kept,
            makers,
            origins,
            training=self._model.training,
            described=describe_output(output),
            fault=fault,
            distances=tuple(self._distances),
            alike=self._count_alike(args),
            compiled=torch.compiler.is_compiling(),
            thread=0 if torch.compiler.is_compiling() else threading.get_ident(),
        )
        self._forget()
        self.latest = record
        if not fresh:
            self._copy_what_the_graph_holds(record)
            return
        if not _is_capturing():
            with _disable_current_modes(), not_recorded():  # such as one that counts the host's operations
                self._completed(record)
        if not self._keeps_graph:
            record.calls = copied_calls(record.calls)
        self._copy_what_the_graph_holds(record)

    def _copy_what_the_graph_holds(self, record: PassRecord) -> None:
        """Of the layers that matter; before they are known, those of all would take too much memory."""
        if self._keeps_graph and self._narrow and not torch.compiler.is_compiling():
            record.calls = [call.with_copies() for call in record.calls]

    def _count_alike(self, args: tuple[Any, ...]) -> int:
        if torch.compiler.is_compiling() or any(
            isinstance(argument, Tensor) and argument.requires_grad for argument in args
        ):
            return 0
        self.alike[self._model.training] += 1
        return self.alike[self._model.training]

    def _forget(self) -> None:
        self._drop_notes()
        self._leave_mode()

    def _drop_notes(self) -> None:
        self._notes, self._depth = None, 0

    def _leave_mode(self) -> None:
        if not torch.compiler.is_compiling():
            ProductMode.leave(self._note_products)


_UNDER_VMAP = (
    "expected a pass of a whole batch, found one under torch.vmap, whose samples run as one; call the model on the "
    "batch itself"
)


def _passes_around(model: nn.Module) -> int:
    """How many forward passes of the model are on the call stack.

    Where the probe counts more, one was interrupted by a BaseException (Ctrl-C), which calls no hook.
    """
    frame, around = sys._getframe(1), 0
    code = nn.Module._call_impl.__code__
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is model:
            around += 1
        frame = frame.f_back  # type: ignore[assignment]
    return around


def _may_use_modes(model: nn.Module) -> bool:
    """Whether a function mode leaves the host's numbers and compiled code alone.

    Around compiled parts it makes them be compiled once more; torch's transformer layers and attention leave their
    fused kernels, which differ by rounding and in what they give for padding.
    """
    return not any(
        isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer))
        or hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


# torch 2.6 has no name for it: there the exported graph holds what is noted
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured: nothing may wait for the device meanwhile."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
