"""What is measured of a model while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from ccf_plugin.measure.evaluate import Progress, measure
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.training.setup import Parts
from ccf_plugin.zoo.datasets import Split
from ccf_plugin.zoo.memory import naming_the_batch
from ccf_plugin.zoo.threat import ThreatModel


@dataclass(frozen=True)
class Measured:
    """A model's result on the test split and, where there is one, on the validation split."""

    test: CrossClassResult
    validation: CrossClassResult | None


def measure_model(parts: Parts, model: nn.Module, progress: Progress) -> Measured:
    """Clean accuracy, RA and CAS; where the recipe probes clean images, C and CAS are of those."""
    recipe = parts.recipe

    def on(split: Split, name: str, threat: ThreatModel | None) -> CrossClassResult:
        return measure(
            model,
            split,
            threat,
            classes=parts.classes,
            model_name=recipe.model.name,
            data_name=parts.data_name,
            split_name=name,
            attack_name=recipe.evaluate.name,
            attack_options=recipe.evaluate.options,
            batch_size=recipe.evaluate.batch_size,
            instances=recipe.probe.instances and name == "test",
            seed=recipe.evaluate.seed,
            precision=parts.precision,
            progress=progress,
        )

    threat = recipe.evaluation_threat()
    with naming_the_batch("evaluate.batch_size", recipe.evaluate.batch_size):
        test = on(parts.test, "test", threat)
        if recipe.probe.inputs == "clean":
            test = replace(on(parts.test, "test", None), robust_accuracy=test.robust_accuracy)
        return Measured(test, None if parts.validation is None else on(parts.validation, "validation", threat))


def figures(measured: Mapping[str, Measured]) -> dict[str, float | None]:
    """An epoch row's figures, by the suffix of the weights measured: "" for the raw ones."""
    found: dict[str, float | None] = dict.fromkeys(
        ("test_clean_accuracy", "test_robust_accuracy", "cas", "instance_cas")
    )
    for suffix, one in measured.items():
        found[f"cas{suffix}"] = one.test.cas
        if not suffix:
            found["instance_cas"] = one.test.instance_cas
        for name, result in (("test", one.test), ("validation", one.validation)):
            if result is not None:
                found[f"{name}_clean_accuracy{suffix}"] = result.clean_accuracy
                found[f"{name}_robust_accuracy{suffix}"] = result.robust_accuracy
    return found
