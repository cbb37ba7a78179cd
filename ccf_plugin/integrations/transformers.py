"""The probe as a callback of Hugging Face's Trainer."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.integrations.trackers import class_figures, figures, log_picture
from ccf_plugin.probe.probe import CrossClassProbe
from ccf_plugin.probe.result import CrossClassResult


class CrossClassTrainerCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Measures the passes of ``trainer.evaluate()``; CAS is among its metrics, in the log, and where reports go.

    Add it as ``trainer.add_callback(CrossClassTrainerCallback(trainer))``. The metrics are ``eval_cas``,
    ``eval_cas_excess`` and the accuracies, so that ``metric_for_best_model="eval_cas"`` works; what ``report_to`` names
    (TensorBoard, Weights & Biases) also gets each class's figures and the picture of C. With several processes the
    figures are of all of them; images that the Trainer repeats so that their batches are alike count twice.

    Args:
        trainer: whose log and reports it writes.
        labels: the batch's entry that holds the true classes (N,), also where a label smoother keeps it from the model.
        picture: whether reports get it.
        options: `CrossClassProbe`'s, such as ``inputs="clean"``, ``head`` and ``class_names``; the names are those of
            the model's ``config.id2label`` where none are given.

    Attributes:
        result: the last evaluation's `CrossClassResult`; None before.

    Raises:
        InputError: in an evaluation: a batch without labels.
    """

    def __init__(self, trainer: Trainer, *, labels: str = "labels", picture: bool = True, **options: Any) -> None:
        self.result: CrossClassResult | None = None
        self._trainer, self._name, self._picture, self._options = trainer, labels, picture, options
        self._labels: Tensor | None = None
        self._probe: CrossClassProbe | None = None
        self._step = trainer.prediction_step
        self._attach(trainer.model)

    def _attach(self, model: nn.Module | None) -> None:
        """Watch the model, where it is another than before."""
        if model is None or (self._probe is not None and self._probe.model is model):
            return
        if self._probe is not None:
            self._probe.detach()
        names = getattr(getattr(model, "config", None), "id2label", None)
        named = {} if names is None else {"class_names": [names[index] for index in sorted(names)]}
        self._probe = CrossClassProbe(model, **{**named, **self._options})
        self._trainer.prediction_step = self._remember  # type: ignore[method-assign, unused-ignore]

    def _remember(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's ``prediction_step``: a loss of its own takes the labels out of the batch."""
        self._labels = inputs.get(self._name)
        return self._step(model, inputs, *args, **kwargs)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """A Trainer with ``model_init`` has a new model now."""
        self._attach(model)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the pass."""
        if self._probe is None:
            return
        if self._labels is None:
            remedy = "name the entry that holds them by {labels}"
            raise InputError(
                Fault("labels", f"an entry {self._name!r} in each batch", "none in this evaluation", remedy)
            )
        self._probe.update(self._labels)
        self._labels = None

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Forget the passes of ``trainer.predict()``."""
        if self._probe is not None:
            self._probe.reset()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Log the evaluation's figures, and add them to its metrics."""
        if self._probe is None:
            return
        self.result = self._probe.compute()
        self._probe.reset()
        ends = (key.removesuffix("_runtime") for key in metrics or () if key.endswith("_runtime"))
        prefix = f"{next(ends, 'eval')}_"
        measured = figures(self.result, prefix)
        if metrics is not None:
            metrics.update(measured)
        self._trainer.log({**measured, **class_figures(self.result, prefix)})
        if self._picture and state.is_world_process_zero:
            for tracker in self._trackers():
                log_picture(tracker, f"{prefix}C", self.result, state.global_step)

    def _trackers(self) -> list[Any]:
        """Those of ``report_to`` that take pictures; the run of Weights & Biases is its own library's global."""
        callbacks = self._trainer.callback_handler.callbacks
        run = getattr(sys.modules.get("wandb"), "run", None)
        is_reported = any(type(callback).__name__ == "WandbCallback" for callback in callbacks)
        return [*callbacks, *([run] if run is not None and is_reported else [])]

    def detach(self) -> None:
        """Remove the hooks from the model, and give the Trainer its own ``prediction_step``."""
        if self._probe is not None:
            self._probe.detach()
            self._probe = None
            self._trainer.prediction_step = self._step  # type: ignore[method-assign, unused-ignore]
