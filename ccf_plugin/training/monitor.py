"""What is measured of a model while it trains."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccf_plugin.engine.gradients import NoGradientError
from ccf_plugin.engine.memory import batch_size_errors, largest_batch_size
from ccf_plugin.engine.modes import evaluation_mode, seeded
from ccf_plugin.errors import CCFError, Fault, InputError, one_line
from ccf_plugin.measuring.evaluate import AttackSettings, MeasuredSplit, Progress, find_head, measure
from ccf_plugin.measuring.gradients import InputGradients, check_gradients, input_gradients
from ccf_plugin.measuring.settings import ProbeOptions
from ccf_plugin.probe import CrossClassProbe, CrossClassResult
from ccf_plugin.runs.metrics import all_metrics
from ccf_plugin.training.setup import Parts
from ccf_plugin.zoo.attacks import Attack
from ccf_plugin.zoo.datasets import Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_ATTACKED = 100  # the most training images that the evaluation's attack is run on too: enough to see a fall to half


@dataclass(frozen=True)
class Measured:
    """A model's result on the test split, on clean training images and, where there is such a split, on validation's.

    ``train`` is of as many training images as there are test images, evenly over the training set, unaugmented. After
    adversarial training ``train_attacked`` is of up to ``_ATTACKED`` of such images under the evaluation's attack.
    ``gradients``, of the test images, is None unless the recipe asks for it.
    """

    test: CrossClassResult
    train: CrossClassResult
    train_attacked: CrossClassResult | None
    validation: CrossClassResult | None
    gradients: InputGradients | None = None

    @property
    def withstands(self) -> NDArray[np.bool_] | None:
        """Whether each test image is classified right under attack, (N,) bool."""
        return self.test.correct


class Monitor:
    """Measures the models of a run, keeping for each what its attack has prepared."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._attacks: dict[nn.Module, Attack] = {}
        self._batch_size = parts.recipe.evaluate.batch_size
        self._trained_on = _evenly(parts.train, len(parts.test))
        self._attacked_on = _evenly(parts.train, min(_ATTACKED, len(parts.test)))

    def measure(self, model: nn.Module, progress: Progress) -> Measured:
        """Clean accuracy, RA and CAS. C and CAS are of clean images where the recipe says so."""
        recipe, parts = self._parts.recipe, self._parts
        test = self.measure_test(model, progress)
        attack = _attack(parts)
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # of classes that have no image here
            train = self._on(self._trained_on, "train", None, model, progress)
            is_attacked = recipe.objective.is_adversarial
            train_attacked = self._on(self._attacked_on, "train", attack, model, progress) if is_attacked else None
        validation = None
        if parts.validation is not None:
            validation = self._on(parts.validation, "validation", attack, model, progress)
        return Measured(test, train, train_attacked, validation, self._gradients(model))

    def measure_test(self, model: nn.Module, progress: Progress) -> CrossClassResult:
        """What `measure` has of the test images."""
        test = self._on(self._parts.test, "test", _attack(self._parts), model, progress)
        provenance = {"images": self._parts.fingerprints["test"], "attack": test.threat}
        if self._parts.recipe.probe.inputs == "adversarial":
            return replace(test, provenance=provenance)
        under_attack = {name: getattr(test, name) for name in ("robust_accuracy", "robust_loss", "correct")}
        clean = self._on(self._parts.test, "test", None, model, progress)
        return replace(clean, provenance=provenance, **under_attack)

    def _on(
        self, split: Split, name: str, attack: AttackSettings | None, model: nn.Module, progress: Progress
    ) -> CrossClassResult:
        recipe, parts = self._parts.recipe, self._parts
        if model not in self._attacks:
            self._attacks[model] = _build_attack(parts, model)
        size = self._size_for(model)
        with batch_size_errors("evaluate.batch_size", size):
            return measure(
                model,
                MeasuredSplit(split, parts.classes, parts.data_name, name, recipe.data.downscale),
                attack,
                model_name=recipe.model.name,
                probe=ProbeOptions(recipe.probe.head, recipe.probe.output, recipe.probe.instances and name == "test"),
                batch_size=size,
                progress=progress,
                built=self._attacks[model],
            )

    def _size_for(self, model: nn.Module) -> int:
        if self._batch_size is None:
            with evaluation_mode(model):
                self._batch_size = largest_batch_size(
                    self._parts.forward(model), self._parts.input_size, self._parts.device
                )
        return self._batch_size

    def _gradients(self, model: nn.Module) -> InputGradients | None:
        recipe, parts = self._parts.recipe, self._parts
        if not recipe.probe.gradients:
            return None
        size = self._size_for(model)
        with batch_size_errors("evaluate.batch_size", size):
            return input_gradients(
                model,
                parts.test,
                recipe.evaluation_threat(),
                seed=recipe.evaluate.seed,
                batch_size=size,
                output=recipe.probe.output,
                classes=len(parts.classes),
            )


def _evenly(split: Split, count: int) -> Split:
    """So many of the images, or all, evenly over the split."""
    count = min(count, len(split))
    return split.subset(torch.arange(count, device="cpu") * len(split) // count)


def _attack(parts: Parts) -> AttackSettings:
    """The attack of the evaluation."""
    evaluate, threat = parts.recipe.evaluate, parts.recipe.evaluation_threat()
    return AttackSettings(threat, evaluate.name, evaluate.options, parts.precision, evaluate.seed)


def _build_attack(parts: Parts, model: nn.Module) -> Attack:
    return _attack(parts).build(model, len(parts.classes), parts.recipe.probe.output)


def check_measurable(parts: Parts) -> None:
    """Find the model's head and run on two test images what the run will: both attacks, and the gradients it measures.

    So a failure comes before training.

    The model, its modes and the random state are as before. Each process checks for itself.

    Raises:
        InputError: there is no head, or not of the data's classes; an attack fails on this model, or its gradients do.
    """
    with seeded(parts.recipe.evaluate.seed, parts.device):
        _check_head(parts)
        _check_attacks(parts)
        if parts.recipe.probe.gradients:
            _check_gradients(parts)


def _check_head(parts: Parts) -> None:
    recipe = parts.recipe
    try:
        with CrossClassProbe(parts.model, head=recipe.probe.head, output=recipe.probe.output) as probe:
            find_head(probe, parts.input_size, recipe.model.name, len(parts.classes))
            probe.features()
    except InputError as error:
        raise error.within("probe") from error


def _check_attacks(parts: Parts) -> None:
    recipe, model = parts.recipe, parts.model
    _check_attack(parts, "evaluate", _build_attack(parts, model))
    if recipe.objective.is_adversarial:
        # In eval mode, which changes nothing in the model; the test finds the same in both modes.
        training = AttackSettings(recipe.training_threat(), recipe.attack.name, recipe.attack.options, parts.precision)
        attack = training.build(model, len(parts.classes), recipe.probe.output)
        _check_attack(parts, "attack", attack, mixed=recipe.data.mix != "none")


def _check_attack(parts: Parts, section: str, attack: Attack, *, mixed: bool = False) -> None:
    images, labels = _two_images(parts)
    if mixed:
        labels = F.one_hot(labels, len(parts.classes)).float()
    clean = ", or objective.loss = 'standard'" if section == "attack" else ""
    without = f"choose {section}.name = 'Square', which needs none{clean}"
    expected = f"a model that attack {attack.name} can attack"
    with _failing(section, without, expected, f"choose another {section}.name"), evaluation_mode(parts.model):
        attack(images, labels)


def _check_gradients(parts: Parts) -> None:
    remedy, expected = "set probe.gradients = false", "a model whose gradients can be taken"
    with _failing("probe.gradients", remedy, expected, remedy):
        output, classes = parts.recipe.probe.output, len(parts.classes)
        check_gradients(parts.model, *_two_images(parts), output=output, classes=classes)


def _two_images(parts: Parts) -> tuple[Tensor, Tensor]:
    return next(iter(parts.test.batches(2, parts.device)))


@contextlib.contextmanager
def _failing(key: str, without_gradient: str, expected: str, remedy: str) -> Iterator[None]:
    """Report what fails inside under a key: with the first remedy where no gradient reaches the images."""
    try:
        yield
    except NoGradientError as error:
        (fault,) = error.faults
        assert isinstance(fault, Fault)  # noqa: S101
        raise InputError(replace(fault, key=key, remedy=without_gradient)) from error
    except InputError as error:
        raise error.within(key) from error
    except CCFError:
        raise
    except Exception as error:  # whatever a stranger's model and an attack can provoke in each other
        found = f"that it fails on two images ({one_line(error, 200)})"
        raise InputError(Fault(key, expected, found, remedy)) from error


def figures(measured: Mapping[str, Measured]) -> dict[str, float | None]:
    """An epoch row's figures, by the suffix of the weights measured: "" for the raw ones."""
    return {
        metric.name + suffix: metric.take(result)
        for suffix, models_result in measured.items()
        for metric in all_metrics()
        if metric.take is not None
        and (metric.averaged or not suffix)
        and (result := getattr(models_result, metric.split)) is not None
    }
