"""Knowledge distillation: teachers that soften the labels of any loss.

The total loss is (1 − Σ λ) · loss + Σ λ · T² · KL(teacher ‖ student), both seeing x + δ. That is the usual form (Hinton
et al. 2015; Chen et al. 2021); the paper's eq. (3) writes the divergence the other way round, and leaves out T².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.outputs import logits_of
from ccf_plugin.engine.precision import Precision
from ccf_plugin.errors import Fault, InputError, some_of
from ccf_plugin.files import expanded_path
from ccf_plugin.measuring.evaluate import check_input
from ccf_plugin.training.averaging import WeightAverage
from ccf_plugin.training.objectives import StepOutput, divergence
from ccf_plugin.training.recipe import DistillSection
from ccf_plugin.training.recipe_files import shipped_recipes
from ccf_plugin.zoo.models import load_model
from ccf_plugin.zoo.sources import are_other_classes, loadable
from ccf_plugin.zoo.specs import find


@dataclass(frozen=True)
class Teacher:
    """A frozen model that gives logits (N, K) for images (N, C, H, W) in [0, 1], and its weight in each epoch.

    ``average`` is the average that it belongs to, if any; that cannot teach before it has moved.
    """

    forward: nn.Module
    section: DistillSection
    average: WeightAverage | None = None

    def weight(self, epoch: int) -> float:
        """λ in an epoch (counted from 1)."""
        is_ready = self.average is None or self.average.has_moved
        return self.section.weight_at(epoch) if is_ready else 0.0


def distilled(output: StepOutput, adversarial: Tensor, teachers: Sequence[Teacher], epoch: int) -> Tensor:
    """The step's loss with the teachers' share; without any (or all at weight 0) the loss itself.

    Args:
        output: of the objective, its logits those of ``adversarial``.
        adversarial: x + δ, (N, C, H, W) in [0, 1].
        teachers: each gives logits (N, K), without gradients.
        epoch: counted from 1.
    """
    weights = [teacher.weight(epoch) for teacher in teachers]
    if not any(weights):
        return output.loss
    total = (1 - sum(weights)) * output.loss
    for teacher, weight in zip(teachers, weights, strict=True):
        if weight:
            with torch.no_grad():
                target = teacher.forward(adversarial)
            temperature = teacher.section.temperature
            share = divergence(target / temperature, output.logits / temperature).mean()
            total = total + weight * temperature**2 * share
    return total


def check_teachers(sections: Sequence[DistillSection], out: Path) -> None:
    """Look for the teachers' runs, before anything is loaded or replaced.

    Args:
        out: the folder of the run that they teach.

    Raises:
        InputError: runs that are not there yet, each with the command that makes it, or one inside ``out``.
    """
    faults = []
    for section in sections:
        path = expanded_path(section.checkpoint or section.teacher)
        is_run = section.checkpoint is None
        if is_run and (":" in section.teacher or section.teacher == "average" or find(loadable(), section.teacher)):
            continue
        if not path.exists() and not is_run:
            faults.append(Fault("", f"the teacher's checkpoint at {path}", "none", "check the path"))
        elif not path.exists():
            folder = path.parent if path.suffix == ".safetensors" else path
            name = folder.name if folder.name in shipped_recipes() else "RECIPE"
            remedy = f"train {name} first, with {{out={str(folder)!r}}}"
            faults.append(Fault("", f"the teacher's run at {path}", "none", remedy))
        elif path.resolve().is_relative_to(out.resolve()):
            expected = f"a teacher outside the run's own folder {out}"
            faults.append(Fault("", expected, str(path), "choose another {out}"))
    if faults:
        raise InputError(*faults)


def load_teacher(
    section: DistillSection,
    *,
    classes: Sequence[str],
    input_size: tuple[int, int, int],
    device: torch.device,
    precision: Precision,
) -> Teacher:
    """The teacher of a [[distill]] table, in eval mode and without gradients.

    Raises:
        InputError: no such model, or one for other classes or images.
    """
    spec = section.teacher
    loaded = load_model(
        spec,
        checkpoint=None if section.checkpoint is None else expanded_path(section.checkpoint),
        checkpoint_key=section.checkpoint_key,
        options=section.options,
        mean=section.mean,
        std=section.std,
    )
    if loaded.input_size is not None and loaded.input_size != input_size:
        sizes = ["×".join(map(str, size)) for size in (input_size, loaded.input_size)]
        raise InputError(f"expected a teacher for images of {sizes[0]}, found one for {sizes[1]} in {spec}")
    model = loaded.model.to(device).requires_grad_(False)
    logits = logits_of(check_input(model, input_size, spec), loaded.output, classes=len(classes), model=model)
    if logits.shape != (2, len(classes)):
        raise InputError(f"expected a teacher of {len(classes)} classes, found {logits.shape[-1]} in {spec}")
    names = loaded.class_names or classes  # either may be nameless
    if are_other_classes(names, classes) and are_other_classes(classes, names):
        expected = f"{some_of(classes)}, found {some_of(names)}"
        raise InputError(f"expected a teacher of the data's classes {expected} in {spec}: their order must be the same")
    return Teacher(Forward(model, precision=precision, output=loaded.output, classes=len(classes)), section)
