"""Averages of the weights along training, by torch.optim.swa_utils."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn, update_bn

from ccf_plugin.training.recipe import AverageSection


class WeightAverage:
    """The EMA (θ̄ ← decay · θ̄ + (1 − decay) · θ) or the mean (SWA, Izmailov et al. 2018) of a model's weights.

    It moves in the epochs after ``start_epoch`` up to ``stop_epoch``, with every step or at every epoch's end, and
    begins as the weights of its first move. BatchNorm's statistics are averaged alike, so that it can teach at any
    time; ``for_evaluation`` estimates them anew.
    """

    def __init__(self, model: nn.Module, section: AverageSection) -> None:
        self._section = section
        # Named, because torch's own choice for SWA on CUDA cannot take BatchNorm's count of batches, a whole number.
        averaging: dict[str, Any] = {"avg_fn": get_swa_avg_fn()}  # type: ignore[no-untyped-call]
        if section.kind == "ema":
            averaging = {"multi_avg_fn": get_ema_multi_avg_fn(section.decay)}  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(model, **averaging, use_buffers=True).requires_grad_(False).eval()

    def after_step(self, model: nn.Module, epoch: int, *, is_last: bool) -> None:
        """A training step of an epoch (counted from 1) is done, perhaps its last."""
        stop = self._section.stop_epoch
        is_open = epoch > self._section.start_epoch and (stop is None or epoch <= stop)
        if is_open and (is_last or self._section.every == "step"):
            self.averaged.update_parameters(model)

    @property
    def has_moved(self) -> bool:
        """Whether there is an average yet."""
        return bool(self.averaged.n_averaged)

    def for_evaluation(self, clean_batches: Iterable[Tensor]) -> nn.Module:
        """A copy in eval mode, its BatchNorm statistics estimated anew on clean training images."""
        model: nn.Module = copy.deepcopy(self.averaged.module)
        update_bn(clean_batches, model)
        return model.eval()
