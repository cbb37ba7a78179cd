"""CrossClassProbe: attaches to the final linear layer of any classifier and measures its cross-class features."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ccf_plugin.engine.images import check_images
from ccf_plugin.engine.modes import device_of, evaluation_mode, seeded
from ccf_plugin.engine.outputs import Choice
from ccf_plugin.engine.versions import installed_versions
from ccf_plugin.errors import InputError
from ccf_plugin.probe.ablation import AblationLayer
from ccf_plugin.probe.attribution import attribution, correlation_matrix
from ccf_plugin.probe.calls import PassRecord
from ccf_plugin.probe.decomposition import mean_row_share
from ccf_plugin.probe.distributed import gather_objects, gather_rows, num_processes, sum_over_processes
from ccf_plugin.probe.head import Head, LinearHead
from ccf_plugin.probe.hook import remove_hooks
from ccf_plugin.probe.host import attacked, describe_attack, images_and_labels, unnormalised
from ccf_plugin.probe.instances import InstanceRows, Samples
from ccf_plugin.probe.jackknife import WithoutParts, instances_without_parts
from ccf_plugin.probe.layers import is_whole
from ccf_plugin.probe.records import ImageRecords, interleaved
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.probe.sums import NOTHING_ADDED, Sums, check_labels, within_classes
from ccf_plugin.probe.trace import GRADIENT, OWN_OUTPUT, ForwardPass, HeadTracer

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
        inputs: Literal["adversarial", "clean"] | None = None,
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
        self.model = model
        self._given_head, self._output = head, output
        self._instances = instances
        self._max_per_class = max_per_class
        self._max_bytes = max_bytes
        self._every = every
        self._centre = centre
        self._inputs = inputs
        self._class_names = None if class_names is None else tuple(class_names)
        self._head: Head | None = None
        self._tracer: HeadTracer | None = None
        self._has_reported_miss = self._has_warned_of_others = False
        self._attach_later = False
        self._attach()
        self.reset()

    def _attach(self) -> None:
        self._tracer = HeadTracer(self.model, self._given_head, self._output)
        weakref.finalize(self, remove_hooks, self._tracer.watcher.hooks).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        """All but the hooks and what they noted: a copy attaches to its own model."""
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
        return self._head if self._tracer is None else self._tracer.head

    @property
    def needs_graph(self) -> bool:
        """Whether the passes that count need their graph, which head="gradient" does."""
        return self._given_head == GRADIENT

    def reset(self) -> None:
        """Forget what was accumulated; the probe stays attached."""
        self._sums: Sums | None = None
        self._rows: InstanceRows | None = None
        self._seen: set[tuple[str, str]] = set()  # (mode, precision) of the passes
        self._calls = 0
        self._counted = self._inputs  # what the counted passes see
        self._captured: PassRecord | None = None
        self._captures = False
        self._weight: Tensor | None = None  # W of the last pass that counted
        self._records: ImageRecords | None = None  # of a run
        self._places: list[tuple[int, str]] = []  # from which batch on the head was where
        self._reason = ""  # why a batch's logits were no head's
        if self._has_reported_miss and self._tracer is not None:
            self._tracer.search_again()
        self._has_reported_miss = False

    def detach(self) -> None:
        """Remove the hooks. What was accumulated can still be computed."""
        if self._tracer is not None:
            self._tracer.detach()
            self._head, self._tracer = self._tracer.head, None

    def __enter__(self) -> CrossClassProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Only the last pass inside this block counts for the next ``update``, whatever passes follow it."""
        tracer = self._attached()
        tracer.drop()
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
        """Add the last forward pass (or the last inside ``capture``) to the sums. Does not synchronise.

        Args:
            labels: the true classes of the pass's samples, (N,) integer. On any device.
            rows: take only these samples of the pass; ``labels`` are theirs.

        Raises:
            InputError: no new pass since the last update, one whose head cannot be found, use after ``detach``,
                labels of another form or number; a head of another K or n than before. Labels outside 0..K-1,
                features that are not finite and logits that are no longer the head's are noted on the device, and
                raised by ``compute``.
        """
        record = self._take_record()
        counted = self._calls % self._every == 0
        self._calls += 1
        if counted:
            self._warn_of_other_passes(record)
            if self._counted != self._inputs:  # what a run counted is still there
                self._counted = None
            self._records = None  # the order of these images is unknown
            self._add(self._read(record), labels, slice(None) if rows is None else rows)

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

        The pass stays to be read by others; what this probe accumulated is forgotten.

        Args:
            labels: as in ``update``.
            after: the record that was read last.

        Raises:
            InputError: as ``update``; the pass is the one that was read last.
        """
        record = self._attached().watcher.latest
        if record is None or record is after:
            raise InputError(NO_NEW_FORWARD.format("of the probed model"))
        self.reset()
        self._add(self._read(record), labels, slice(None))
        assert self._sums is not None  # noqa: S101
        sums, self._sums = self._sums, None
        return sums, record

    def compute(self, *, sync: bool = True) -> CrossClassResult:
        """The result over all updates since the last ``reset``.

        Where torch.distributed runs, the sums of all processes are added, and every process must call this, those
        without a single update too; all get the same result. ``sync=False`` keeps to this process.

        Raises:
            InputError: nothing was accumulated; a label outside 0..K-1; NaN or infinite features; a pass whose logits
                were not g Wᵀ and one constant row of the head, nor of another of its shape.
        """
        together = sync and num_processes() > 1
        local_head = self._head_with_history() if self._sums is not None else None
        share = None if self._weight is None else float(mean_row_share(self._weight))
        known = (None, None) if self._records is None else self._records.before_and_counted(self._counted == "clean")
        this = _Process(local_head, self._seen, share, *known)
        processes = gather_objects(this) if together else [this]
        sums = sum_over_processes(self._sums) if together else self._sums
        if sums is None:
            raise InputError(NOTHING_ADDED)
        self._has_reported_miss = bool(sums.has_faults()[2])
        vectors = sums.checked_means("" if local_head is None else local_head.name or "the model itself", self._reason)
        classes, total = len(vectors), int(sums.counts.sum())
        accuracy = int(sums.correct) / total
        loss, clean_accuracy, clean_loss = float(sums.loss) / total, None, None
        if sums.clean_batches == sums.batches:
            clean_accuracy, clean_loss = int(sums.clean_correct) / total, float(sums.clean_loss) / total
        samples = self._samples(together) if self._instances else None
        confusion, confusion_clean = sums.confusions()
        passes = set().union(*(process.passes for process in processes))
        result = CrossClassResult(
            matrix=correlation_matrix(vectors).numpy(),
            class_attribution=vectors.numpy(),
            without_parts=_with_instances(sums.without_parts(), samples),
            counts=sums.counts.cpu().numpy().copy(),  # the sums go on
            instance_matrix=None if samples is None else samples.matrix(classes),
            average_instance_cas=None if samples is None else samples.average_cas(classes),
            clean_accuracy=accuracy if self._counted == "clean" else clean_accuracy,
            robust_accuracy=accuracy if self._counted == "adversarial" else None,
            accuracy=accuracy if self._counted is None else None,
            clean_loss=loss if self._counted == "clean" else clean_loss,
            robust_loss=loss if self._counted == "adversarial" else None,
            confusion_clean=confusion if self._counted == "clean" else confusion_clean,
            confusion_adversarial=confusion if self._counted == "adversarial" else None,
            confusion_unnamed=confusion if self._counted is None else None,
            correct_clean=interleaved([process.correct_clean for process in processes]),
            correct=interleaved([process.correct for process in processes]),
            logit_variance=float(sums.logit_spread) / total,
            mean_row_share=next((process.mean_row_share for process in processes if process.head is not None), None),
            centred=self._centre,
            class_names=self._names(classes),
            head=next((process.head for process in processes if process.head is not None), None),
            model_mode=_only({mode for mode, _ in passes}),
            precision=_only({precision for _, precision in passes}),
            versions={"torch": torch.__version__, "numpy": np.__version__, **installed_versions(["ccf_plugin"])},
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
                that begin so, or dicts with an image key and a label key of the usual names.
            attack: adversarial examples from images and labels, such as a torchattacks object; None for clean. One
                with ``set_normalization_used`` takes and gives normalised images, as the model does.
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
        self._counted = "clean" if attack is None else "adversarial"
        records = ImageRecords()
        device = device_of(self.model)
        with torch.inference_mode(False), evaluation_mode(self.model), seeded(seed, device):
            for number, batch in enumerate(loader):
                images, labels = images_and_labels(batch, device)
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
                records.append(*self._add(self._read(self._take_record()), labels, slice(None), clean))
        self._records = records
        result = self.compute()
        return result if attack is None else replace(result, threat={**describe_attack(attack), "seed": seed})

    def _attached(self) -> HeadTracer:
        self._attach_now()
        if self._tracer is None:
            raise InputError("expected an attached probe, found one after detach(); make a new CrossClassProbe(model)")
        return self._tracer

    def _take_record(self) -> PassRecord:
        tracer = self._attached()
        record, inside = (self._captured, True) if self._captures else (tracer.take(), False)
        self._captured, self._captures = None, False
        tracer.drop()
        if record is None:
            failure = tracer.watcher.failure()
            where = "inside capture()" if inside else "of the probed model"
            raise InputError(NO_NEW_FORWARD.format(where) + (f" ({failure})" if failure else ""))
        if inside:
            record.alike = 0  # it was named
        return record

    def _warn_of_other_passes(self, record: PassRecord) -> None:
        """Once: that other passes might have been meant, such as TRADES' adversarial one before its clean one."""
        if record.alike > 1 and not self._has_warned_of_others:
            self._has_warned_of_others = True
            mode = "train" if record.training else "eval"
            warnings.warn(
                f"{record.alike} passes in {mode} mode on images without a gradient ran before this update; the last "
                "counts. If another is meant, run it inside `with probe.capture():`",
                stacklevel=3,
            )

    def _read(self, record: PassRecord) -> ForwardPass:
        shape = None if self._sums is None else self._sums.shape
        return self._attached().read(record, shape)

    @torch.no_grad()
    def _add(
        self, latest: ForwardPass, labels: Tensor, rows: slice, clean: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Add a pass; ``clean`` are the logits before the attack. Which samples were right, see `Sums.add`."""
        # Inside the host's inference mode the sums would become tensors that nothing outside it may change.
        with torch.inference_mode(False):
            features, logits = latest.features[rows], latest.logits[rows]
            check_labels(labels, len(features))
            device = features.device
            labels = labels.to(device, torch.int64, non_blocking=device.type == "cuda")
            sums = self._sums_for(latest)
            classes = sums.shape[0]
            labels, is_bad = within_classes(labels, classes)
            reading = latest.reading
            self._reason = self._reason or latest.reason
            self._weight = latest.weight
            if self._centre:
                latest = latest.centred()
            if latest.weight is None:
                values = latest.gradient_attribution(labels, rows).to(sums.by_part.dtype)
            else:
                values = attribution(features.to(sums.by_part.dtype), latest.weight, labels)
            if not self._places or self._places[-1][1] != latest.place:
                self._places.append((sums.batches, latest.place))
            correct = sums.add(
                values,
                labels,
                logits=logits,
                is_bad=is_bad,
                clean=clean if clean is not None and clean.shape[1] == classes else None,
                check=None if reading is None else (reading.missed, reading.error, reading.refitted),
            )
            if self._instances:
                self._rows = self._rows or InstanceRows(classes, self._max_per_class, self._max_bytes)
                self._rows.append(values.to(torch.promote_types(latest.dtype, torch.float32)), labels)
        self._seen.add(("train" if latest.training else "eval", str(latest.dtype).removeprefix("torch.")))
        return correct

    def _head_with_history(self) -> Head | None:
        """The head, and where it was in which batches if that changed."""
        head = self.head
        if head is None or self._sums is None:
            return head
        history = [f"from batch {batch} on: {place}" for batch, place in self._places]
        refits = int(self._sums.refits)
        several = " + " in (self._places[-1][1] if self._places else "")
        lines = history if len(history) > 1 or self._places[-1][1].endswith(OWN_OUTPUT) else []
        if refits and several:
            lines = [*history, f"factors of its parts fitted anew in {refits} of {self._sums.batches} batches"]
        return replace(head, history=tuple(lines))

    def _sums_for(self, latest: ForwardPass) -> Sums:
        shape, device = latest.shape, latest.features.device
        if self._sums is None:
            self._sums = Sums.zeros(shape, device)
        if self._sums.shape != shape:
            raise InputError(
                f"expected the head to keep its shape {self._sums.shape}, found {shape}; "
                "call reset() after changing the model"
            )
        if self._sums.by_part.device != device:
            self._sums = self._sums.to(device)
        return self._sums

    def _samples(self, together: bool) -> Samples:
        rows, labels = (None, None) if self._rows is None else self._rows.collect()
        if together:
            rows, labels = gather_rows(rows, labels, self._max_bytes)
        assert rows is not None and labels is not None  # noqa: PT018, S101  (something was added)
        return Samples(rows, labels)

    def _names(self, classes: int) -> tuple[str, ...] | None:
        if self._class_names is not None and len(self._class_names) != classes:
            raise InputError(f"expected {classes} class names for this head, found {len(self._class_names)}")
        return self._class_names


NO_NEW_FORWARD = (
    "expected a new forward pass {} before update, found none; call the model (not a copy or a part of it) and then "
    "update once, and attach the probe before torch.compile's first call (or call torch._dynamo.reset() after "
    "attaching it)"
)


def _with_instances(without: WithoutParts | None, samples: Samples | None) -> WithoutParts | None:
    if without is None or samples is None:
        return without
    parts = instances_without_parts(samples.rows, samples.labels, len(without.matrix))
    return without if parts is None else replace(without, instance_rows=parts[0], instance_columns=parts[1])


class _Process(NamedTuple):
    """What one process tells the others beside its sums."""

    head: Head | None
    passes: set[tuple[str, str]]  # (mode, precision)
    mean_row_share: float | None
    correct_clean: NDArray[np.bool_] | None
    correct: NDArray[np.bool_] | None


def _only(values: set[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else "mixed" if values else None
