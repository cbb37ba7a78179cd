"""Averages of the weights along training, kept as torch.optim.swa_utils keeps them."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from ccf_plugin.engine.modes import copyable
from ccf_plugin.training.recipe import AverageSection


class WeightAverage:
    """The EMA (θ̄ ← decay · θ̄ + (1 − decay) · θ) or the mean (SWA, Izmailov et al. 2018) of a model's weights.

    It moves in the epochs after ``start_epoch`` up to ``stop_epoch``, with every step or at every epoch's end, and
    begins as the weights of its first move. BatchNorm's statistics are averaged alike, so that it can teach at any
    time; ``for_evaluation`` estimates them anew.
    """

    def __init__(self, model: nn.Module, section: AverageSection) -> None:
        self._section = section
        with copyable(model):
            self.averaged = AveragedModel(model).requires_grad_(False).eval()
        self._evaluated: nn.Module | None = None

    def after_step(self, model: nn.Module, epoch: int, *, is_last: bool) -> None:
        """A training step of an epoch (counted from 1) is done, perhaps its last."""
        stop = self._section.stop_epoch
        is_open = epoch > self._section.start_epoch and (stop is None or epoch <= stop)
        if is_open and (is_last or self._section.every == "step"):
            self._move(model)

    @torch.no_grad()
    def _move(self, model: nn.Module) -> None:
        # torch's ``update_parameters`` gives the device the number of moves, for which the host waits, and averages
        # either all buffers, whole numbers and infinities too, or none: they are copied here.
        moves = int(self.averaged.n_averaged)
        (averaged, others), (current, present) = _parts(self.averaged.module), _parts(model)
        if moves:
            share = 1 / (moves + 1) if self._section.kind == "swa" else 1 - self._section.decay
            torch._foreach_lerp_(averaged, current, share)
        else:
            torch._foreach_copy_(averaged, current)
        for buffer, value in zip(others, present, strict=True):
            buffer.copy_(value)
        self.averaged.n_averaged += 1

    @property
    def has_moved(self) -> bool:
        """Whether there is an average yet."""
        return bool(self.averaged.n_averaged)

    def for_evaluation(self, batches: Iterable[Tensor]) -> nn.Module:
        """A copy in eval mode, its BatchNorm statistics estimated anew on these clean images; always the same copy."""
        if self._evaluated is None:
            with copyable(self.averaged.module):
                self._evaluated = copy.deepcopy(self.averaged.module)
        self._evaluated.load_state_dict(self.averaged.module.state_dict())
        update_bn(batches, self._evaluated)
        return self._evaluated.eval()


def _parts(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What is averaged, the parameters and BatchNorm's statistics; and the other buffers."""
    norms = [norm for norm in model.modules() if isinstance(norm, nn.modules.batchnorm._NormBase)]
    statistics = [norm._buffers[name] for norm in norms for name in ("running_mean", "running_var")]
    kept = [statistic for statistic in statistics if statistic is not None]
    known = {id(statistic) for statistic in kept}
    return [*model.parameters(), *kept], [buffer for buffer in model.buffers() if id(buffer) not in known]
