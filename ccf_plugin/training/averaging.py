"""Averages of the weights along training, by torch.optim.swa_utils."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

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
        averaging = None
        if section.kind == "ema":
            averaging = get_ema_multi_avg_fn(section.decay)  # type: ignore[no-untyped-call]
        with copyable(model):
            self.averaged = AveragedModel(model, multi_avg_fn=averaging).requires_grad_(False).eval()
        self._evaluated: nn.Module | None = None
        norms = (norm for norm in self.averaged.modules() if isinstance(norm, nn.modules.batchnorm._NormBase))
        statistics = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
        self._statistics = [statistic for statistic in statistics if statistic is not None]

    def after_step(self, model: nn.Module, epoch: int, *, is_last: bool) -> None:
        """A training step of an epoch (counted from 1) is done, perhaps its last."""
        stop = self._section.stop_epoch
        is_open = epoch > self._section.start_epoch and (stop is None or epoch <= stop)
        if is_open and (is_last or self._section.every == "step"):
            self._move(model)

    def _move(self, model: nn.Module) -> None:
        # torch averages either all buffers, whole numbers and infinities too, or none: it copies them here.
        before = [statistic.clone() for statistic in self._statistics]
        is_first = not self.has_moved
        self.averaged.update_parameters(model)
        share = 1 / int(self.averaged.n_averaged) if self._section.kind == "swa" else 1 - self._section.decay
        for statistic, old in zip(self._statistics, before, strict=True):
            statistic.copy_(statistic if is_first else old.lerp(statistic, share))

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
