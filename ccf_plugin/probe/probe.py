"""CrossClassProbe: attaches to the final linear layer of any classifier and measures its cross-class features."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import attribution, class_means, correlation_matrix, instance_matrix
from ccf_plugin.probe.distributed import gather_rows, num_processes, sum_over_processes
from ccf_plugin.probe.head import Head, find_logits
from ccf_plugin.probe.instances import InstanceRows
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.probe.trace import ForwardPass, HeadTracer

_NONE = torch.iinfo(torch.int64).max


@dataclass
class _Sums:
    """What `update` accumulates, all on the features' device: nothing here synchronises with the host."""

    attributions: Tensor  # (K, n), float64 where the device has it
    counts: Tensor  # (K,) int64
    correct: Tensor  # () int64
    bad_label_batch: Tensor  # () int64: the first batch with such a fault
    not_finite_batch: Tensor
    batches: int = 0


class CrossClassProbe:
    """Measures how much a classifier relies on features that classes share.

    The head (logits = g(x) Wᵀ + b) is found on the first forward pass. The model itself is not changed: hooks read
    what passes by. ``update`` adds the last pass to per-class sums of A(x) = g(x) ⊙ W[y] (Algorithm 1), in float64;
    memory is O(K n).

    Args:
        model: a classifier giving logits (N, K), with K ≥ 2.
        head: the name of the layer to measure, where it cannot be found.
        instances: also keep single samples' attributions, for the instance matrix and I-CAS (Section 5.3).
        max_per_class: with ``instances``, at most so many samples of each class (the first).
        every: count one ``update`` in so many, beginning with the first.
        inputs: whether the passes that ``update`` counts see adversarial or clean images; decides which accuracy
            the result reports. ``run`` sets it by itself.
        class_names: K names for tables and pictures.

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
        InputError: see the methods; also for nn.DataParallel, and for a ``head`` that names no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head: str | None = None,
        instances: bool = False,
        max_per_class: int | None = None,
        every: int = 1,
        inputs: Literal["adversarial", "clean"] = "adversarial",
        class_names: Iterable[str] | None = None,
    ) -> None:
        if every < 1:
            raise InputError(f"expected every to be 1 or more, found {every}")
        if max_per_class is not None and max_per_class < 1:
            raise InputError(f"expected max_per_class to be 1 or more, found {max_per_class}")
        if inputs not in ("adversarial", "clean"):
            raise InputError(f"expected inputs to be 'adversarial' or 'clean', found {inputs!r}")
        self.model = model
        self._tracer: HeadTracer | None = HeadTracer(model, head)
        self._instances = instances
        self._max_per_class = max_per_class
        self._every = every
        self._inputs = inputs
        self._class_names = None if class_names is None else tuple(class_names)
        self.reset()

    @property
    def head(self) -> Head | None:
        """The layer that makes the logits, or None before the first forward pass."""
        return None if self._tracer is None else self._tracer.head

    def reset(self) -> None:
        """Forget what was accumulated; the probe stays attached."""
        self._sums: _Sums | None = None
        self._rows: InstanceRows | None = None
        self._modes: set[str] = set()
        self._precisions: set[str] = set()
        self._calls = 0
        self._captured: ForwardPass | None = None
        self._captures = False

    def detach(self) -> None:
        """Remove the hooks. What was accumulated can still be computed."""
        if self._tracer is not None:
            self._tracer.detach()
            self._tracer = None

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
        tracer.last = None
        yield
        self._captured, tracer.last, self._captures = tracer.last, None, True

    def update(self, labels: Tensor, *, rows: slice | None = None) -> None:
        """Add the last forward pass (or the last inside ``capture``) to the sums. Does not synchronise.

        Args:
            labels: the true classes of the pass's samples, (N,) integer. On any device.
            rows: take only these samples of the pass; ``labels`` are theirs.

        Raises:
            InputError: no new pass since the last update, use after ``detach``, labels of another form or number.
                Labels outside 0..K-1 and features that are not finite are noted on the device, and raised by
                ``compute``.
        """
        latest = self._take_pass()
        counted = self._calls % self._every == 0
        self._calls += 1
        if not counted:
            return
        features, logits = latest.features, latest.logits
        if rows is not None:
            features, logits = features[rows], logits[rows]
        _check_labels(labels, len(features))
        labels = labels.to(features.device, torch.int64)
        if self._sums is None:
            self._sums = _new_sums(latest.weight)
        sums = self._sums
        if sums.attributions.shape != latest.weight.shape:
            raise InputError(
                f"expected the head to keep its shape {tuple(sums.attributions.shape)}, found "
                f"{tuple(latest.weight.shape)}; call reset() after changing the model"
            )
        valid = (labels >= 0) & (labels < len(latest.weight))
        owner = torch.where(valid, labels, 0)
        values = attribution(features.to(sums.attributions.dtype), latest.weight, owner)
        finite = torch.isfinite(values).all()
        _note_first(sums.bad_label_batch, ~valid.all(), sums.batches)
        _note_first(sums.not_finite_batch, ~finite, sums.batches)
        sums.attributions.index_add_(0, owner, values * valid.unsqueeze(1))
        sums.counts.index_add_(0, owner, valid.to(torch.int64))
        if logits.shape[1] == len(latest.weight):
            sums.correct += ((logits.argmax(1) == owner) & valid).sum()
        sums.batches += 1
        if self._instances:
            self._rows = self._rows or InstanceRows(len(latest.weight), self._max_per_class)
            self._rows.append(values.to(torch.promote_types(features.dtype, torch.float32)), owner, valid)
        self._modes.add("train" if latest.training else "eval")
        self._precisions.add(str(features.dtype).removeprefix("torch."))

    def compute(self, *, sync: bool = True) -> CrossClassResult:
        """The result over all updates since the last ``reset``.

        Where torch.distributed runs, the sums of all processes are added, and every process must call this;
        ``sync=False`` keeps to this process.

        Raises:
            InputError: nothing was accumulated; a label outside 0..K-1; NaN or infinite features.
        """
        sums = sum_over_processes(self._sums) if sync and num_processes() > 1 else self._sums
        if sums is None or sums.batches == 0:
            raise InputError("expected at least one update before compute, found none; run a pass, then update(labels)")
        classes = len(sums.counts)
        if (batch := int(sums.bad_label_batch)) != _NONE:
            raise InputError(f"expected labels in 0..{classes - 1}, found others in batch {batch} (counted from 0)")
        if (batch := int(sums.not_finite_batch)) != _NONE:
            raise InputError(
                f"expected finite features, found NaN or infinity in batch {batch} (counted from 0); "
                "check the weights and the learning rate"
            )
        vectors = class_means(sums.attributions.cpu().double(), sums.counts.cpu())
        total = int(sums.counts.sum())
        accuracy = int(sums.correct) / total
        adversarial = self._inputs == "adversarial"
        result = CrossClassResult(
            matrix=correlation_matrix(vectors).numpy(),
            class_attribution=vectors.numpy(),
            counts=sums.counts.cpu().numpy(),
            instance_matrix=self._instance_matrix(classes, sync=sync),
            clean_accuracy=None if adversarial else accuracy,
            robust_accuracy=accuracy if adversarial else None,
            class_names=self._names(classes),
            head=self.head,
            model_mode=_only(self._modes),
            precision=_only(self._precisions),
            versions={"torch": torch.__version__, "numpy": np.__version__, **_own_version()},
        )
        if result.missing_classes:
            warnings.warn(
                f"no samples of {', '.join(result.missing_classes)}: their rows of C are NaN and CAS leaves them out",
                stacklevel=2,
            )
        return result

    def run(
        self,
        loader: Iterable[tuple[Tensor, Tensor]],
        attack: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        seed: int | None = None,
    ) -> CrossClassResult:
        """Measure the model over a loader: one pass gives RA, C, CAS (and I-CAS), and clean accuracy on the way.

        The model is in eval mode meanwhile; afterwards every module's own mode is as before. With a ``seed`` the
        attack's randomness comes from it, and the host's random state is left as it was.

        Args:
            loader: batches of images (N, C, H, W), float in [0, 1], and labels (N,) int64.
            attack: adversarial examples from images and labels, such as a torchattacks object; None for clean.
            seed: for the attack's random start.
        """
        self._attached()
        self.reset()
        self._inputs = "clean" if attack is None else "adversarial"
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        clean_correct = torch.zeros((), dtype=torch.int64, device=device)
        with evaluation_mode(self.model), _seeded(seed, device):
            for images, labels in loader:
                images, labels = images.to(device), labels.to(device)
                if attack is not None:
                    with torch.no_grad():
                        logits = find_logits(self.model(images))
                    if logits is not None:
                        clean_correct += (logits.argmax(1) == labels).sum()
                    images = attack(images, labels)
                    self.model.eval()  # torchattacks turns a model back to train mode
                with torch.no_grad():
                    self.model(images)
                self.update(labels)
        result = self.compute()
        if attack is None:
            return result
        from dataclasses import replace

        return replace(
            result,
            clean_accuracy=int(clean_correct) / int(result.counts.sum()),
            threat={**describe_attack(attack), "seed": seed},
        )

    def _attached(self) -> HeadTracer:
        if self._tracer is None:
            raise InputError("expected an attached probe, found one after detach(); make a new CrossClassProbe(model)")
        return self._tracer

    def _take_pass(self) -> ForwardPass:
        tracer = self._attached()
        latest, inside = (self._captured, True) if self._captures else (tracer.last, False)
        self._captured, self._captures, tracer.last = None, False, None
        if latest is None:
            raise InputError(
                f"expected a new forward pass {'inside capture()' if inside else 'of the probed model'} before update, "
                "found none; call the model (not a copy or a part of it) and then update once, and attach the probe "
                "before torch.compile's first call"
            )
        return latest

    def _instance_matrix(self, classes: int, *, sync: bool) -> Any:
        if not self._instances:
            return None
        rows, labels = self._rows.collect() if self._rows is not None else (torch.empty(0, 0), torch.empty(0))
        if sync and num_processes() > 1:
            rows, labels = gather_rows(rows, labels)
        return instance_matrix(rows, labels, classes).double().cpu().numpy()

    def _names(self, classes: int) -> tuple[str, ...] | None:
        if self._class_names is not None and len(self._class_names) != classes:
            raise InputError(f"expected {classes} class names for this head, found {len(self._class_names)}")
        return self._class_names


def describe_attack(attack: object) -> dict[str, Any]:
    """What an attack says of itself: ``describe()`` where it has one, else what torchattacks' attributes tell."""
    describe = getattr(attack, "describe", None)
    if callable(describe):
        return dict(describe())
    found = {key: getattr(attack, name) for key, name in _TORCHATTACKS_NAMES.items() if hasattr(attack, name)}
    return {"attack": type(attack).__name__, **found}


_TORCHATTACKS_NAMES = {"eps": "eps", "step_size": "alpha", "steps": "steps"}


def _check_labels(labels: object, rows: int) -> None:
    if not isinstance(labels, Tensor):
        raise InputError(f"expected labels as an integer tensor of shape ({rows},), found {type(labels).__name__}")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(
            f"expected labels of shape ({rows},) and an integer dtype, found {tuple(labels.shape)} {labels.dtype}; "
            "attribution needs the one true class of each sample (one-hot labels: pass labels.argmax(1); mixed "
            "labels have no true class)"
        )
    if len(labels) != rows:
        raise InputError(f"expected {rows} labels, one per sample of the pass, found {len(labels)}; see rows=")


def _new_sums(weight: Tensor) -> _Sums:
    # Apple's GPU has no float64.
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64
    integer = {"dtype": torch.int64, "device": weight.device}
    return _Sums(
        attributions=torch.zeros(weight.shape, dtype=dtype, device=weight.device),
        counts=torch.zeros(len(weight), **integer),  # type: ignore[call-overload]
        correct=torch.zeros((), **integer),  # type: ignore[call-overload]
        bad_label_batch=torch.full((), _NONE, **integer),  # type: ignore[call-overload]
        not_finite_batch=torch.full((), _NONE, **integer),  # type: ignore[call-overload]
    )


def _note_first(flag: Tensor, happened: Tensor, batch: int) -> None:
    flag.copy_(torch.minimum(flag, torch.where(happened, batch, _NONE)))


def _only(values: set[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else "mixed" if values else None


def _own_version() -> dict[str, str]:
    try:
        return {"ccf_plugin": metadata.version("ccf_plugin")}
    except metadata.PackageNotFoundError:  # used from a source folder
        return {}


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
