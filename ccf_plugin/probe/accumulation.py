"""What the passes that count add up to, and the result that is made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccf_plugin.engine.versions import installed_versions
from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import attribution, correlation_matrix, unit_rows
from ccf_plugin.probe.decomposition import mean_row_share
from ccf_plugin.probe.distributed import gather_objects, gather_rows, num_processes, rank, sum_over_processes
from ccf_plugin.probe.forward_pass import OWN_OUTPUT, ForwardPass
from ccf_plugin.probe.head import Head
from ccf_plugin.probe.instances import InstanceRows, Samples
from ccf_plugin.probe.jackknife import PARTS, WithoutParts, instances_without_parts
from ccf_plugin.probe.records import ImageRecords, interleaved
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.probe.sums import NOTHING_ADDED, Sums, check_labels, within_classes

Inputs = Literal["adversarial", "clean"]


class Accumulation:
    """The passes that a probe counted since its last reset, added up.

    Args:
        counted: what these passes see; None: unknown. A caller that learns it later sets it.
        instances, max_per_class, max_bytes, centre: as `CrossClassProbe` has them.

    Attributes:
        sums: None before the first pass.
        records: which images were right, where a run knows their order; set by it.
        has_missed: whether ``result`` found a pass whose logits were not the head's.
    """

    def __init__(
        self, counted: Inputs | None, *, instances: bool, max_per_class: int | None, max_bytes: int, centre: bool
    ) -> None:
        self.counted = counted
        self.sums: Sums | None = None
        self.records: ImageRecords | None = None
        self.has_missed = False
        self._instances, self._max_per_class, self._max_bytes = instances, max_per_class, max_bytes
        self._centre = centre
        self._rows: InstanceRows | None = None
        self._modes: set[tuple[str, str]] = set()  # (mode, precision) of the passes
        self._weight: Tensor | None = None  # W of the last pass
        self._places: list[tuple[int, str]] = []  # from which batch on the head was where
        self._reason = ""  # why a batch's logits were no head's

    @torch.no_grad()
    def add(
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
                first_part=rank() * PARTS // num_processes(),  # else few images a process would fill the first alone
            )
            if self._instances:
                self._rows = self._rows or InstanceRows(classes, self._max_per_class, self._max_bytes)
                # at length 1, so that none is too large or too small for the features' own precision
                kept = torch.promote_types(latest.dtype.to_real(), torch.float32)
                self._rows.append(unit_rows(values).to(kept), labels)
        self._modes.add(("train" if latest.training else "eval", str(latest.dtype).removeprefix("torch.")))
        return correct

    def result(
        self, head: Head | None, *, together: bool, class_names: tuple[str, ...] | None = None
    ) -> CrossClassResult:
        """The result of all passes.

        Args:
            head: where it is now; None where no pass was added here.
            together: with the passes of all processes, each of which must call this.
            class_names: K names.

        Raises:
            InputError: as `CrossClassProbe.compute`.
        """
        local_head = None if self.sums is None or head is None else self._with_history(head, self.sums)
        share = None if self._weight is None else float(mean_row_share(self._weight))
        known = (None, None) if self.records is None else self.records.before_and_counted(self.counted == "clean")
        this = _Process(local_head, self._modes, share, *known)
        processes = gather_objects(this) if together else [this]
        sums = sum_over_processes(self.sums) if together else self.sums
        if sums is None:
            raise InputError(NOTHING_ADDED)
        self.has_missed = bool(sums.has_faults()[2])
        vectors = sums.checked_means("" if local_head is None else local_head.name or "the model itself", self._reason)
        classes, total = len(vectors), int(sums.counts.sum())
        accuracy, clean_accuracy = (number / total for number in sums.correct.tolist())
        loss, clean_loss = (summed / total for summed in sums.loss.tolist())
        if sums.clean_batches < sums.batches:
            clean_accuracy = clean_loss = None
        samples = self._samples(together) if self._instances else None
        if class_names is not None and len(class_names) != classes:
            raise InputError(f"expected {classes} class names for this head, found {len(class_names)}")
        confusion, confusion_clean = sums.confusions()
        modes = set().union(*(process.modes for process in processes))
        return CrossClassResult(
            matrix=correlation_matrix(vectors).numpy(),
            class_attribution=vectors.numpy(),
            without_parts=_with_instances(sums.without_parts(), samples),
            counts=sums.counts.cpu().numpy().copy(),  # the sums go on
            instance_matrix=None if samples is None else samples.matrix(classes),
            average_instance_cas=None if samples is None else samples.average_cas(classes),
            clean_accuracy=accuracy if self.counted == "clean" else clean_accuracy,
            robust_accuracy=accuracy if self.counted == "adversarial" else None,
            accuracy=accuracy if self.counted is None else None,
            clean_loss=loss if self.counted == "clean" else clean_loss,
            robust_loss=loss if self.counted == "adversarial" else None,
            confusion_clean=confusion if self.counted == "clean" else confusion_clean,
            confusion_adversarial=confusion if self.counted == "adversarial" else None,
            confusion_unnamed=confusion if self.counted is None else None,
            correct_clean=interleaved([process.correct_clean for process in processes]),
            correct=interleaved([process.correct for process in processes]),
            logit_variance=float(sums.logit_spread) / total,
            mean_row_share=next((process.mean_row_share for process in processes if process.head is not None), None),
            centred=self._centre,
            class_names=class_names,
            head=next((process.head for process in processes if process.head is not None), None),
            model_mode=_only({mode for mode, _ in modes}),
            precision=_only({precision for _, precision in modes}),
            versions={"torch": torch.__version__, "numpy": np.__version__, **installed_versions(["ccf_plugin"])},
        )

    def _with_history(self, head: Head, sums: Sums) -> Head:
        """The head, and where it was in which batches if that changed."""
        history = [f"from batch {batch} on: {place}" for batch, place in self._places]
        refits, place = int(sums.refits), self._places[-1][1]
        lines = history if len(history) > 1 or place.endswith(OWN_OUTPUT) else []
        if refits and " + " in place:
            lines = [*history, f"factors of its parts fitted anew in {refits} of {sums.batches} batches"]
        return replace(head, history=tuple(lines))

    def _sums_for(self, latest: ForwardPass) -> Sums:
        shape, device = latest.shape, latest.features.device
        if self.sums is None:
            self.sums = Sums.zeros(shape, device)
        if self.sums.shape != shape:
            raise InputError(
                f"expected the head to keep its shape {self.sums.shape}, found {shape}; "
                "call reset() after changing the model"
            )
        if self.sums.by_part.device != device:
            self.sums = self.sums.to(device)
        return self.sums

    def _samples(self, together: bool) -> Samples:
        rows, labels = (None, None) if self._rows is None else self._rows.collect()
        if together:
            rows, labels = gather_rows(rows, labels, self._max_bytes)
        assert rows is not None and labels is not None  # noqa: PT018, S101  (something was added)
        return Samples(rows, labels)


class _Process(NamedTuple):
    """What one process tells the others beside its sums."""

    head: Head | None
    modes: set[tuple[str, str]]  # (mode, precision) of its passes
    mean_row_share: float | None
    correct_clean: NDArray[np.bool_] | None
    correct: NDArray[np.bool_] | None


def _with_instances(without: WithoutParts | None, samples: Samples | None) -> WithoutParts | None:
    if without is None or samples is None:
        return without
    parts = instances_without_parts(samples.rows, samples.labels, len(without.matrix))
    return without if parts is None else replace(without, instance_rows=parts[0], instance_columns=parts[1])


def _only(values: set[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else "mixed" if values else None
