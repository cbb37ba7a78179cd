"""How a finished model is to be measured: what a user may choose. Imports nothing heavy, since the command line makes
its options of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

from ccf_plugin.errors import Fault, InputError, check_at_least
from ccf_plugin.threat import ThreatModel, norm_named, threat_model

# What is said of a model with weights of the user's own.
WEIGHT_SETTINGS = ("checkpoint", "checkpoint_key", "options", "num_classes", "mean", "std", "normalize")


@dataclass(frozen=True)
class WeightChoice:
    """Where a model's weights come from; what these are is said by ``zoo.models.load_model``.

    ``normalize`` is a data set whose usual mean and std the model was trained with, in place of both. Raises InputError
    for that beside them.
    """

    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    options: Mapping[str, Any] | None = None
    num_classes: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    normalize: str | None = None
    pretrained: bool = True
    model_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.normalize is not None and (self.mean is not None or self.std is not None):
            raise InputError(Fault("", "{normalize}, or {mean} and {std}", "both", "leave {normalize} out"))


@dataclass(frozen=True)
class ImageChoice:
    """Which test images: a data spec (None: the model's own), and at most how many (None: all, or the model's own).

    ``downscale`` (None: the model's own), ``classes``, a file of class names, and ``data_root`` are as
    ``zoo.datasets.load_data`` takes them.

    Raises InputError for a limit or a downscale below 1.
    """

    data: str | None = None
    limit: int | None = None
    downscale: int | None = None
    classes: Path | None = None
    data_root: Path | None = None
    download: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, limit=self.limit, downscale=self.downscale)


@dataclass(frozen=True)
class AttackChoice:
    """Under which attack, or on clean images; None is the model's own, else the default of ``threat.threat_model``.

    ``precision`` is that of the attack's passes: "float32", "bf16" or "auto". Raises InputError for clean images beside
    an attack and for a seed that torch does not take.
    """

    clean: bool = False
    attack: str | None = None
    norm: str | None = None
    eps: float | str | None = None
    step_size: float | str | None = None
    steps: int | None = None
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(Fault("seed", f"0 to {2**32 - 1}", str(self.seed)))
        if self.clean and self.stated:
            others = " and ".join(f"{{{name}}}" for name in self.stated)
            raise InputError(Fault("", "{clean} or an attack", "both", f"leave one out: {{clean}}, or {others}"))

    @property
    def stated(self) -> dict[str, Any]:
        """The stated fields of the attack, by name."""
        names = ("attack", "norm", "eps", "step_size", "steps")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def threat_model(self, default: Mapping[str, Any]) -> ThreatModel | None:
        """The threat model, or None for clean images.

        Args:
            default: the model's own, or some of its fields. They count where their norm is the one that is wanted; the
                step size counts only with its eps.

        Raises:
            InputError: as ``threat.threat_model``.
        """
        if self.clean:
            return None
        known = dict(default) if self.norm is None or norm_named(self.norm) == default.get("norm") else {}
        if self.eps is not None:
            known.pop("step_size", None)
        return threat_model(**known | {name: value for name, value in self.stated.items() if name != "attack"})


@dataclass(frozen=True)
class ProbeOptions:
    """How the probe measures: ``head``, ``output``, ``instances``, ``max_per_class`` and ``centre`` as
    ``CrossClassProbe`` takes them. A run's own head and output count where these are None."""

    head: str | None = None
    output: int | str | None = None
    instances: bool = False
    max_per_class: int | None = None
    centre: bool = False


@dataclass(frozen=True)
class Settings:
    """All that may be chosen about a measurement. ``Settings.of(data="digits", eps="4/255")`` takes single ones."""

    weights: WeightChoice = WeightChoice()
    images: ImageChoice = ImageChoice()
    attack: AttackChoice = AttackChoice()
    probe: ProbeOptions = ProbeOptions()
    batch_size: int = 250
    device: str = "auto"

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Settings of these values, by the names of ``flat``; the others have their defaults."""
        return cls().with_values(**values)

    def with_values(self, **values: Any) -> Self:
        """These settings with other values, by the names of ``flat``."""
        unknown = values.keys() - self.flat().keys()
        if unknown:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        changed: Self = _filled(self, values)
        return changed

    def flat(self) -> dict[str, Any]:
        """Every single setting by its name, which no two parts share."""
        return _leaves(self)


def _leaves(part: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in vars(part).items():
        leaves |= _leaves(value) if is_dataclass(value) else {name: value}
    return leaves


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    changed = {
        name: _filled(value, values) if is_dataclass(value) else values.get(name, value)
        for name, value in vars(part).items()
    }
    return replace(part, **changed)
