"""How robust a finished model is: clean accuracy, PGD, AutoAttack; batch by batch, so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.modes import evaluation_mode, seeded
from ccf_plugin.errors import InputError
from ccf_plugin.files import write_json
from ccf_plugin.measure.evaluate import Progress, check_input
from ccf_plugin.measure.subject import Subject
from ccf_plugin.probe.head import find_logits
from ccf_plugin.zoo.attacks import build_attack
from ccf_plugin.zoo.auto_attack import build_autoattack

FORMAT = 1
CLEAN, AUTOATTACK = "clean", "AutoAttack"
# Published models that hide no gradients lie 1 to 7 points apart; those that do, 10 to 30.
MASKING_MARGIN = 0.10

_Craft = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What was found: ``accuracies`` (fractions of ``images``) by attack, in the order of measuring."""

    conditions: dict[str, Any]
    images: int
    accuracies: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def masking_gap(self) -> float | None:
        """The strongest PGD's accuracy minus AutoAttack's, a fraction; None without either."""
        pgd = [accuracy for name, accuracy in self.accuracies.items() if name not in (CLEAN, AUTOATTACK)]
        if not pgd or AUTOATTACK not in self.accuracies:
            return None
        return min(pgd) - self.accuracies[AUTOATTACK]

    @property
    def may_mask_gradients(self) -> bool:
        """Whether PGD misses so much of what AutoAttack finds that the model may hide its gradients."""
        return self.masking_gap is not None and self.masking_gap > MASKING_MARGIN

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.conditions,
            "images": self.images,
            "accuracies": self.accuracies,
            "masking_gap": self.masking_gap,
            "masking_margin": MASKING_MARGIN,
            "may_mask_gradients": self.may_mask_gradients,
            "notes": list(self.notes),
            "format": FORMAT,
        }


def evaluate(
    subject: Subject,
    file: Path,
    *,
    steps: Sequence[int] = (20, 100),
    autoattack: bool = False,
    restart: bool = False,
    progress: Callable[[str], Progress] = lambda _: lambda batches, _: batches,
) -> Evaluation:
    """Measure clean accuracy, accuracy under PGD of each number of steps, and under AutoAttack.

    After every batch ``file`` holds what was found so far, whole: a call that finds it there goes on from it, with the
    figures that an uninterrupted call would give (every batch has its own seed).

    Args:
        file: the JSON to write and to continue; its folder exists.
        restart: begin anew, whatever it holds.
        progress: told what is being measured, gives what wraps the batches.

    Raises:
        InputError: ``file`` holds something else, or the evaluation of other weights, images or settings (named);
            steps below 1; a model whose logits are not finite.
        OSError: ``file`` cannot be written.
    """
    if subject.threat is None:
        raise InputError("expected an attack to evaluate under, found clean images alone; use ccf probe --clean")
    check_input(subject.loaded.model, tuple(subject.test.images.shape[1:]), subject.loaded.spec)
    crafts, notes = _attacks(subject, steps, autoattack)
    conditions = _conditions(subject)
    state = _State(file, conditions, {} if restart else _read(file, conditions))
    size, total = subject.choices.batch_size, subject.test.count_batches(subject.choices.batch_size)
    for name, craft in crafts.items():
        batches = progress(name)(subject.test.batches(size, subject.device), total)
        for number, (images, labels) in enumerate(batches):
            if number >= state.batches(name):
                state.add(name, _correct(subject, craft, images, labels, subject.choices.seed + number), notes)
    accuracies = {name: state.correct(name) / len(subject.test) for name in crafts}
    found = Evaluation(conditions, len(subject.test), accuracies, tuple(sorted(state.notes)))
    state.write(found.to_json())
    return found


def _attacks(subject: Subject, steps: Sequence[int], autoattack: bool) -> tuple[dict[str, _Craft | None], set[str]]:
    """Every attack by its name, weakest first (None: clean), and where AutoAttack's warnings will be."""
    threat, classes = subject.threat, len(subject.classes)
    assert threat is not None  # noqa: S101  (checked)
    model = Forward(subject.loaded.model, precision=subject.precision)
    crafts: dict[str, _Craft | None] = {CLEAN: None}
    for count in sorted(set(steps)):
        if count < 1:
            raise InputError(f"--steps: expected at least 1, found {count}")
        crafts[f"PGD-{count}"] = build_attack(None, model, replace(threat, steps=count), num_classes=classes)
    notes: set[str] = set()
    if autoattack:
        attack, notes = build_autoattack(subject.loaded.model, threat, num_classes=classes, seed=subject.choices.seed)
        crafts[AUTOATTACK] = attack
    return crafts, notes


def _correct(subject: Subject, craft: _Craft | None, images: Tensor, labels: Tensor, seed: int) -> int:
    """How many of a batch the model still classifies right."""
    model = subject.loaded.model
    with evaluation_mode(model), seeded(seed, subject.device):
        attacked = images if craft is None else craft(images, labels)
        with torch.no_grad():
            logits = find_logits(Forward(model)(attacked))
    if logits is None or not bool(logits.isfinite().all()):
        raise InputError(f"expected finite logits of {subject.loaded.spec}, found others; check its weights")
    return int((logits.argmax(1) == labels).sum())


class _State:
    """What was found so far, by attack: how many batches are done, and how many images in them were right."""

    def __init__(self, file: Path, conditions: dict[str, Any], found: dict[str, Any]) -> None:
        self._file = file
        self._conditions = conditions
        self._progress: dict[str, dict[str, int]] = found.get("progress", {})
        self.notes: set[str] = set(found.get("notes", ()))

    def batches(self, name: str) -> int:
        return self._progress.get(name, {}).get("batches", 0)

    def correct(self, name: str) -> int:
        return self._progress[name]["correct"]

    def add(self, name: str, correct: int, notes: set[str]) -> None:
        before = self._progress.get(name, {"batches": 0, "correct": 0})
        self._progress[name] = {"batches": before["batches"] + 1, "correct": before["correct"] + correct}
        self.notes |= notes
        self.write({**self._conditions, "notes": sorted(self.notes), "format": FORMAT})

    def write(self, described: dict[str, Any]) -> None:
        write_json(self._file, {**described, "progress": self._progress})


def _conditions(subject: Subject) -> dict[str, Any]:
    """All that a figure depends on, but for the attack's name."""
    threat = subject.threat
    assert threat is not None  # noqa: S101  (checked)
    first = torch.arange(min(1000, len(subject.test)))  # the others may be on disk
    return {
        "model": subject.loaded.spec,
        "weights": _fingerprint([value for _, value in sorted(subject.loaded.model.state_dict().items())]),
        "data": {"name": subject.data_name, "split": "test", "count": len(subject.test)},
        "test_images": _fingerprint([subject.test.images[first], subject.test.labels]),
        "threat": {"norm": threat.norm, "eps": threat.eps, "step_size": threat.step_size},
        "seed": subject.choices.seed,
        "batch_size": subject.choices.batch_size,
        "precision": subject.precision,
    }


def _fingerprint(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(file: Path, conditions: dict[str, Any]) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        progress = {
            name: {key: int(done[key]) for key in ("batches", "correct")} for name, done in found["progress"].items()
        }
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}")
        differing = [name for name in conditions if found[name] != conditions[name]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(
            f"{file}: expected an evaluation to continue, found something else ({type(error).__name__}); "
            "choose another --out, or --restart to replace it"
        ) from error
    if differing:
        pairs = "; ".join(f"{name} {found[name]} there, {conditions[name]} now" for name in differing)
        raise InputError(
            f"{file}: expected to continue the same evaluation, found another ({pairs}); "
            "choose another --out, or --restart to replace it"
        )
    return {"progress": progress, "notes": found.get("notes", ())}
