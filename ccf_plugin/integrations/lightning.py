"""The probe as a callback of Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning
from torch import Tensor, nn

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.integrations.trackers import class_figures, figures, log_picture
from ccf_plugin.probe.probe import CrossClassProbe
from ccf_plugin.probe.result import CrossClassResult

_PREFIXES = {"train": "train", "validation": "val", "test": "test"}


def second_of(batch: Any) -> Tensor:
    """The labels of a batch (images, labels, …)."""
    labels: Tensor = batch[1]
    return labels


class CrossClassCallback(lightning.Callback):
    """Measures the passes that a LightningModule makes in its own steps, and logs CAS at the end of each epoch.

    Logged are ``val_cas``, ``val_cas_excess`` and the accuracies (``train_…``, ``test_…`` of other stages), so that
    ``ModelCheckpoint(monitor="val_cas")`` works; the loggers get each class's figures and the picture of C. With
    several processes the figures are of all of them. The last pass of the model in a step counts.

    Args:
        model: the name of the classifier in the module, such as "network"; "" is the module itself, whose ``forward``
            its steps must call.
        on: the stage: "validation", "train" or "test"; of several data loaders, the first one.
        labels: takes the true classes (N,) out of a batch; by default they are its second entry.
        picture: whether the loggers get it.
        options: `CrossClassProbe`'s, such as ``inputs="clean"``, ``every``, ``head`` and ``class_names``.

    Attributes:
        result: the last epoch's `CrossClassResult`; None before.

    Raises:
        InputError: another stage; when training begins: no such model in the module.
    """

    def __init__(
        self,
        model: str = "",
        *,
        on: Literal["train", "validation", "test"] = "validation",
        labels: Callable[[Any], Tensor] = second_of,
        picture: bool = True,
        **options: Any,
    ) -> None:
        if on not in _PREFIXES:
            raise InputError(Fault("on", f"one of {', '.join(_PREFIXES)}", repr(on)))
        self.result: CrossClassResult | None = None
        self._model, self._stage, self._labels, self._picture, self._options = model, on, labels, picture, options
        self._probe: CrossClassProbe | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Attach the probe, before the first pass."""
        self._detach()
        self._probe = CrossClassProbe(self._classifier(pl_module), **self._options)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Remove the probe's hooks."""
        self._detach()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Remove the probe's hooks."""
        self._detach()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step's pass, where training is measured."""
        self._update("train", batch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log, where training is measured."""
        self._finish("train", trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the step's pass, where validation is measured."""
        if not trainer.sanity_checking and not dataloader_idx:
            self._update("validation", batch)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log, where validation is measured."""
        if not trainer.sanity_checking:
            self._finish("validation", trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the step's pass, where testing is measured."""
        if not dataloader_idx:
            self._update("test", batch)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log, where testing is measured."""
        self._finish("test", trainer, pl_module)

    def _classifier(self, module: lightning.LightningModule) -> nn.Module:
        if not self._model and type(module).forward is lightning.LightningModule.forward:
            children = [name for name, child in module.named_children() if list(child.parameters())]
            expected = "the name of the classifier in a module without forward"
            raise InputError(Fault("model", expected, "none", f"choose one of {', '.join(children) or 'no children'}"))
        try:
            return module.get_submodule(self._model)
        except AttributeError:
            raise InputError(
                Fault("model", f"the name of a module in {type(module).__name__}", repr(self._model))
            ) from None

    def _update(self, stage: str, batch: Any) -> None:
        if stage == self._stage and self._probe is not None:
            self._probe.update(self._labels(batch))

    def _finish(self, stage: str, trainer: Any, module: Any) -> None:
        if stage != self._stage or self._probe is None:
            return
        self.result = self._probe.compute()
        self._probe.reset()
        prefix = f"{_PREFIXES[stage]}_"
        module.log_dict(figures(self.result, prefix))
        of_classes = class_figures(self.result, prefix)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(of_classes, step=trainer.global_step)
            if self._picture:
                log_picture(logger, f"{prefix}C", self.result, trainer.global_step)

    def _detach(self) -> None:
        if self._probe is not None:
            self._probe.detach()
            self._probe = None
