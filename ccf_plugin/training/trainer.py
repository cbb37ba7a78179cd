"""All that changes while a model trains, and the one training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.compilation import CompiledForward, build_forward
from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.memory import naming_the_batch
from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.engine.timing import Stopwatch
from ccf_plugin.training.averaging import WeightAverage
from ccf_plugin.training.batches import Batch, TrainingBatches
from ccf_plugin.training.distillation import Teacher, distilled, load_teacher
from ccf_plugin.training.objectives import StepOutput, build_objective
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import DistillSection
from ccf_plugin.training.schedule import learning_rate
from ccf_plugin.training.setup import Parts
from ccf_plugin.training.temporal_ensembling import TemporalEnsemble
from ccf_plugin.training.weight_perturbation import perturbed_weights
from ccf_plugin.zoo.attacks import build_attack, is_replayed
from ccf_plugin.zoo.streaming import on_device

_TRIED = 32  # test images, at an epoch's end


@dataclass
class _Sums:
    """This process's sums over an epoch's images so far; ``failed_at`` is the first step without a finite loss."""

    loss: Tensor
    correct: Tensor
    failed_at: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> _Sums:
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in fields(cls)))


@dataclass(frozen=True)
class Totals:
    """The mean loss of an epoch's images and the accuracy on what the loss saw; the step that failed, or 0."""

    loss: float
    accuracy: float
    failed_at: int


class Trainer:
    """A model in training. ``state`` holds whatever the rest of the training depends on."""

    def __init__(self, parts: Parts, processes: Processes, spent: Stopwatch | None = None) -> None:
        recipe = parts.recipe
        self._parts, self._recipe, self._processes = parts, recipe, processes
        self._spent = spent or Stopwatch()
        self.model, trained = processes.wrap(parts.model)
        first, end = (
            recipe.optim.batch_size * rank // processes.count for rank in (processes.rank, processes.rank + 1)
        )
        has_attack = recipe.objective.loss != "standard"
        self._forward = build_forward(
            self.model,
            precision=parts.precision,
            device=parts.device,
            compiled=recipe.compile,
            batch_size=end - first,
            work=parts.work(),
            is_replayed=has_attack and is_replayed(recipe.attack.name, recipe.training_threat()),
        )
        is_bare = trained is self.model
        self._trained_forward = self._forward if is_bare else Forward(trained, precision=parts.precision)
        torch.backends.cudnn.benchmark = True  # on a GPU: batches are of one shape, so the search is done once
        self.is_compiled = isinstance(self._forward, CompiledForward)
        self._objective = build_objective(recipe.objective)
        self._attack = build_attack(
            recipe.attack.name,
            self._forward,
            recipe.training_threat(),
            mode=recipe.attack.batchnorm if has_attack else "eval",
            options=recipe.attack.options,
            num_classes=len(parts.classes),
            fresh_noise=True,
        )
        self._clean_batches = TrainingBatches(
            on_device(parts.train.images, parts.device),
            parts.train.labels.to(parts.device),
            batch_size=recipe.optim.batch_size,
            seed=recipe.seed,
            padding=recipe.data.crop_padding,
        )
        self.batches = replace(
            self._clean_batches,
            augmentation=recipe.data.augmentation,
            cutout=recipe.data.cutout,
            rank=processes.rank,
            processes=processes.count,
        )
        self._optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.optim.lr,
            momentum=recipe.optim.momentum,
            weight_decay=recipe.optim.weight_decay,
            fused=parts.device.type == "cuda" or None,
        )
        self.average = None if recipe.average is None else WeightAverage(self.model, recipe.average)
        self._ensemble = None
        if recipe.ensembling is not None:
            size = len(parts.train), len(parts.classes)
            self._ensemble = TemporalEnsemble(recipe.ensembling, *size, parts.device)
        self._teachers = [self._teacher(section) for section in recipe.distill]
        self.step = 0  # steps done of the present epoch
        self._sums = _Sums.zeros(parts.device)

    def steps(self, epoch: int) -> Iterator[int]:
        """Train an epoch, from the restored step where there is one; yields the steps done after each."""
        if self.step == 0:
            # Every epoch draws from its own seed, apart from those of the batches' order; so does every process.
            torch.manual_seed((self._recipe.seed + 1) * 2_000_003 + epoch + 1_000_000_007 * self._processes.rank)
        self.model.train()
        for batch in self._spent.over("data", self.batches.epoch(epoch, skip=self.step)):
            with naming_the_batch("optim.batch_size", self._recipe.optim.batch_size):
                self._step(epoch, batch)
            yield self.step
        self._processes.share_buffers(self.model, *([] if self.average is None else [self.average.averaged]))

    def totals(self) -> Totals:
        """The epoch so far, over all processes; every process must ask."""
        sums = self._sums
        loss, correct = (self._processes.sum(torch.stack([sums.loss, sums.correct])) / len(self._parts.train)).tolist()
        failed_at = int(sums.failed_at) or (0 if self._is_finite() else self.step)
        return Totals(loss, correct, self._processes.largest(failed_at))

    def _is_finite(self) -> bool:
        """Whether weights and logits are; these in eval mode, where BatchNorm's statistics may be what fails."""
        images, _ = next(iter(self._parts.test.batches(_TRIED, self._parts.device)))
        with torch.no_grad(), evaluation_mode(self.model):
            logits = Forward(self.model, precision=self._parts.precision)(images)
        # One answer from the device, not one for each parameter.
        return bool(torch.stack([torch.isfinite(values).all() for values in (*self.model.parameters(), logits)]).all())

    def close_epoch(self) -> None:
        """The next step will be another epoch's first."""
        self.step, self._sums = 0, _Sums.zeros(self._parts.device)

    def averaged_model(self) -> nn.Module | None:
        """The averaged model as it is measured, or None where there is none yet."""
        if self.average is None or not self.average.has_moved:
            return None
        return self.average.for_evaluation(batch.images for batch in self._clean_batches.epoch(0))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by part and name; every process must ask."""
        sums = torch.stack([self._sums.loss, self._sums.correct])
        state = {
            "model": self.model.state_dict(),
            "optimizer": _optimizer_tensors(self._optimizer),
            "sums": {"all": self._processes.sum(sums)},
            "rng": {str(rank): one for rank, one in enumerate(self._processes.gather(_random_state()))},
        }
        if self.average is not None:
            state["average"] = self.average.averaged.state_dict()
        if self._ensemble is not None:
            state["ensemble"] = {"predictions": self._ensemble.predictions}
        return state

    def restore(self, states: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """Continue after ``step`` steps of an epoch, as ``state`` was then; with as many processes, exactly."""
        self.model.load_state_dict(states["model"])
        _restore_optimizer(self._optimizer, states.get("optimizer", {}))
        if self.average is not None:
            self.average.averaged.load_state_dict(states["average"])
        if self._ensemble is not None:
            self._ensemble.predictions.copy_(states["ensemble"]["predictions"])
        self.step = step
        if self._processes.is_main:
            self._sums.loss, self._sums.correct = states["sums"]["all"].to(self._parts.device)
        own = states["rng"].get(str(self._processes.rank))
        if own is not None:
            _set_random_state(own)

    def _step(self, epoch: int, batch: Batch) -> None:
        recipe = self._recipe
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optim, epoch - 1 + self.step / len(self.batches))
        gamma = recipe.awp.gamma if recipe.awp is not None and epoch > recipe.awp.start_epoch else 0.0
        if self._ensemble is not None and self._ensemble.weight(epoch):
            self._predict(self._ensemble, batch)
        adversarial = batch.images
        if recipe.objective.loss != "standard":
            with self._spent("attack"):
                adversarial = self._attack(batch.images, batch.labels)
        bare_loss = partial(self._loss, self._forward, epoch, batch, adversarial)
        with self._spent("weights' pass"), perturbed_weights(self.model, bare_loss, gamma, self._processes.mean):
            output = self._loss(self._trained_forward, epoch, batch, adversarial)
            self._processes.backward(output.loss)
        with self._spent("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)  # at once: the next attack needs no memory for gradients
        self.step += 1
        if self.average is not None:
            self.average.after_step(self.model, epoch, is_last=self.step == len(self.batches))
        # Sums stay on the device until the epoch ends: nothing in a step waits for it.
        if batch.share:
            loss = output.loss.detach() * (len(batch.labels) / batch.share)
            self._sums.loss += loss
            self._sums.correct += (output.logits.argmax(1) == batch.labels).sum()
            fails = ~torch.isfinite(loss) & (self._sums.failed_at == 0)
            self._sums.failed_at += fails * self.step

    def _loss(self, forward: nn.Module, epoch: int, batch: Batch, adversarial: Tensor) -> StepOutput:
        """The step's whole loss, scaled so that the processes' mean is the mean over the step's images."""
        output = self._objective(forward, batch.images, adversarial, batch.labels)
        loss = distilled(output, adversarial, self._teachers, epoch)
        if self._ensemble is not None and self._ensemble.weight(epoch):
            loss = loss + self._ensemble.loss(epoch, batch.indices, output.logits)
        return replace(output, loss=loss if batch.share == 1 else loss * batch.share)

    def _predict(self, ensemble: TemporalEnsemble, batch: Batch) -> None:
        with torch.no_grad(), evaluation_mode(self.model):
            predictions = self._forward(batch.images)
        if self._processes.count == 1:
            ensemble.update(batch.indices, predictions)
            return
        # Every process needs the predictions of all, since the next epoch deals the images out anew.
        for indices, theirs, share in self._processes.gather((batch.indices.cpu(), predictions.cpu(), batch.share)):
            if share:
                ensemble.update(indices.to(predictions.device), theirs.to(predictions.device))

    def _teacher(self, section: DistillSection) -> Teacher:
        if section.teacher == "average" and self.average is not None:
            return Teacher(Forward(self.average.averaged, precision=self._parts.precision), section, self.average)
        return load_teacher(
            section,
            classes=self._parts.classes,
            input_size=self._parts.input_size,
            device=self._parts.device,
            precision=self._parts.precision,
        )


def _random_state() -> Tensor:
    """The generators' states, the CPU's first, in one uint8 tensor."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def _set_random_state(state: Tensor) -> None:
    cpu = len(torch.get_rng_state())
    torch.set_rng_state(state[:cpu].cpu())
    if len(state) > cpu and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[cpu:].cpu())


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's tensors by "index.name", for a file; its groups follow from the recipe."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``_optimizer_tensors`` gave; ValueError or IndexError where it was another model's.

    A file keeps no strides. A fused step walks a parameter and its momentum side by side through memory, so that each
    gets back its parameter's strides, and its device.
    """
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        if tensor.shape != parameters[int(index)].shape:
            raise ValueError(f"optimizer.{key} has the shape {tuple(tensor.shape)}")
        like = torch.empty_like(parameters[int(index)], dtype=tensor.dtype)  # with its strides
        state.setdefault(int(index), {})[name] = like.detach().copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
