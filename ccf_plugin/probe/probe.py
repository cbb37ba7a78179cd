"""CrossClassProbe: attaches to the final linear layer of any classifier and measures its cross-class features."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.images import check_images
from ccf_plugin.engine.modes import device_of, evaluation_mode, seeded, seeded_by
from ccf_plugin.engine.outputs import Choice
from ccf_plugin.errors import InputError
from ccf_plugin.probe.ablation import AblationLayer
from ccf_plugin.probe.accumulation import Accumulation, Inputs
from ccf_plugin.probe.calls import PassRecord
from ccf_plugin.probe.distributed import num_processes
from ccf_plugin.probe.doubts import Doubts
from ccf_plugin.probe.forward_pass import ForwardPass
from ccf_plugin.probe.head import Head, LinearHead
from ccf_plugin.probe.hook import remove_hooks
from ccf_plugin.probe.host import attacked, describe_attack, images_and_labels, keeps_order, unnormalised
from ccf_plugin.probe.layers import is_whole
from ccf_plugin.probe.records import ImageRecords
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.probe.sums import Sums, check_labels
from ccf_plugin.probe.trace import GRADIENT, HeadTracer


class CrossClassProbe:
    """Measures how much a classifier relies on features that classes share.

    The head (logits = g(x) Wᵀ + one constant row) is found on the first forward pass, by which layer made the output,
    and verified by value on every pass that counts: one layer, or what amounts to one linear map (see `linear_map`).
    The model itself is not changed: hooks read what passes by, and a pass never fails because of them. ``update`` adds
    the last pass to per-class sums of A(x) = g(x) ⊙ W[y] (Algorithm 1), in float64; memory is O(K n).

    Args:
        model: a classifier giving logits (N, K), with K ≥ 2.
        head: the name of the layer to measure, where it cannot be found; a `LinearHead` where no layer holds it; or
            "gradient" for models without a linear head, such as mixtures: A(x) = g ⊙ ∂logit_y/∂g over the members'
            heads' inputs, equal to the above where the head is linear. It needs the pass's graph: call ``update``
            before ``backward``.
        output: the index or key of the logits in the model's output, where several entries of it may be them; a tuple
            of such where they lie deeper.
        instances: also keep single samples' attributions, for the instance matrix and I-CAS (Section 5.3). They take
            4 n bytes a sample (n features, float32): 200 MB for 50,000 samples of 1,024 features.
        max_per_class: with ``instances``, the most samples kept of each class (the first ones; in each process).
        every: count the first of every ``every`` updates.
        inputs: whether the passes that ``update`` counts see adversarial or clean images, which makes the accuracy
            that the result reports RA or clean accuracy; None: it is reported as "accuracy". ``run`` knows by itself.
        class_names: K names for tables and pictures.
        max_bytes: with ``instances``, the memory that single samples' attributions may take together.
        centre: measure with the rows of W less their mean, A(x) = g(x) ⊙ (W[y] - w̄): the same softmax, and a CAS that
            W + 1 vᵀ does not change. It is not the paper's; see ``CrossClassResult.mean_row_share``.

    A copy or a pickle of a probe goes with a copy of its model, which it measures. A probe that nothing refers to any
    more takes its hooks off.

    Example:
        >>> import torch
        >>> from ccf_plugin import CrossClassProbe
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> probe = CrossClassProbe(model)
        >>> _ = model(torch.rand(6, 1, 2, 2))
        >>> probe.update(torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> probe.compute().matrix.shape
        (3, 3)

    Raises:
        InputError: see the methods; also for what is no module, nn.DataParallel and TorchScript, and for a ``head``
            that names no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head: str | LinearHead | None = None,
        output: Choice | None = None,
        instances: bool = False,
        max_per_class: int | None = None,
        every: int = 1,
        inputs: Inputs | None = None,
        class_names: Iterable[str] | None = None,
        max_bytes: int = 8 * 2**30,
        centre: bool = False,
    ) -> None:
        if every < 1:
            raise InputError(f"expected every to be 1 or more, found {every}")
        if max_per_class is not None and max_per_class < 1:
            raise InputError(f"expected max_per_class to be 1 or more, found {max_per_class}")
        if inputs not in ("adversarial", "clean", None):
            raise InputError(f"expected inputs to be 'adversarial', 'clean' or None, found {inputs!r}")
        self.model = model
        self._given_head, self._output = head, output
        self._every = every
        self._inputs = inputs
        self._no_passes = partial(
            Accumulation,
            inputs,
            instances=instances,
            max_per_class=max_per_class,
            max_bytes=max_bytes,
            centre=centre,
        )
        self._passes = self._no_passes()  # those that counted
        self._class_names = None if class_names is None else tuple(class_names)
        self._head: Head | None = None
        self._tracer: HeadTracer | None = None
        self._doubts = Doubts()
        self._doubts.own_call(model)
        self._attach_later = False
        self._attach()
        self.reset()

    def _attach(self) -> None:
        self._tracer = HeadTracer(self.model, self._given_head, self._output)
        weakref.finalize(self, remove_hooks, self._tracer.watcher.hooks).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the hooks and their notes: a copy attaches to its own model."""
        attached = self._tracer is not None
        return {**self.__dict__, "_head": self.head, "_tracer": attached, "_captured": None, "_captures": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _tracer=None)
        self._attach_later = bool(state["_tracer"])
        if is_whole(self.model):
            self._attach_now()
        elif not self.model.__dict__:
            # A model that holds its own probe gets what it holds after the probe does: by its `__setstate__`.
            self.model.__dict__["__setstate__"] = self._fill_model

    def _fill_model(self, state: Any) -> None:
        del self.model.__dict__["__setstate__"]
        type(self.model).__setstate__(self.model, state)  # type: ignore[no-untyped-call]
        if is_whole(self.model):  # otherwise the first use attaches
            self._attach_now()

    def _attach_now(self) -> None:
        if self._attach_later:
            self._attach_later = False
            self._attach()

    @property
    def head(self) -> Head | None:
        """The layer that makes the logits, or None before the first forward pass."""
        found = None if self._tracer is None else self._tracer.head
        return found or self._head  # a copy has that of the original until its own model has run

    @property
    def needs_graph(self) -> bool:
        """Whether the passes that count need their graph, which head="gradient" does."""
        return self._given_head == GRADIENT

    def reset(self) -> None:
        """Forget what was accumulated; the probe stays attached."""
        has_missed = self._passes.has_missed
        self._passes = self._no_passes()
        self._calls = 0
        self._captured: PassRecord | None = None
        self._captures = False
        if self._tracer is not None and (has_missed or self._tracer.watcher.layers.have_grown()):
            self._tracer.search_again()

    def detach(self) -> None:
        """Remove the hooks. What was accumulated can still be computed."""
        if self._tracer is not None:
            self._tracer.detach()
            self._head, self._tracer = self._tracer.head, None

    def __enter__(self) -> CrossClassProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Only the last pass inside this block counts for the next ``update``, whatever passes follow it."""
        tracer = self._attached()
        tracer.drop()
        self._captured, self._captures = None, False  # should this block fail, an earlier one's pass is not its
        yield
        self._captured, self._captures = tracer.take(), True

    @contextlib.contextmanager
    def ablate(self, columns: Sequence[int], images: Tensor, *, values: Tensor | None = None) -> Iterator[None]:
        """Inside, the head reads constants in place of some features, in ``run``'s and an attack's passes too.

        ``CrossClassResult.shared_features`` names those that carry most of C[i, j]. A pass from before does not count
        any more.

        Args:
            columns: the features, from 0 to n-1.
            images: two or more, (N, …) as the model takes them, on which the place is verified.
            values: what replaces each of the n features, (n,) float; None: their means over ``images``.

        Raises:
            InputError: other columns or values; a head that is not one layer on one feature vector a sample.
        """
        tracer = self._attached()
        layer = AblationLayer(self.model, images, head=self._given_head, output=self._output)
        tracer.drop()  # the passes that verified it
        with layer.replacing(columns, layer.means if values is None else values):
            yield

    def update(self, labels: Tensor, *, rows: slice | None = None) -> None:
        """Add the last forward pass (or the last inside ``capture``) to the sums.

        Does not synchronise, but for head="gradient".

        Args:
            labels: the true classes of the pass's samples, (N,) integer. On any device.
            rows: take only these samples of the pass; ``labels`` are theirs. A pass of no samples adds nothing.

        Raises:
            InputError: no new pass since the last update, one whose head cannot be found, use after ``detach``,
                labels of another form or number; a head of another K or n than before. Labels outside 0..K-1,
                features that are not finite and logits that are no longer the head's are noted on the device, and
                raised by ``compute``.
        """
        if isinstance(rows, (int, tuple)) or (isinstance(rows, slice) and (rows.step or 1) < 1):
            raise InputError(f"expected rows as a slice that goes forward, found {rows!r}; such as rows=slice(0, 32)")
        record = self._take_record()
        if record.is_empty():
            check_labels(labels, 0)
            return
        counted = self._calls % self._every == 0
        self._calls += 1
        if counted:
            self._doubts.other_passes(record)
            if self._passes.counted != self._inputs:  # what a run counted is still there
                self._passes.counted = None
            self._passes.records = None  # the order of these images is unknown
            self._passes.add(self._read(record), labels, slice(None) if rows is None else rows)

    def features(self) -> Tensor:
        """g(x) of the latest forward pass, (N, n), detached; ``update`` may still count the pass.

        Raises:
            InputError: no pass since the last ``update``, or one whose head cannot be found.
        """
        latest = self._attached().peek()
        if latest is None:
            raise InputError("expected a forward pass of the probed model before features, found none; call the model")
        return latest.features

    def _sums_of_latest(self, labels: Tensor, after: PassRecord | None = None) -> tuple[Sums, PassRecord]:
        """The sums of the latest pass alone, and its record: for those who add up themselves.

        The pass stays to be read by others, and does not count here.

        Args:
            labels: as in ``update``.
            after: the record that was read last.

        Raises:
            InputError: as ``update``; the pass is the one that was read last.
        """
        record = self._attached().watcher.latest
        if record is None or record is after:
            raise InputError(NO_NEW_FORWARD.format("of the probed model"))
        alone = self._no_passes()
        alone.add(self._attached().read(record), labels, slice(None))
        assert alone.sums is not None  # noqa: S101  (a pass was added)
        return alone.sums, record

    def compute(self, *, sync: bool = True) -> CrossClassResult:
        """The result over all updates since the last ``reset``.

        Where torch.distributed runs, the sums of all processes are added, and every process must call this, those
        without a single update too; all get the same result. ``sync=False`` keeps to this process.

        Raises:
            InputError: nothing was accumulated; a label outside 0..K-1; NaN or infinite features; a pass whose logits
                were not g Wᵀ and one constant row of the head, nor of another of its shape.
        """
        result = self._passes.result(
            None if self._passes.sums is None else self.head,
            together=sync and num_processes() > 1,
            class_names=self._class_names,
        )
        if result.missing_classes:
            warnings.warn(
                f"{result.left_out}: their rows of C are NaN and CAS leaves them out",
                stacklevel=2,
            )
        return result

    def run(
        self,
        loader: Iterable[Any],
        attack: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        seed: int | None = None,
        seeds: int = 1,
    ) -> CrossClassResult:
        """Measure the model over a loader: one pass gives RA, C, CAS (and I-CAS), and clean accuracy on the way.

        The model is in eval mode meanwhile; afterwards every module's own mode is as before. With a ``seed`` the
        attack's randomness comes from it, and the host's random state is left as it was. Every batch counts,
        whatever ``every`` is. The attack has gradients, also inside the host's ``no_grad`` or ``inference_mode``.

        Args:
            loader: batches of images (N, C, H, W), float in [0, 1], and labels (N,) int64: pairs, or longer tuples
                that begin so, or dicts with an image key and a label key of the usual names. Of one that shuffles no
                records of single images are kept, which paired tests take to be in one order.
            attack: adversarial examples from images and labels (copies, which it may write into), such as a
                torchattacks object; None for clean. One with ``set_normalization_used`` takes and gives normalised
                images, as the model does.
            seed: for the attack's random start.
            seeds: how many seeds to repeat with, from ``seed`` (or 0) on. The result is the first's; ``repeats`` holds
                the figures of all, ``spread`` their mean and standard deviation.

        Raises:
            InputError: as ``update`` and ``compute``; batches of another form; images to attack that are not in
                [0, 1]; an attack that returns something else than images like those it got, or needs gradients of them
                and gets none; several ``seeds`` of a clean measurement or of an iterator.
        """
        if seeds == 1:
            return self._run_once(loader, attack, seed)
        if seeds < 1 or attack is None or iter(loader) is loader:
            raise InputError(
                f"expected seeds=1, or more with an attack and a loader that can be read again, found seeds={seeds} "
                f"with {'no attack' if attack is None else type(loader).__name__}"
            )
        results = [self._run_once(loader, attack, (seed or 0) + number) for number in range(seeds)]
        return replace(results[0], repeats=tuple(result.figures() for result in results))

    def _run_once(
        self, loader: Iterable[Any], attack: Callable[[Tensor, Tensor], Tensor] | None, seed: int | None
    ) -> CrossClassResult:
        self._attached()
        self.reset()
        self._passes.counted = "clean" if attack is None else "adversarial"
        records = ImageRecords()
        device = device_of(self.model)
        with (
            torch.inference_mode(False),
            evaluation_mode(self.model),
            seeded(seed, device),
            seeded_by(attack, seed),
        ):
            batches = (images_and_labels(batch, device) for batch in loader)
            for number, (images, labels) in enumerate(batch for batch in batches if len(batch[0])):
                clean = None
                if attack is not None:
                    if number == 0:
                        check_images(unnormalised(images, attack), "the loader's first batch")
                    with torch.set_grad_enabled(self.needs_graph):
                        self.model(images)
                    # the clean pass is read before an attack is run for nothing
                    clean = self._read(self._take_record()).logits
                    images = attacked(images, labels, attack, self.model, first=number == 0)
                    self.model.eval()  # torchattacks turns a model back to train mode
                with torch.set_grad_enabled(self.needs_graph):
                    self.model(images)
                records.append(*self._passes.add(self._read(self._take_record()), labels, slice(None), clean))
        self._passes.records = records if keeps_order(loader) else None
        result = self.compute()
        return result if attack is None else replace(result, threat={**describe_attack(attack), "seed": seed})

    def _attached(self) -> HeadTracer:
        self._attach_now()
        if self._tracer is None:
            raise InputError("expected an attached probe, found one after detach(); make a new CrossClassProbe(model)")
        return self._tracer

    def _take_record(self) -> PassRecord:
        tracer = self._attached()
        ran_outside = tracer.watcher.ran_outside
        record, inside = (self._captured, True) if self._captures else (tracer.take(), False)
        self._captured, self._captures = None, False
        tracer.drop()
        if record is None:
            failure = tracer.watcher.failure()
            where = "inside capture()" if inside else "of the probed model"
            raise InputError(NO_NEW_FORWARD.format(where) + (f" ({failure})" if failure else ""))
        if inside:
            record.alike = 0  # it was named
        elif ran_outside:
            self._doubts.runs_outside(self.head, ran_outside, tracer.watcher.bystander)
        return record

    def _read(self, record: PassRecord) -> ForwardPass:
        sums = self._passes.sums
        return self._attached().read(record, None if sums is None else sums.shape)


NO_NEW_FORWARD = (
    "expected a new forward pass {} before update, found none; call the model (not a copy or a part of it) and then "
    "update once, and attach the probe before torch.compile's first call (or call torch._dynamo.reset() after "
    "attaching it)"
)
