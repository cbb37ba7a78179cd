"""What a recipe's steps are made of and what does not change along a run: batches, passes, attack, loss, teachers."""

from __future__ import annotations

from dataclasses import replace

import torch

from ccf_plugin.engine.compilation import CompiledForward, build_forward
from ccf_plugin.training.batches import TrainingBatches
from ccf_plugin.training.distillation import Teacher, load_teacher
from ccf_plugin.training.objectives import build_objective
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import DistillSection
from ccf_plugin.training.setup import Parts
from ccf_plugin.training.state import TrainingState
from ccf_plugin.zoo.attacks import build_attack, is_replayed
from ccf_plugin.zoo.streaming import on_device


class Method:
    """The parts of a training step.

    Attributes:
        batches: this process's part of the training batches, augmented.
        whole_batches: those batches, with the parts of all processes.
        forward: the bare model's pass, for the attack and the perturbation; compiled where that pays.
        trained_forward: the pass whose gradients train the weights.
        attack, objective, teachers: what crafts the images, the loss, and what softens its labels.
    """

    def __init__(self, parts: Parts, processes: Processes, state: TrainingState) -> None:
        recipe = parts.recipe
        first, end = (
            recipe.optim.batch_size * rank // processes.count for rank in (processes.rank, processes.rank + 1)
        )
        is_adversarial = recipe.objective.is_adversarial
        self.forward = build_forward(
            state.model,
            precision=parts.precision,
            device=parts.device,
            compiled=recipe.compile,
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
        self.objective = build_objective(recipe.objective)
        self.attack = build_attack(
            recipe.attack.name,
            self.forward,
            recipe.training_threat(),
            mode=recipe.attack.batchnorm if is_adversarial else "eval",
            options=recipe.attack.options,
            num_classes=len(parts.classes),
            fresh_noise=True,
        )
        self.whole_batches = TrainingBatches(
            on_device(parts.train.images, parts.device),
            parts.train.labels.to(parts.device),
            batch_size=recipe.optim.batch_size,
            seed=recipe.seed,
            augmentation=recipe.data.augmentation,
            padding=recipe.data.crop_padding,
            border=recipe.data.crop_border,
            cutout=recipe.data.cutout,
        )
        self.batches = replace(self.whole_batches, rank=processes.rank, processes=processes.count)
        self.teachers = [_teacher(section, parts, state) for section in recipe.distill]


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
