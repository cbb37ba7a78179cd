"""A result in a tracker: its figures by name, and the picture of C, for TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.drawing import drop_figure, figure_of, figure_pixels, square_axes
from ccf_plugin.probe.result import CrossClassResult

_MOST_CLASSES = 100  # with figures of their own in a tracker


def figures(result: CrossClassResult, prefix: str = "") -> dict[str, float]:
    """CAS, what of it is beyond chance, I-CAS and the accuracies, by prefix and name, where they were measured."""
    names = ("cas", "cas_excess", "instance_cas", "clean_accuracy", "robust_accuracy", "accuracy")
    known = {name: getattr(result, name) for name in names}
    return {prefix + name: value for name, value in known.items() if value is not None and value == value}  # no NaN


def class_figures(result: CrossClassResult, prefix: str = "") -> dict[str, float]:
    """Each class's accuracy and its share of CAS, as "class_accuracy/cat" and "class_cas/cat"; {} above 100 classes."""
    if len(result.matrix) > _MOST_CLASSES:
        return {}
    of_classes = {"class_accuracy": result.class_accuracy, "class_cas": result.pair_contributions().sum(1)}
    return {
        f"{prefix}{kind}/{name}": float(value)
        for kind, values in of_classes.items()
        if values is not None
        for name, value in zip(result.names, values, strict=True)
        if np.isfinite(value)
    }


def log_picture(tracker: Any, name: str, result: CrossClassResult, step: int) -> bool:
    """Hand the picture of C to a tracker; False where it takes no pictures.

    Args:
        tracker: a TensorBoard ``SummaryWriter``, a run of Weights & Biases, or what wraps them: accelerate's
            ``accelerator.trackers``, Lightning's ``trainer.loggers``, transformers' callbacks of ``report_to``.
        name: what it is called there.
        step: when it was measured.
    """
    log = _way(tracker)
    if log is None:
        return False
    figure = figure_of(result.plot(square_axes()))
    log(name, figure_pixels(figure), step)
    drop_figure(figure)
    return True


def _way(tracker: Any) -> Callable[[str, NDArray[np.uint8], int], object] | None:
    """How a tracker takes a picture (H, W, 3)."""
    if hasattr(tracker, "log_images"):  # accelerate's
        layout = {"dataformats": "NHWC"} if getattr(tracker, "name", "") == "tensorboard" else {}
        return lambda name, pixels, step: tracker.log_images({name: pixels[None]}, step=step, **layout)
    inner = next((found for key in ("tb_writer", "experiment") if (found := getattr(tracker, key, None))), tracker)
    if hasattr(inner, "add_image"):  # a SummaryWriter
        return lambda name, pixels, step: inner.add_image(name, pixels, step, dataformats="HWC")
    if type(inner).__module__.partition(".")[0] == "wandb" and hasattr(inner, "log"):
        import wandb

        # Steps are the caller's own axis: a run refuses what lies before its own count.
        return lambda name, pixels, step: inner.log({name: wandb.Image(pixels), "trainer/global_step": step})
    return None
