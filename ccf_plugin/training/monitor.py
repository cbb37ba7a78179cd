"""What is measured of a model while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.memory import batch_that_fits, naming_the_batch
from ccf_plugin.engine.modes import evaluation_mode, seeded
from ccf_plugin.errors import CCFError, InputError, one_line
from ccf_plugin.measure.evaluate import AttackSettings, MeasuredSplit, Progress, find_head, measure
from ccf_plugin.measure.settings import ProbeOptions
from ccf_plugin.probe import CrossClassProbe, CrossClassResult
from ccf_plugin.runs.metrics import all_metrics
from ccf_plugin.training.setup import Parts
from ccf_plugin.zoo.attacks import Attack
from ccf_plugin.zoo.datasets import Split


@dataclass(frozen=True)
class Measured:
    """A model's result on the test split and, where there is one, on the validation split."""

    test: CrossClassResult
    validation: CrossClassResult | None


class Monitor:
    """Measures the models of a run, keeping for each what its attack has prepared."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._attacks: dict[nn.Module, Attack] = {}
        self._batch_size = parts.recipe.evaluate.batch_size

    def measure(self, model: nn.Module, progress: Progress) -> Measured:
        """Clean accuracy, RA and CAS; where the recipe probes clean images, C and CAS are of those."""
        recipe, parts = self._parts.recipe, self._parts
        if model not in self._attacks:
            self._attacks[model] = _attack(parts).build(model, len(parts.classes))
        if self._batch_size is None:
            forward = Forward(model, precision=parts.precision)
            with evaluation_mode(model):
                self._batch_size = batch_that_fits(forward, parts.input_size, parts.device)
        size = self._batch_size

        def on(split: Split, name: str, attack: AttackSettings | None) -> CrossClassResult:
            instances = recipe.probe.instances and name == "test"
            return measure(
                model,
                MeasuredSplit(split, parts.classes, parts.data_name, name),
                attack,
                model_name=recipe.model.name,
                probe=ProbeOptions(recipe.probe.head, recipe.probe.output, instances),
                batch_size=size,
                progress=progress,
                built=self._attacks[model],
            )

        attack = _attack(parts)
        with naming_the_batch("evaluate.batch_size", size):
            test = on(parts.test, "test", attack)
            if recipe.probe.inputs == "clean":
                test = replace(on(parts.test, "test", None), robust_accuracy=test.robust_accuracy)
            return Measured(test, None if parts.validation is None else on(parts.validation, "validation", attack))


def measure_model(parts: Parts, model: nn.Module, progress: Progress) -> Measured:
    """As a ``Monitor`` does, once."""
    return Monitor(parts).measure(model, progress)


def _attack(parts: Parts) -> AttackSettings:
    """The evaluation's."""
    evaluate, threat = parts.recipe.evaluate, parts.recipe.evaluation_threat()
    return AttackSettings(threat, evaluate.name, evaluate.options, parts.precision, evaluate.seed)


def check_measurable(parts: Parts) -> None:
    """Find the model's head, and run the evaluation's attack on two test images: what fails, fails before it costs.

    The model, its modes and the random state are as before. Each process checks for itself.

    Raises:
        InputError: there is no head, or not of the data's classes; the attack fails on this model.
    """
    with seeded(parts.recipe.evaluate.seed, parts.device):
        _check_head(parts)
        _check_attack(parts)


def _check_head(parts: Parts) -> None:
    recipe = parts.recipe
    try:
        with CrossClassProbe(parts.model, head=recipe.probe.head, output=recipe.probe.output) as probe:
            find_head(probe, parts.input_size, recipe.model.name, len(parts.classes))
            probe.features()
    except InputError as error:
        raise InputError(f"probe: {error}") from error


def _check_attack(parts: Parts) -> None:
    attack = _attack(parts).build(parts.model, len(parts.classes))
    images, labels = next(iter(parts.test.batches(2, parts.device)))
    try:
        with evaluation_mode(parts.model):
            attack(images, labels)
    except InputError as error:
        raise InputError(f"evaluate: {error}") from error
    except CCFError:
        raise
    except Exception as error:  # whatever a stranger's model and an attack can provoke in each other
        raise InputError(
            f"evaluate: expected a model that attack {attack.name} can attack, found that it fails on two images "
            f"({one_line(error, 200)}); let the model return its logits alone, or choose another evaluate.name"
        ) from error


def figures(measured: Mapping[str, Measured]) -> dict[str, float | None]:
    """An epoch row's figures, by the suffix of the weights measured: "" for the raw ones."""
    return {
        metric.name + suffix: metric.take(result)
        for suffix, of_weights in measured.items()
        for metric in all_metrics()
        if metric.take is not None
        and (metric.averaged or not suffix)
        and (result := of_weights.test if metric.split == "test" else of_weights.validation) is not None
    }
