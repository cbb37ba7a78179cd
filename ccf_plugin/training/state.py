"""All that changes while a model trains: the state that is saved, from which a run continues exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.training.averaging import WeightAverage
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import OptimSection
from ccf_plugin.training.setup import Parts
from ccf_plugin.training.temporal_ensembling import TemporalEnsemble

_CHECKED = 32  # test images whose logits are looked at when an epoch ends


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


class TrainingState:
    """Weights, optimiser, averages, the epoch's sums, and ``step``, the steps that are done of the present epoch.

    ``model`` is the bare model; ``trained`` the one whose backward pass averages gradients over processes.
    """

    def __init__(self, parts: Parts, processes: Processes) -> None:
        recipe = parts.recipe
        self._parts, self._processes = parts, processes
        self.model, self.trained = processes.wrap(parts.model)
        self.optimizer = build_optimizer(self.model, recipe.optim, fused=parts.device.type == "cuda" or None)
        self.average = None if recipe.average is None else WeightAverage(self.model, recipe.average)
        self.ensemble = None
        if recipe.ensembling is not None:
            images = len(parts.train) + (0 if parts.extra is None else len(parts.extra))
            self.ensemble = TemporalEnsemble(recipe.ensembling, images, len(parts.classes), parts.device)
        self.withstood: Tensor | None = None  # (N,) bool: the test images that did at the most robust epoch
        self.step = 0
        self._sums = _Sums.zeros(parts.device)

    def add(self, loss: Tensor, correct: Tensor) -> None:
        """Add the present step's summed loss and number of right answers. They stay on the device: nothing waits."""
        self._sums.loss += loss
        self._sums.correct += correct
        fails = ~torch.isfinite(loss) & (self._sums.failed_at == 0)
        self._sums.failed_at += fails * self.step

    def totals(self) -> Totals:
        """The epoch so far, over all processes; every process must call this."""
        sums = self._sums
        loss, correct = (self._processes.sum(torch.stack([sums.loss, sums.correct])) / len(self._parts.train)).tolist()
        failed_at = int(sums.failed_at) or (0 if self._is_finite() else self.step)
        return Totals(loss, correct, self._processes.largest(failed_at))

    def close_epoch(self) -> None:
        """Begin the next epoch: its first step comes next."""
        self.step, self._sums = 0, _Sums.zeros(self._parts.device)

    def averaged_model(self, batches: Iterable[Tensor]) -> nn.Module | None:
        """The averaged model as it is measured, or None where there is none yet.

        Args:
            batches: augmented training images, by which its BatchNorm statistics are estimated.
        """
        if self.average is None or not self.average.has_moved:
            return None
        return self.average.for_evaluation(batches)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state's tensors, by part and name; every process must call this."""
        sums = torch.stack([self._sums.loss, self._sums.correct])
        random_states = self._processes.gather(_random_state())
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": _optimizer_tensors(self.optimizer),
            "sums": {"all": self._processes.sum(sums)},
            "rng": {str(rank): state for rank, state in enumerate(random_states)},
        }
        if self.average is not None:
            tensors["average"] = self.average.averaged.state_dict()
        if self.withstood is not None:
            tensors["most_robust"] = {"withstood": self.withstood}
        if self.ensemble is not None:
            tensors["ensemble"] = {"predictions": self.ensemble.predictions}
        return tensors

    def restore(self, tensors: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """Continue after ``step`` steps of an epoch, as ``tensors`` were then; with as many processes, exactly."""
        self.model.load_state_dict(tensors["model"])
        _restore_optimizer(self.optimizer, tensors.get("optimizer", {}))
        if self.average is not None:
            self.average.averaged.load_state_dict(tensors["average"])
        if self.ensemble is not None:
            self.ensemble.predictions.copy_(tensors["ensemble"]["predictions"])
        self.withstood = tensors.get("most_robust", {}).get("withstood")  # none in states of earlier versions
        self.step = step
        if self._processes.is_main:
            self._sums.loss, self._sums.correct = tensors["sums"]["all"].to(self._parts.device)
        random_state = tensors["rng"].get(str(self._processes.rank))
        if random_state is not None:
            _set_random_state(random_state)

    def _is_finite(self) -> bool:
        """Whether weights and logits are finite; logits in eval mode, where BatchNorm's statistics may fail too."""
        images, _ = next(iter(self._parts.test.batches(_CHECKED, self._parts.device)))
        with torch.no_grad(), evaluation_mode(self.model):
            logits = self._parts.forward(self.model)(images)
        # One answer from the device, not one for each parameter.
        return bool(torch.stack([torch.isfinite(values).all() for values in (*self.model.parameters(), logits)]).all())


def build_optimizer(model: nn.Module, optim: OptimSection, *, fused: bool | None = None) -> torch.optim.Optimizer:
    """SGD, or AdamW (Loshchilov and Hutter 2019) with betas of (momentum, 0.999), over a model's parameters.

    Without ``decay_all``, vectors (biases, normalisation layers) have no weight decay. ``fused`` is torch's.
    """
    groups: Any = model.parameters()
    if not optim.decay_all:
        parameters = list(model.parameters())
        groups = [
            {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
            {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
    if optim.name == "adamw":
        betas = optim.momentum, 0.999
        return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
        fused=fused,
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
        if not tensor.ndim:  # AdamW's count of steps
            state.setdefault(int(index), {})[name] = tensor
            continue
        if tensor.shape != parameters[int(index)].shape:
            raise ValueError(f"optimizer.{key} has the shape {tuple(tensor.shape)}")
        like = torch.empty_like(parameters[int(index)], dtype=tensor.dtype)  # with its strides
        state.setdefault(int(index), {})[name] = like.detach().copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
