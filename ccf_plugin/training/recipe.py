"""The schema of a recipe: everything that determines a training run, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from ccf_plugin.files import PICTURES, flattened
from ccf_plugin.runs.alarms import ALARMS
from ccf_plugin.threat import Pixels, ThreatModel, threat_model
from ccf_plugin.training.objectives import find_objective, is_adversarial, loss_forms

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Ramp = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


def _check_loss(name: str) -> str:
    if find_objective(name) is None:
        raise PydanticCustomError("loss", "Input should be " + loss_forms())
    return name


def _check_pictures(formats: Any) -> bool | list[str]:
    known = [ending.removeprefix(".") for ending in PICTURES]
    if isinstance(formats, bool) or (isinstance(formats, list) and all(name in known for name in formats)):
        return formats
    raise PydanticCustomError("pictures", f"Input should be true, false or a list of some of {', '.join(known)}")


def _ramped(weight: float, ramp: list[int] | None, epoch: int) -> float:
    """0 up to the ramp's first epoch, rising linearly to the whole weight at its second; the whole without a ramp."""
    start, end = ramp or (0, 0)
    if ramp is None or epoch >= end:
        return weight
    return weight * (epoch - start) / (end - start) if epoch > start else 0.0


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """[model]: a name that zoo.models.build_model knows; mean and std become a normalisation layer of the model.

    weights is where training starts: a run (its best checkpoint) or a file of any code's; checkpoint_key chooses among
    several state dicts in it.
    """

    name: str
    weights: str | None = None
    checkpoint_key: str | None = None
    options: dict[str, Any] = {}
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None


class DataSection(_Section):
    """[data]: images, augmentation, limits. Image k of class c is the k-th in the data's own order.

    root is where named data sets lie (None: CCF_DATA, else data); classes is a file of class names, one a line.

    A crop shows up to crop_padding pixels beyond the border: the image reflected there, or zeros. cutout is the side in
    pixels of a square that is blackened at a random place of each training image; validation is how many training
    images are held out, evenly over the classes and the last of each. downscale replaces squares of so many pixels a
    side by their means. extra names further data, such as generated ones: of each batch extra_share (0.5 where silent)
    are images of it, of its training split or else its only one, and an epoch still has as many images as without. mix
    blends each image with another of its batch ("mixup"), or pastes a part of that into it ("cutmix"), and shares the
    label between both; mix_alpha is that of the share's Beta distribution.
    """

    name: str
    root: str | None = None
    classes: str | None = None
    augmentation: Literal["none", "crop-flip", "crop"] = "none"
    crop_padding: Annotated[int, Field(ge=1)] = 4
    crop_border: Literal["reflect", "zero"] = "reflect"
    cutout: Annotated[int, Field(ge=0)] = 0
    validation: Annotated[int, Field(ge=1)] | None = None
    train_per_class: Annotated[int, Field(ge=1)] | None = None
    test_limit: Annotated[int, Field(ge=1)] | None = None
    downscale: Annotated[int, Field(ge=1)] = 1
    extra: str | None = None
    extra_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    mix: Literal["none", "mixup", "cutmix"] = "none"
    mix_alpha: Annotated[float, Field(gt=0)] = 1.0


class AttackSection(_Section):
    """[attack]: the inner maximisation of training, a torchattacks class.

    Over the first warmup_epochs eps rises linearly, epoch by epoch, and the step size with it. batchnorm is the model's
    mode meanwhile; where it is silent, a recipe's file means that of the loss's own code.
    """

    name: str | None = None
    norm: Literal["Linf", "L2"] = "Linf"
    eps: Pixels | None = None
    step_size: Pixels | None = None
    steps: Annotated[int, Field(ge=1)] = 10
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    batchnorm: Literal["train", "eval"] = "train"
    options: dict[str, Any] = {}


class ObjectiveSection(_Section):
    """[objective]: what a step minimises. beta weighs the divergence of TRADES (default 6) or MART (default 5).

    loss = "python:package.module:function" is the user's own (``training.objectives.build_objective``), called with
    ``options``.
    """

    loss: Annotated[str, AfterValidator(_check_loss)] = "madry"
    options: dict[str, Any] = {}
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beta: Annotated[float, Field(ge=0)] | None = None

    @property
    def is_adversarial(self) -> bool:
        """Whether it trains on adversarial images; the user's own loss, which is not loaded for this, always does."""
        return is_adversarial(self.loss)


class DistillSection(_Section):
    """[[distill]]: a teacher's share λ = weight of the loss at a temperature T; teacher "average" is [average]'s.

    A teacher with the user's weights has checkpoint and the keys behind it, as zoo.models.load_model takes them.
    With ramp = [start, end], λ is 0 up to epoch start and rises linearly until end; from there it is weight_after,
    or weight where that is silent.
    """

    teacher: str
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    options: dict[str, Any] = {}
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None
    weight: Annotated[float, Field(ge=0, le=1)]
    temperature: Annotated[float, Field(gt=0)] = 1.0
    ramp: Ramp | None = None
    weight_after: Annotated[float, Field(ge=0, le=1)] | None = None

    def weight_at(self, epoch: int) -> float:
        """λ in an epoch (counted from 1): λ_t of the supplement's Algorithm 2, weight_after standing for its 1."""
        if self.weight_after is not None and self.ramp is not None and epoch >= self.ramp[1]:
            return self.weight_after
        return _ramped(self.weight, self.ramp, epoch)


class CrossClassSection(_Section):
    """[crossclass]: CAS of the step's images over K(K - 1), or what of it is beyond chance, as a term of the loss.

    The loss falls by ``weight`` times it: above 0 training is to share more, below 0 less. ramp is as in [[distill]].
    """

    term: Literal["cas", "excess"] = "cas"
    weight: float
    ramp: Ramp | None = None

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch (counted from 1)."""
        return _ramped(self.weight, self.ramp, epoch)


class AverageSection(_Section):
    """[average]: an average of the weights, evaluated, probed and saved beside the raw ones.

    It moves in the epochs after start_epoch, up to stop_epoch where that is given.
    """

    kind: Literal["ema", "swa"]
    every: Literal["step", "epoch"] = "step"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    start_epoch: Annotated[int, Field(ge=0)] = 0
    stop_epoch: Annotated[int, Field(ge=1)] | None = None


class EnsemblingSection(_Section):
    """[ensembling]: temporal ensembling, an additional loss of this weight towards each image's own past predictions:
    the squared difference, averaged over images and classes.

    They are averaged with ``decay`` from epoch ramp[0] on; the weight rises from there and is full at ramp[1].
    """

    weight: Annotated[float, Field(ge=0)] = 300.0
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    ramp: Ramp = [90, 150]


class PerturbationSection(_Section):
    """[awp]: adversarial weight perturbation of relative size gamma, after start_epoch epochs.

    kind "sam" is sharpness-aware minimisation: all weights together, by gamma in their gradient's direction.
    """

    kind: Literal["awp", "sam"] = "awp"
    gamma: Annotated[float, Field(gt=0)] = 0.01
    start_epoch: Annotated[int, Field(ge=0)] = 0


class OptimSection(_Section):
    """[optim]: SGD or AdamW, whose first moment's decay is momentum.

    decay_all = false leaves normalisation layers and biases without weight decay; clip_norm bounds the gradient's norm,
    over all weights. multistep multiplies the rate by decay_rate after each of decay_epochs; cyclic peaks half-way;
    points = [[epochs done, rate], …] are joined by straight lines.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    nesterov: bool = False
    decay_all: bool = True
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    batch_size: Annotated[int, Field(ge=1)] = 128
    epochs: Annotated[int, Field(ge=1)] = 200
    schedule: Literal["multistep", "cosine", "cyclic", "linear", "constant", "points"] = "multistep"
    points: list[Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)]] = []
    decay_epochs: list[Annotated[int, Field(ge=1)]] = [100, 150]
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[int, Field(ge=0)] = 0


class EvaluateSection(_Section):
    """[evaluate]: the attack that measures RA, in eval mode; norm and eps are [attack]'s where silent.

    select names the split whose accuracy chooses the best epoch: RA, or clean accuracy after standard training. The
    test split flatters the best epoch; "validation" needs data.validation. Where batch_size is silent, it is 250, and
    on CUDA as many as fit, up to 1000.
    """

    name: str | None = None
    norm: Literal["Linf", "L2"] | None = None
    eps: Pixels | None = None
    step_size: Pixels | None = None
    steps: Annotated[int, Field(ge=1)] = 20
    options: dict[str, Any] = {}
    batch_size: Annotated[int, Field(ge=1)] | None = None
    seed: Seed = 0
    every: Annotated[int, Field(ge=1)] = 1
    select: Literal["test", "validation"] = "test"


class ProbeSection(_Section):
    """[probe]: what is measured at evaluated epochs, and which of them leave result files and pictures.

    instances adds I-CAS, gradients the norm and the alignment of the test images' gradients (``measuring.gradients``).
    head names the layer where it cannot be found, and output the entry of the model's output that holds the logits.
    """

    head: str | None = None
    output: int | str | None = None
    inputs: Literal["adversarial", "clean"] = "adversarial"
    instances: bool = False
    gradients: bool = False
    every: Annotated[int, Field(ge=1)] = 1
    pictures: Annotated[bool | list[str], PlainValidator(_check_pictures)] = True

    @property
    def picture_endings(self) -> list[str]:
        """The endings of an epoch's picture files."""
        if isinstance(self.pictures, list):
            return [f".{name}" for name in self.pictures]
        return [".png"] if self.pictures else []


class CheckpointSection(_Section):
    """[checkpoints]: a checkpoint in epochs/ at each multiple of ``every``, beside best and last; 0 for none."""

    every: Annotated[int, Field(ge=0)] = 0


class StopSection(_Section):
    """[stop]: end the run when one of these alarms stands at ``patience`` evaluated epochs in a row."""

    on: Annotated[list[Literal[tuple(ALARMS)]], Field(min_length=1)]  # type: ignore[valid-type]
    patience: Annotated[int, Field(ge=1)] = 1


class PublishedFigures(_Section):
    """What was published of one epoch, or of the "best" or the "last"; accuracies are fractions."""

    at: Annotated[int, Field(ge=1)] | Literal["best", "last"]
    clean_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    robust_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    cas: Annotated[float, Field(ge=0)] | None = None


class FurtherPublished(_Section):
    """[[published.also]]: what another source says of the same setting, by a short name; why says why it may differ."""

    name: str
    source: str
    why: str | None = None
    figures: Annotated[list[PublishedFigures], Field(min_length=1)]


class PublishedSection(_Section):
    """[published]: the figures to compare with. They belong to their own file: one that builds on it has none."""

    source: str
    figures: Annotated[list[PublishedFigures], Field(min_length=1)]
    also: list[FurtherPublished] = []
    changed: list[str] = []  # overrides of the recipe that they belong to


class Recipe(_Section):
    """A training run: with the data, one machine and one set of versions it determines every bit of it.

    Where ``device``, ``precision``, ``compile`` or ``threads`` (CPU; torch's own choice where silent) are left open,
    the machine settles them, and environment.json says how; ``precision`` is written into the run's own recipe.toml.

    The state that a resumed run needs is saved at every epoch's end and within it every ``checkpoint_minutes``.
    """

    seed: Seed = 0
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    sync_batchnorm: bool = False
    model: ModelSection
    data: DataSection
    attack: AttackSection = AttackSection()
    objective: ObjectiveSection = ObjectiveSection()
    distill: list[DistillSection] = []
    average: AverageSection | None = None
    ensembling: EnsemblingSection | None = None
    awp: PerturbationSection | None = None
    crossclass: CrossClassSection | None = None
    optim: OptimSection = OptimSection()
    evaluate: EvaluateSection = EvaluateSection()
    probe: ProbeSection = ProbeSection()
    checkpoints: CheckpointSection = CheckpointSection()
    stop: StopSection | None = None
    published: PublishedSection | None = None

    def training_threat(self, epoch: int | None = None) -> ThreatModel:
        """The threat model that training's attack follows in an epoch (counted from 1), or after its warm-up (None)."""
        whole = training_threat(self.attack.model_dump())
        if epoch is None or epoch >= self.attack.warmup_epochs:
            return whole
        share = epoch / self.attack.warmup_epochs
        return replace(whole, eps=whole.eps * share, step_size=whole.step_size * share)

    @property
    def passes(self) -> int:
        """How often an epoch passes each image forward and backward: in the attack's steps, and for the loss."""
        return 1 + self.training_threat().steps * self.objective.is_adversarial

    def evaluation_threat(self) -> ThreatModel:
        """The threat model that measures RA; norm and eps are the training attack's where silent."""
        return evaluation_threat(self.attack.model_dump(), self.evaluate.model_dump())

    def flat(self) -> dict[str, Any]:
        """Every key that has a value and a say in the run, as in "optim.epochs"."""
        return flattened(self.model_dump(exclude_none=True, exclude={"published"}))

    def as_toml(self) -> str:
        """The whole recipe with every default spelled out, as TOML."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def training_threat(attack: Mapping[str, Any]) -> ThreatModel:
    """The threat model of an [attack] table, which may still be unchecked; raises InputError where it is impossible."""
    eps, step_size = attack.get("eps"), attack.get("step_size")
    return threat_model(norm=attack.get("norm", "Linf"), eps=eps, step_size=step_size, steps=attack.get("steps", 10))


def evaluation_threat(attack: Mapping[str, Any], evaluate: Mapping[str, Any]) -> ThreatModel:
    """The threat model of an [evaluate] table beside an [attack] table."""
    norm, eps = evaluate.get("norm") or attack.get("norm", "Linf"), evaluate.get("eps")
    if eps is None and norm == attack.get("norm", "Linf"):
        eps = attack.get("eps")
    return threat_model(norm=norm, eps=eps, step_size=evaluate.get("step_size"), steps=evaluate.get("steps", 20))
