"""How robust a finished model is: clean accuracy, PGD, other attacks, AutoAttack; batch by batch, to be resumed."""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccf_plugin.engine.modes import evaluation_mode, seeded
from ccf_plugin.engine.outputs import are_probabilities
from ccf_plugin.errors import Fault, InputError, check_at_least
from ccf_plugin.files import write_json
from ccf_plugin.measuring.evaluate import AttackSettings, Progress, check_input, versions
from ccf_plugin.measuring.provenance import differences, in_words
from ccf_plugin.measuring.subject import Subject
from ccf_plugin.probe.confidence import wilson
from ccf_plugin.probe.jackknife import Interval
from ccf_plugin.threat import Pixels, show_pixels, threat_label, threat_model
from ccf_plugin.zoo.auto_attack import build_autoattack

FORMAT = 1
CLEAN, AUTOATTACK = "clean", "AutoAttack"
# Published models that hide no gradients lie 1 to 7 points apart; those that do, 10 to 30.
MASKING_MARGIN = 0.10
DEFAULT_STEPS = (20, 100)  # of PGD
_log = logging.getLogger(__name__)

_Craft = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's figures: ``accuracies`` (fractions of ``images``) by attack, in the order of measuring.

    ``described`` is what was evaluated: model, data, threat, provenance (``measuring.provenance``) and versions.
    ``curve`` has the name of the strongest PGD's figure at each eps, in pixel units and rising, where asked for.
    """

    described: dict[str, Any]
    images: int
    accuracies: dict[str, float]
    notes: tuple[str, ...] = ()
    curve: dict[float, str] = field(default_factory=dict)

    @property
    def intervals(self) -> dict[str, Interval]:
        """Wilson's 95 % interval of each accuracy, over other images of the same kind."""
        return {name: wilson(round(share * self.images), self.images) for name, share in self.accuracies.items()}

    @property
    def masking_gap(self) -> float | None:
        """The strongest PGD's accuracy minus AutoAttack's, a fraction; None without either."""
        elsewhere = {name for eps, name in self.curve.items() if eps != self.described["threat"]["eps"]}
        pgd = [self.accuracies[name] for name in self.accuracies if name.startswith("PGD-") and name not in elsewhere]
        if not pgd or AUTOATTACK not in self.accuracies:
            return None
        return min(pgd) - self.accuracies[AUTOATTACK]

    @property
    def may_mask_gradients(self) -> bool:
        """Whether PGD misses so much of what AutoAttack finds that the model may hide its gradients."""
        return self.masking_gap is not None and self.masking_gap > MASKING_MARGIN

    @property
    def rises(self) -> tuple[float, float] | None:
        """Two neighbouring eps between which RA rises most, where it does; None else.

        The larger ball holds the smaller one, so that an attack which finds less in it misses something (Carlini et al.
        2019, "On Evaluating Adversarial Robustness").
        """
        accuracy = {eps: self.accuracies[name] for eps, name in self.curve.items()}
        pairs = itertools.pairwise(accuracy)
        smaller, larger = max(pairs, key=lambda pair: accuracy[pair[1]] - accuracy[pair[0]], default=(0.0, 0.0))
        return (smaller, larger) if accuracy and accuracy[larger] > accuracy[smaller] else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.described,
            "images": self.images,
            "accuracies": self.accuracies,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "masking_gap": self.masking_gap,
            "masking_margin": MASKING_MARGIN,
            "may_mask_gradients": self.may_mask_gradients,
            "curve": [[eps, self.accuracies[name]] for eps, name in self.curve.items()],
            "notes": list(self.notes),
            "format": FORMAT,
        }


def evaluate(
    subject: Subject,
    out: Path | None = None,
    *,
    steps: Sequence[int] = DEFAULT_STEPS,
    restarts: int = 1,
    attacks: Sequence[str] = (),
    curve: Sequence[Pixels] = (),
    autoattack: bool = False,
    restart: bool = False,
    progress: Callable[[str], Progress] = lambda _: lambda batches, _: batches,
) -> Evaluation:
    """Measure clean accuracy, accuracy under PGD of each number of steps, under further attacks, and under AutoAttack.

    After every batch the file ``out`` is whole and holds the figures so far: a call that finds it there goes on from
    it, with the figures that an uninterrupted call would give. PGD's start depends on the image alone;
    AutoAttack's is not.

    Args:
        out: the JSON to write and to continue; its folder exists. None: nothing is written.
        steps: of PGD; empty for the default.
        restarts: of PGD: an image counts as right where it withstands so many random starts, the first being that of
            the attack's seed.
        attacks: names of further ones, as ``zoo.attacks.build_attack`` takes them; their steps are the threat's.
        curve: further eps for RA over eps, under PGD of the largest number of steps, whose size keeps its share of eps.
        restart: begin anew and ignore what the file holds.
        progress: told what is being measured, gives what wraps the batches.

    Raises:
        InputError: the file holds something else, or the evaluation of other weights, images or settings (named);
            steps or restarts below 1, an unknown attack; a model whose logits are not finite.
        OSError: the file cannot be written.
    """
    attack, split = subject.attack, subject.data.split
    if attack is None:
        raise InputError(Fault("", "an attack to evaluate under", "clean images alone", "leave {clean} out"))
    check_input(subject.loaded.model, tuple(split.images.shape[1:]), subject.loaded.spec)
    check_at_least(1, restarts=restarts)
    counts = sorted(set(steps or DEFAULT_STEPS))
    over = _over_eps(attack, counts[-1], restarts, curve)
    pgd = [*(_restarted(attack, count, restarts) for count in counts), *over.values()]
    crafts, notes = _attacks(subject, attack, pgd, attacks, autoattack)
    described = describe_evaluation(subject, attack)
    state = _State(out, described, {} if restart or out is None else _read(out, described["provenance"]))
    size, total = subject.batch_size, split.count_batches(subject.batch_size)
    for name, craft in crafts.items():
        _log.info("%s: %d of %d batches are done", name, state.batches(name), total)
        batches = progress(name)(split.batches(size, subject.device), total)
        for number, (images, labels) in enumerate(subject.with_warning(batches) if name == CLEAN else batches):
            if number >= state.batches(name):
                state.add(name, _correct(subject, craft, images, labels, attack.seed + number), notes)
    accuracies = {name: state.correct(name) / len(split) for name in crafts}
    evaluation = Evaluation(
        described, len(split), accuracies, tuple(sorted(state.notes)), {eps: over[eps][0] for eps in over}
    )
    state.write(evaluation.to_json())
    return evaluation


_Restarts = tuple[str, list[AttackSettings]]  # the figure's name, and the attack from each of its starts


def _restarted(settings: AttackSettings, steps: int, restarts: int, eps: float | None = None) -> _Restarts:
    """PGD from ``restarts`` random starts; at another eps with a step size of the same share of it."""
    check_at_least(1, steps=steps)
    threat, at = replace(settings.threat, steps=steps), ""
    if eps is not None and eps != threat.eps:
        step_size = threat.step_size * eps / threat.eps if threat.eps else None
        threat = threat_model(norm=threat.norm, eps=eps, step_size=step_size, steps=steps)
        at = f" at {show_pixels(eps)}"
    several = f", {restarts} restarts" if restarts > 1 else ""
    pgd = replace(settings, name=None, options={}, threat=threat)
    seeds = [seed % 2**32 for seed in range(settings.seed, settings.seed + restarts)]
    return threat_label({"attack": "PGD", "steps": steps}) + at + several, [replace(pgd, seed=seed) for seed in seeds]


def _over_eps(settings: AttackSettings, steps: int, restarts: int, curve: Sequence[Pixels]) -> dict[float, _Restarts]:
    """PGD at every eps of a curve and at the threat's own, rising; nothing where no curve is asked for."""
    norm, usual = settings.threat.norm, settings.threat.eps
    radii = {threat_model(norm=norm, eps=eps).eps for eps in curve} | ({usual} if curve else set())
    return {eps: _restarted(settings, steps, restarts, eps) for eps in sorted(radii)}


def _attacks(
    subject: Subject,
    settings: AttackSettings,
    pgd: Iterable[_Restarts],
    further: Sequence[str],
    autoattack: bool,
) -> tuple[dict[str, list[_Craft]], set[str]]:
    """Every attack's restarts by its name (none: clean), and where AutoAttack's warnings will be."""
    model, classes, output = subject.loaded.model, len(subject.data.classes), subject.probe.output
    crafts: dict[str, list[_Craft]] = {CLEAN: []}
    for name, starts in dict(pgd).items():
        crafts[name] = [start.build(model, classes, output) for start in starts]
    for name in dict.fromkeys(further):
        if name.lower() == AUTOATTACK.lower():  # the figure of this name is the benchmark's
            raise InputError(Fault("attack", "RobustBench's AutoAttack, by {autoattack=True}", "torchattacks'"))
        built = replace(settings, name=name, options={}).build(model, classes, output)
        steps = built.describe()["steps"]
        # The whole of an own name: another module may have one that ends alike, or that is called PGD.
        crafts[built.name if steps is None else f"{built.name}-{steps}"] = [built]
    notes: set[str] = set()
    if autoattack:
        strongest, notes = build_autoattack(subject.forward(), settings.threat, num_classes=classes, seed=settings.seed)
        crafts[AUTOATTACK] = [strongest]
    return crafts, notes


def _correct(subject: Subject, crafts: Sequence[_Craft], images: Tensor, labels: Tensor, seed: int) -> int:
    """How many of a batch the model still classifies right after each of an attack's restarts; none: clean."""
    right = torch.ones_like(labels, dtype=torch.bool)
    with evaluation_mode(subject.loaded.model), seeded(seed, subject.device):
        for attacked in (craft(images, labels) for craft in crafts) if crafts else (images,):
            with torch.no_grad():
                logits = subject.forward()(attacked)
            if not bool(logits.isfinite().all()):
                raise InputError(f"expected finite logits of {subject.loaded.spec}, found others; check its weights")
            right &= logits.argmax(1) == labels
            if not crafts and are_probabilities(logits):
                warnings.warn(
                    "the model's outputs look like probabilities, whose cross-entropy has small gradients, so that PGD "
                    "leaves more right than it could; let the model return logits, or the probabilities' logarithm",
                    stacklevel=2,
                )
    return int(right.sum())


class _State:
    """The figures so far, by attack: how many batches are done, and how many images in them were right."""

    def __init__(self, file: Path | None, described: dict[str, Any], saved: dict[str, Any]) -> None:
        self._file = file
        self._described = described
        self._progress: dict[str, dict[str, int]] = saved.get("progress", {})
        self.notes: set[str] = set(saved.get("notes", ()))

    def batches(self, name: str) -> int:
        return self._progress.get(name, {}).get("batches", 0)

    def correct(self, name: str) -> int:
        return self._progress[name]["correct"]

    def add(self, name: str, correct: int, notes: set[str]) -> None:
        before = self._progress.get(name, {"batches": 0, "correct": 0})
        self._progress[name] = {"batches": before["batches"] + 1, "correct": before["correct"] + correct}
        self.notes |= notes
        self.write({**self._described, "notes": sorted(self.notes), "format": FORMAT})

    def write(self, described: dict[str, Any]) -> None:
        if self._file is not None:
            write_json(self._file, {**described, "progress": self._progress})


def describe_evaluation(subject: Subject, attack: AttackSettings) -> dict[str, Any]:
    """What an evaluation's file says beside its figures; its provenance is all that these depend on."""
    threat, split = attack.threat, subject.data
    measured = subject.provenance()
    # The attacks' names and steps are those of the figures; every batch has a seed of its own.
    conditions = {name: measured[name] for name in measured if name not in ("attack", "instances", "head")}
    settled = {"norm": threat.norm, "eps": threat.eps, "step_size": threat.step_size, "per_image_noise": True}
    return {
        "model": subject.loaded.spec,
        "data": split.describe(),
        "threat": settled,
        "provenance": {**conditions, "attack": {**settled, "options": {}}, "batch_size": subject.batch_size},
        "versions": versions(),
    }


def _read(file: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """The figures of the evaluation that the file holds, to be continued."""
    if not file.exists():
        return {}
    remedy = "choose another {out}, or replace it by {restart}"
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        progress = {
            name: {key: int(done[key]) for key in ("batches", "correct")} for name, done in saved["progress"].items()
        }
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']!r}")
        differing = differences(saved["provenance"], provenance)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        problem = f"something else ({type(error).__name__})"
        raise InputError(Fault(str(file), "an evaluation to continue", problem, remedy)) from error
    if differing:
        words = in_words(saved["provenance"], provenance)
        raise InputError(Fault(str(file), "to continue the same evaluation", f"another ({words})", remedy))
    return {"progress": progress, "notes": saved.get("notes", ())}
