"""What is measured: a model, the test images that belong to it and the attack on them, settled before anything runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccf_plugin.engine.devices import job_device
from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.memory import batch_size_errors, keep_freed_memory
from ccf_plugin.engine.modes import device_of, seeded
from ccf_plugin.engine.precision import resolve_precision
from ccf_plugin.errors import Fault, InputError, counted, some_of
from ccf_plugin.measuring.evaluate import AttackSettings, Batches, MeasuredSplit, Progress, check_input, measure
from ccf_plugin.measuring.mismatch import note_mismatch
from ccf_plugin.measuring.provenance import images_fingerprint, weights_fingerprint, with_command
from ccf_plugin.measuring.settings import AttackChoice, ImageChoice, ProbeOptions, Settings
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.runs.layout import checkpoint_of
from ccf_plugin.zoo.attack_names import attack_class
from ccf_plugin.zoo.attacks import Attack
from ccf_plugin.zoo.datasets import check_spec, load_data
from ccf_plugin.zoo.models import load_model
from ccf_plugin.zoo.normalizations import usual_normalization
from ccf_plugin.zoo.python_code import is_python
from ccf_plugin.zoo.sources import SOURCES, LoadedModel, are_other_classes
from ccf_plugin.zoo.specs import find

_log = logging.getLogger(__name__)
# What ``Subject.provenance`` says in its own words; settings beside these count as they are given.
_SETTLED = {
    *("clean", "attack", "norm", "eps", "step_size", "steps", "seed", "precision", "data", "limit", "downscale"),
    *("head", "output"),
    *("instances", "batch_size", "checkpoint", "pretrained", "device", "model_dir", "data_root", "download"),
}


@dataclass(frozen=True)
class Subject:
    """A loaded model on its device, with test images of its classes and the attack on them (None: clean images).

    ``chosen`` is what else was chosen, and is recorded: the checkpoint's path, the limit of the images, ….
    """

    loaded: LoadedModel
    data: MeasuredSplit
    attack: AttackSettings | None
    device: torch.device
    probe: ProbeOptions = ProbeOptions()
    batch_size: int = 250
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def run(self, *, instances: bool = False, progress: Progress = lambda batches, _: batches) -> CrossClassResult:
        """One pass over the test images (``measuring.evaluate.measure``), without provenance."""
        with batch_size_errors("batch_size", self.batch_size):
            return measure(
                self.loaded.model,
                self.data,
                self.attack,
                model_name=self.loaded.spec,
                probe=replace(self.probe, instances=instances),
                batch_size=self.batch_size,
                progress=lambda batches, total: self.with_warning(progress(batches, total)),
            )

    def measure(self, *, instances: bool = False, progress: Progress = lambda batches, _: batches) -> CrossClassResult:
        """One pass over the test images, as ``run``, with its provenance."""
        result = self.run(instances=instances, progress=progress)
        return replace(result, provenance=self.provenance(instances=instances))

    def provenance(self, *, instances: bool = False) -> dict[str, Any]:
        """What the figures of ``measure`` depend on, see ``measuring.provenance``.

        ``batch_size`` is None where no figure depends on it.
        """
        attack, settings = self.build_attack(), self.attack
        described = None
        by_batch = self.device.type != "cpu"
        if attack is not None and settings is not None:
            described = {**attack.describe(), "options": dict(settings.options)}
            by_batch |= not attack.is_per_image
        return with_command(
            {
                "model": self.loaded.spec if find(SOURCES, self.loaded.spec) else None,  # a file says it of itself
                "checkpoint": None,
                "weights": self.weights_hash,
                "data": self.data.name,
                "images": self.images_hash,
                "limit": None,
                "input_size": self.data.input_size,
                "attack": described,
                "seed": None if settings is None else settings.seed,
                "precision": None if settings is None else settings.precision,
                "batch_size": self.batch_size if described and by_batch else None,
                "head": self.probe.head,
                "output": self.probe.output,
                "instances": instances,
                "device": str(self.device),
                **({} if self.data.downscale == 1 else {"downscale": self.data.downscale}),
                **self.chosen,
            }
        )

    def with_warning(self, batches: Batches) -> Batches:
        """The batches; after the first, which found nothing wrong, a warning says where weights may be random."""
        for number, batch in enumerate(batches):
            yield batch
            if number == 0:
                self.warn()

    def warn(self) -> None:
        """Warn where the weights are those that the user's own code makes."""
        spec = self.loaded.spec
        if is_python(spec) and self.chosen.get("checkpoint") is None:
            message = (
                f"{spec} without a checkpoint has the weights that its code makes: random ones, unless it loads some"
            )
            warnings.warn(message, stacklevel=2)

    @cached_property
    def weights_hash(self) -> str:
        """The ``provenance.weights_fingerprint``."""
        return weights_fingerprint(self.loaded.model)

    @cached_property
    def images_hash(self) -> str:
        """The ``provenance.images_fingerprint``."""
        return images_fingerprint(self.data.split)

    def forward(self) -> Forward:
        """The model as images → float32 logits."""
        return Forward(self.loaded.model, output=self.probe.output, classes=len(self.data.classes))

    def build_attack(self) -> Attack | None:
        """The attack against the model; None for clean images."""
        if self.attack is None:
            return None
        return self.attack.build(self.loaded.model, len(self.data.classes), self.probe.output)

    def describe_attack(self) -> dict[str, Any] | None:
        """How a result of ``measure`` will describe its attack, without the seed; None for clean images."""
        attack, settings = self.build_attack(), self.attack
        return None if attack is None or settings is None else {**attack.describe(), "precision": settings.precision}


def measure_with_seeds(
    subject: Subject,
    seeds: int,
    *,
    instances: bool = False,
    progress: Callable[[int], Progress] = lambda _: lambda batches, _: batches,
) -> CrossClassResult:
    """Measure with ``seeds`` seeds, from the attack's own on.

    Args:
        seeds: 1 or more.
        instances: measure I-CAS too.
        progress: told the seed, gives what wraps the batches.

    Returns:
        The first seed's result; with several seeds ``repeats`` has the figures of all.

    Raises:
        InputError: several seeds of clean images, which have none; as ``Subject.measure``.
    """
    attack = subject.attack
    if attack is None and seeds > 1:
        raise InputError(Fault("seeds", "an attack to repeat", "clean images, which give the same figures each time"))
    first = subject.measure(instances=instances, progress=progress(0 if attack is None else attack.seed))
    if attack is None or seeds == 1:
        return first
    others = [
        replace(subject, attack=replace(attack, seed=seed)).run(instances=instances, progress=progress(seed))
        for seed in range(attack.seed + 1, attack.seed + seeds)
    ]
    return replace(first, repeats=tuple(result.figures() for result in (first, *others)))


def load_subject(model: str, settings: Settings = Settings()) -> Subject:
    """Load a model by its spec, with data and attack as chosen, or its own.

    Raises:
        InputError: a setting that is impossible or does not fit the model; as ``load_model`` and ``load_data`` do.
        UnavailableError: a model, data or device that is not to be had here.
    """
    images, chosen, weights = settings.images, settings.attack, settings.weights
    device = job_device(settings.device)
    precision = resolve_precision(chosen.precision, device)  # type: ignore[arg-type]
    if images.data is not None:
        check_spec(images.data)
    if chosen.attack is not None:
        attack_class(chosen.attack)
    chosen.threat_model({})  # before anything is downloaded
    stated = {name: value for name, value in vars(weights).items() if name != "normalize"}
    if weights.normalize is not None:
        stated |= usual_normalization(weights.normalize)._asdict()
    loaded = load_model(model, **stated)
    threat = chosen.threat_model(loaded.threat)
    data = _load_images(model, loaded, images)
    loaded.model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    if weights.checkpoint is not None or not loaded.is_normalized:
        note_mismatch(loaded.model, data, device=device, is_normalized=loaded.is_normalized)
    attack = None if threat is None else AttackSettings(threat, chosen.attack, {}, precision, chosen.seed)
    head = loaded.head if settings.probe.head is None else settings.probe.head
    output = loaded.output if settings.probe.output is None else settings.probe.output
    probe = replace(settings.probe, head=head, output=output)
    subject = Subject(loaded, data, attack, device, probe, settings.batch_size, _chosen(loaded, settings))
    own = replace(images, data_root=None, download=False) == ImageChoice()
    if own and loaded.test_images is not None and loaded.test_images != subject.images_hash:
        warnings.warn(
            f"{data.name} are other test images than those that {loaded.spec} was measured on in training: they have "
            "changed, or their path leads elsewhere from this folder",
            stacklevel=2,
        )
    for note in _not_used(loaded, data, settings, is_clean=attack is None):
        warnings.warn(note, stacklevel=2)
    _log.info("%s, %d images of %s, on %s", loaded.spec, len(data.split), data.name, device)
    return subject


def _not_used(loaded: LoadedModel, data: MeasuredSplit, settings: Settings, *, is_clean: bool) -> Iterator[str]:
    """Notes on settings that change nothing of this model: of two that are compared, the other one may need them."""
    output = settings.probe.output
    if output is not None:
        with seeded(0, device_of(loaded.model)):
            returned = check_input(loaded.model, tuple(data.input_size), loaded.spec, attacked=False)
        if isinstance(returned, Tensor):
            yield f"output {output!r} is not used: {loaded.spec} returns one tensor"
    if is_clean and settings.attack.precision != AttackChoice().precision:
        yield f"precision {settings.attack.precision} is not used: it is the attack's, and the images are clean"
    has_own = settings.weights.checkpoint is not None or is_python(loaded.spec) or not find(SOURCES, loaded.spec)
    if not settings.weights.pretrained and has_own:
        yield f"no random weights are taken: {loaded.spec} has those of its file or code"


def _chosen(loaded: LoadedModel, settings: Settings) -> dict[str, Any]:
    """The checkpoint's path, the images' limit, and every further setting that is not its default."""
    path = settings.weights.checkpoint
    if path is None and find(SOURCES, loaded.spec) is None:
        path = Path(loaded.spec)
        path = checkpoint_of(path, "best") if path.is_dir() else path
    images, defaults = settings.images, Settings().flat()
    limit = loaded.test_limit if images.limit is None and images.data is None else images.limit
    others = {name: value for name, value in settings.flat().items() if name not in _SETTLED}
    return {
        "checkpoint": None if path is None else str(path),
        "limit": limit,
        **{name: value for name, value in others.items() if value != defaults[name]},
    }


def _load_images(model: str, loaded: LoadedModel, images: ImageChoice) -> MeasuredSplit:
    """The chosen test images, or the model's own; they must be of its classes."""
    spec, limit = images.data or loaded.data, images.limit
    downscale = loaded.downscale if images.downscale is None else images.downscale
    if spec is None:
        raise InputError(Fault("data", f"the data for {model}", "none that it belongs to", "name some by {data}"))
    if images.data is None and is_python(loaded.data):  # a file must not choose which code runs
        fault = Fault("", f"{{data}} for {model}", "data of your own code", f"name it: {{data}} {loaded.data}")
        raise InputError(fault)
    data = load_data(
        spec,
        splits=("test",),
        root=images.data_root,
        download=images.download,
        # A model's own data have the labels that it was trained with, however their folders sort.
        classes=images.classes or (loaded.class_names if spec == loaded.data else None),
        downscale=downscale,
        preprocess=loaded.preprocess,
        test_limit=loaded.test_limit if limit is None and images.data is None else limit,
    )
    if data.test is None:
        raise InputError(f"expected a test split in {data.name}, found none")
    channels = data.test.images.shape[1]
    if loaded.input_size is not None and loaded.input_size[0] != channels:  # a normalisation may spread grey over three
        expected = f"images of {counted(loaded.input_size[0], 'channel')} for {model}"
        raise InputError(Fault("", expected, f"{channels} in {data.name}", "choose {data} to match, or convert it"))
    if loaded.num_classes not in (None, len(data.classes)):
        expected = f"data of {loaded.num_classes} classes for {model}"
        raise InputError(Fault("", expected, f"{len(data.classes)} in {data.name}", "choose {data} to match"))
    if loaded.class_names is not None and are_other_classes(loaded.class_names, data.classes):
        raise InputError(
            f"expected data of the classes {some_of(loaded.class_names)}, found {some_of(data.classes)}: their order "
            "must be the model's"
        )
    return MeasuredSplit(data.test, loaded.class_names or data.classes, data.name, downscale=downscale)
