"""The parts of a recipe's steps, which stay the same along a run: batches, passes, attack, loss, teachers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ccf_plugin.engine.compilation import CompiledForward, build_forward
from ccf_plugin.engine.modes import seeded
from ccf_plugin.errors import Fault, InputError
from ccf_plugin.measuring.provenance import weights_fingerprint
from ccf_plugin.probe.head_reader import HeadReader, ReadForward
from ccf_plugin.threat import ThreatModel
from ccf_plugin.training.batches import TrainingBatches
from ccf_plugin.training.cross_class import CrossClassTerm
from ccf_plugin.training.distillation import Teacher, load_teacher
from ccf_plugin.training.mixing import Mixing
from ccf_plugin.training.objectives import build_objective, reads_head
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import DistillSection, Recipe
from ccf_plugin.training.setup import Parts
from ccf_plugin.training.state import TrainingState
from ccf_plugin.zoo.attacks import Attack, build_attack, is_replayed
from ccf_plugin.zoo.streaming import Images, on_device


class Method:
    """The parts of a training step.

    Attributes:
        batches: this process's part of the training batches, augmented and mixed.
        whole_batches: those batches, with the parts of all processes, not mixed.
        forward: the bare model's pass, for the attack and the perturbation; compiled where that pays.
        trained_forward: the pass whose gradients train the weights.
        objective, teachers: the loss, and what softens its labels.
        term: CAS as a part of the loss, where the recipe has it.
    """

    def __init__(self, parts: Parts, processes: Processes, state: TrainingState) -> None:
        recipe = parts.recipe
        first, end = (
            recipe.optim.batch_size * rank // processes.count for rank in (processes.rank, processes.rank + 1)
        )
        is_adversarial = recipe.objective.is_adversarial
        self.objective = build_objective(**recipe.objective.model_dump())
        self.term = None if recipe.crossclass is None else CrossClassTerm(recipe.crossclass, processes)
        self._reader = _head_reader(parts, state.model) if self.term or reads_head(self.objective) else None
        self.forward = build_forward(
            state.model,
            precision=parts.precision,
            device=parts.device,
            compiled=recipe.compile if self._reader is None else False,  # its hook would compile every pass anew
            batch_size=end - first,
            work=parts.work(),
            is_replayed=is_adversarial and is_replayed(recipe.attack.name, recipe.training_threat()),
            output=recipe.probe.output,
            classes=len(parts.classes),
        )
        is_bare = state.trained is state.model
        self.trained_forward = self.forward if is_bare else parts.forward(state.trained)
        self.is_compiled = isinstance(self.forward, CompiledForward)
        torch.backends.cudnn.benchmark = True  # on a GPU: batches are of one shape, so the search is done once
        self._parts = parts
        self._attack = self._build_attack(recipe.training_threat())
        trained_on, extra = parts.with_extra(), 0 if parts.extra is None else len(parts.extra)
        images, labels = on_device(trained_on.images, parts.device), trained_on.labels.to(parts.device)
        self.whole_batches = training_batches(recipe, images, labels, extra)
        self.batches = replace(
            self.whole_batches, mixing=_mixing(parts), rank=processes.rank, processes=processes.count
        )
        self.teachers = [_teacher(section, parts, state) for section in recipe.distill]

    def teacher_fingerprints(self) -> dict[str, str]:
        """A hash of the weights of each teacher but the run's own average, by its place in the recipe."""
        given = {f"distill[{at}]": teacher for at, teacher in enumerate(self.teachers) if teacher.average is None}
        return {place: weights_fingerprint(teacher.forward) for place, teacher in given.items()}

    def attack(self, epoch: int) -> Attack:
        """What crafts an epoch's images."""
        threat = self._parts.recipe.training_threat(epoch)
        if threat != self._attack.threat:
            self._attack = self._build_attack(threat)
        return self._attack

    def _build_attack(self, threat: ThreatModel) -> Attack:
        recipe = self._parts.recipe
        return build_attack(
            recipe.attack.name,
            self.forward,
            threat,
            mode=recipe.attack.batchnorm if recipe.objective.is_adversarial else "eval",
            options=recipe.attack.options,
            num_classes=len(self._parts.classes),
            fresh_noise=True,
        )

    @contextlib.contextmanager
    def reading(self, forward: nn.Module, epoch: int) -> Iterator[nn.Module | ReadForward]:
        """The forward pass that the step's loss gets; it tells what the head reads where the loss or the term asks."""
        asks = reads_head(self.objective) or (self.term is not None and self.term.weight(epoch))
        with self._reader.reading(forward) if self._reader and asks else nullcontext(forward) as read:
            yield read


def training_batches(recipe: Recipe, images: Images, labels: Tensor, extra: int = 0) -> TrainingBatches:
    """A recipe's batches of these images, of which so many at the end are ``extra``: not mixed, of all processes."""
    data = recipe.data
    return TrainingBatches(
        images,
        labels,
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        augmentation=data.augmentation,
        padding=data.crop_padding,
        border=data.crop_border,
        cutout=data.cutout,
        extra=extra,
        extra_share=data.extra_share or 0.5,
    )


def _mixing(parts: Parts) -> Mixing | None:
    data = parts.recipe.data
    if data.mix == "none":
        return None
    return Mixing(data.mix, data.mix_alpha, len(parts.classes), parts.recipe.seed)


def _head_reader(parts: Parts, model: nn.Module) -> HeadReader:
    recipe, images = parts.recipe, next(iter(parts.test.batches(2, parts.device)))[0]
    key = "crossclass" if recipe.crossclass is not None else "objective.loss"
    if recipe.compile is True:
        raise InputError(Fault("compile", f"false or 'auto' with {key}, which reads the head in each pass", "true"))
    try:
        with seeded(recipe.evaluate.seed, parts.device):
            return HeadReader(model, images, head=recipe.probe.head, output=recipe.probe.output)
    except InputError as error:
        raise InputError(*(_placed(fault, key) for fault in error.faults)) from error


def _placed(fault: Fault | str, key: str) -> Fault | str:
    remedy = "name such a layer by probe.head, or take another model"
    return f"{key}: {fault}" if isinstance(fault, str) else replace(fault, key=key, remedy=remedy)


def _teacher(section: DistillSection, parts: Parts, state: TrainingState) -> Teacher:
    if section.teacher == "average" and state.average is not None:
        return Teacher(parts.forward(state.average.averaged), section, state.average)
    return load_teacher(
        section,
        classes=parts.classes,
        input_size=parts.input_size,
        device=parts.device,
        precision=parts.precision,
    )
