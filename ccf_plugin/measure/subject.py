"""What is measured: a model, the test images that belong to it and the attack on them, settled before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ccf_plugin.engine.devices import job_device
from ccf_plugin.engine.memory import keep_freed_memory, naming_the_batch
from ccf_plugin.engine.precision import Precision, resolve_precision
from ccf_plugin.errors import InputError, some_of
from ccf_plugin.measure.choices import Choices
from ccf_plugin.measure.evaluate import Progress, measure
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.threat import ThreatModel, threat_model
from ccf_plugin.zoo.attacks import attack_class, build_attack
from ccf_plugin.zoo.datasets import Split, check_spec, load_data
from ccf_plugin.zoo.models import load_model
from ccf_plugin.zoo.python_code import is_python
from ccf_plugin.zoo.sources import LoadedModel, are_other_classes


@dataclass(frozen=True)
class Subject:
    """A loaded model on its device, with test images of its classes and the threat model (None: clean images)."""

    loaded: LoadedModel
    test: Split
    data_name: str
    classes: tuple[str, ...]
    threat: ThreatModel | None
    precision: Precision
    device: torch.device
    choices: Choices

    def measure(self, *, instances: bool = False, progress: Progress) -> CrossClassResult:
        """One pass over the test images (``measure.evaluate.measure``)."""
        with naming_the_batch("--batch-size", self.choices.batch_size):
            return measure(
                self.loaded.model,
                self.test,
                self.threat,
                classes=self.classes,
                model_name=self.loaded.spec,
                data_name=self.data_name,
                attack_name=self.choices.attack,
                batch_size=self.choices.batch_size,
                instances=instances,
                head=self.choices.head,
                output=self.choices.output,
                seed=self.choices.seed,
                precision=self.precision,
                progress=progress,
            )

    def describe_threat(self) -> dict[str, Any] | None:
        """How a result of ``measure`` will describe its attack, but for the seed; None for clean images."""
        if self.threat is None:
            return None
        attack = build_attack(self.choices.attack, self.loaded.model, self.threat, num_classes=len(self.classes))
        return {**attack.describe(), "precision": self.precision}


def load_subject(model: str, choices: Choices) -> Subject:
    """Load a model by its spec, with data and threat model as chosen, or its own.

    Raises:
        InputError: a choice that is impossible, contradictory or does not fit the model; as ``load_model`` and
            ``load_data`` do.
        UnavailableError: a model, data or device that is not to be had here.
    """
    limit, norm = choices.limit, choices.norm
    attack_given: dict[str, Any] = {
        name: value for name in ("norm", "eps", "step_size", "steps") if (value := getattr(choices, name)) is not None
    }
    if limit is not None and limit < 1:
        raise InputError(f"--limit: expected at least 1, found {limit}")
    if not 0 <= choices.seed < 2**32:
        raise InputError(f"--seed: expected 0 to {2**32 - 1}, found {choices.seed}")
    if choices.clean and (choices.attack or attack_given):
        raise InputError("expected --clean, or an attack's options, found both; leave one out")
    device = job_device(choices.device)
    precision = resolve_precision(choices.precision, device)  # type: ignore[arg-type]
    if choices.data is not None:
        check_spec(choices.data)
    if choices.attack is not None:
        attack_class(choices.attack)
    defaults: dict[str, Any] = {"norm": "Linf", "steps": 20}
    threat_model(**(defaults | attack_given))  # before anything is downloaded
    loaded = load_model(
        model, pretrained=choices.pretrained, checkpoint=choices.checkpoint, model_dir=choices.model_dir
    )
    own = loaded.threat if norm in (None, loaded.threat["norm"]) and not choices.clean else {}
    if choices.eps is not None:  # a step size belongs to its radius
        own = {key: value for key, value in own.items() if key != "step_size"}
    threat = None if choices.clean else threat_model(**(own | attack_given))
    if choices.data is None and loaded.data is None:
        raise InputError(f"expected --data for {model}, found none that it belongs to; see ccf probe --help")
    if choices.data is None and is_python(loaded.data):  # a file must not choose which code runs
        raise InputError(f"expected --data for {model}, whose data are of your own code; name it: --data {loaded.data}")
    images = load_data(
        choices.data or loaded.data or "",
        splits=("test",),
        root=choices.data_root,
        download=choices.download,
        preprocess=loaded.preprocess,
        test_limit=loaded.test_limit if limit is None and choices.data is None else limit,
    )
    if images.test is None:
        raise InputError(f"expected a test split in {images.name}, found none")
    if loaded.num_classes is not None and loaded.num_classes != len(images.classes):
        raise InputError(
            f"expected data of {loaded.num_classes} classes for {model}, found {len(images.classes)} in {images.name}; "
            "choose --data to match"
        )
    if loaded.class_names is not None and are_other_classes(loaded.class_names, images.classes):
        raise InputError(
            f"expected data of the classes {some_of(loaded.class_names)}, found {some_of(images.classes)}: their order "
            "must be the model's"
        )
    loaded.model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    classes = loaded.class_names or images.classes
    own_head = {name: getattr(loaded, name) for name in ("head", "output") if getattr(choices, name) is None}
    choices = replace(choices, **own_head)
    return Subject(loaded, images.test, images.name, classes, threat, precision, device, choices)
