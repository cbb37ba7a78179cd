"""METRICS: each figure of an epoch, once. The log, the monitor, the terminal and the report read this table.

A new figure is one more entry at its end. Code that uses this package may append its own before it trains or reads:

    METRICS.append(Metric("cas_normalised", "normalised CAS", ".4f", lambda result: result.cas_normalised, axis="CAS"))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ccf_plugin.runs.layout import AVERAGE

if TYPE_CHECKING:
    from ccf_plugin.probe.result import CrossClassResult

Where = Literal["bar", "line", "table"]  # on the terminal


@dataclass(frozen=True)
class Metric:
    """A figure of an epoch: where it comes from and how people see it.

    Attributes:
        name: its column in log.csv, for the raw weights and, where it is measured on a split, the test images.
        label: its name in the report; "test " is left out where the report shows the test images alone.
        format: how it is written, such as ".2f"; a format that ends in "%" shows a fraction as percent.
        take: its value in what ``split`` names, None where that has none; None for what the training loop gives itself.
        averaged: whether the averaged weights have it too, in the column ``name`` + ``AVERAGE``.
        validation: whether the validation images have it too, in a column ``validation_…``: "logged" in log.csv
            alone, "shown" wherever the test images' figure is.
        short: its name on the terminal; ``label`` where None.
        terminal: where the terminal shows it: in the "bar" of the running epoch, in the "line" of a finished one, in
            the "table" at the end.
        axis: the axis of its curve in the report, by title; None where the report has neither its curve nor its column.
        rounded: ``format`` for the report's tables and sentences; ``format`` where None.
        dash: of its curve, as plotly names it.
        place: of its curve in the legend and among the colours; after all others where None.
        published: the key of a recipe's [published] figures that it is compared with, where there is one.
        split: what of an epoch's measurement ``take`` is given: the result on these images, or "gradients", those of
            the test images by their pixels. What training gives itself is of none.
    """

    name: str
    label: str
    format: str
    take: Callable[[Any], float | None] | None = None
    averaged: bool = False
    validation: Literal["none", "logged", "shown"] = "none"
    short: str | None = None
    terminal: Sequence[Where] = ("line", "table")
    axis: str | None = None
    rounded: str | None = None
    dash: str = "longdash"
    place: int | None = None
    published: str | None = None
    split: Literal["test", "validation", "train", "train_attacked", "gradients"] = "test"

    @property
    def heading(self) -> str:
        """Its name in the report's tables and sentences."""
        return self.label.removeprefix("test ")

    @property
    def unit(self) -> float:
        """What a difference is multiplied with to be read in the figure's own unit: 100 for percent."""
        return 100.0 if self.format.endswith("%") else 1.0

    def on_terminal(self, value: float | None) -> str:
        """A value as the terminal shows it; "" for what was not measured."""
        return "" if value is None else format(value, self.format)

    def in_report(self, value: float | None) -> str:
        """A value as the report's tables and sentences show it; "–" for what was not measured."""
        return "–" if value is None else format(value, self.rounded or self.format).replace("%", " %")

    def on_validation(self) -> Metric:
        """The same figure of the validation images."""
        is_shown = self.validation == "shown"
        return replace(
            self,
            name=f"validation_{self.name.removeprefix('test_')}",
            label=f"validation {self.heading}",
            short=f"val {self.heading}",
            terminal=[where for where in self.terminal if is_shown and where != "bar"],
            axis=self.axis if is_shown else None,
            dash="dashdot",
            place=None if self.place is None else self.place + 1,
            published=None,
            split="validation",
        )


_ACCURACY, _LOSS, _CAS, _VARIANCES = "accuracy", "loss", "CAS", "logit variances"  # axes
# In the order of log.csv and of the terminal.
METRICS: list[Metric] = [
    Metric("lr", "learning rate", ".3g", terminal=()),
    Metric("train_loss", "train loss", ".3f", short="loss", terminal=("bar", "line", "table"), axis=_LOSS, dash="dot"),
    Metric("train_robust_accuracy", "train RA", ".1%", axis=_ACCURACY, dash="dot", place=0),
    Metric(
        "test_clean_accuracy",
        "clean accuracy",
        ".1%",
        lambda result: result.clean_accuracy,
        averaged=True,
        validation="logged",
        short="test clean",
        axis=_ACCURACY,
        dash="dash",
        place=3,
        published="clean_accuracy",
    ),
    Metric(
        "test_robust_accuracy",
        "test RA",
        ".1%",
        lambda result: result.robust_accuracy,
        averaged=True,
        validation="shown",
        terminal=("bar", "line", "table"),
        axis=_ACCURACY,
        dash="solid",
        place=1,  # and 2 for the validation images'
        published="robust_accuracy",
    ),
    Metric(
        "cas",
        "CAS",
        ".2f",
        lambda result: result.cas,
        averaged=True,
        terminal=("bar", "line", "table"),
        axis=_CAS,
        rounded=".1f",
        dash="solid",
        place=4,
        published="cas",
    ),
    Metric(
        "instance_cas",
        "I-CAS",
        ".2f",
        lambda result: result.instance_cas,
        axis=_CAS,
        rounded=".1f",
        dash="dash",
        place=5,
    ),
    Metric("seconds", "seconds", ".1f", terminal=("line",)),
    Metric("images_per_second", "images per second", ".0f", terminal=()),
    Metric(
        "cas_null",
        "CAS by chance",
        ".2f",
        lambda result: _finite(result.null.cas_mean),
        terminal=(),
        axis=_CAS,
        rounded=".1f",
        dash="dot",
    ),
    Metric(
        "cas_excess",
        "CAS beyond chance",
        ".2f",
        lambda result: _finite(result.cas_excess),
        terminal=(),
        axis=_CAS,
        rounded=".1f",
        dash="longdashdot",
    ),
    Metric(
        "shared",
        "shared part",
        ".3f",
        lambda result: _in_logit_units(result)[0],
        terminal=(),
        axis=_VARIANCES,
        dash="solid",
    ),
    Metric(
        "squared_lengths",
        "squared lengths",
        ".3f",
        lambda result: _in_logit_units(result)[1],
        terminal=(),
        axis=_VARIANCES,
        dash="dot",
    ),
    Metric("robust_fall_p", "p of RA's fall", ".1e", terminal=()),
    Metric(
        "train_clean_accuracy",  # of as many training images as there are test images, unaugmented, in eval mode
        "train clean accuracy",
        ".1%",
        lambda result: result.clean_accuracy,
        terminal=(),
        axis=_ACCURACY,
        dash="dashdot",
        split="train",
    ),
    Metric(
        "test_clean_loss",
        "test clean loss",
        ".3f",
        lambda result: _finite(result.clean_loss),
        averaged=True,
        validation="logged",
        terminal=(),
        axis=_LOSS,
        dash="dash",
    ),
    Metric(
        "test_robust_loss",
        "test robust loss",
        ".3f",
        lambda result: _finite(result.robust_loss),
        averaged=True,
        validation="logged",
        terminal=(),
        axis=_LOSS,
        dash="solid",
    ),
    Metric(
        "gradient_norm",
        "norm of the input gradient",
        ".3f",
        lambda gradients: _finite(gradients.norm),
        averaged=True,
        terminal=(),
        axis="input gradient",
        dash="solid",
        split="gradients",
    ),
    Metric(
        "gradient_alignment",
        "gradient alignment",
        ".3f",
        lambda gradients: _finite(gradients.alignment),
        averaged=True,
        terminal=("line",),
        axis="alignment",
        dash="solid",
        split="gradients",
    ),
    Metric(
        "train_attacked_accuracy",  # of up to 100 of such images
        "train RA under the evaluation's attack",
        ".1%",
        lambda result: result.robust_accuracy,
        terminal=(),
        axis=_ACCURACY,
        dash="longdash",
        split="train_attacked",
    ),
    Metric(
        "negative",
        "sum of negative C",
        ".2f",
        lambda result: _finite(result.negative_part),
        terminal=(),
        axis=_CAS,
        rounded=".1f",
        dash="dashdot",
    ),
]
_IN_FIRST_LOGS = 9  # entries of the first version of log.csv; the columns of later ones follow theirs


def _finite(value: float | None) -> float | None:
    """A number, or None for one that is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _in_logit_units(result: CrossClassResult) -> tuple[float | None, float | None]:
    """The shared part Σ_{i≠j} max(A_i · A_j, 0) and the squared lengths Σ |A_i|², in variances of the logits."""
    units = result.in_logit_units
    if units is None:
        return None, None
    lengths = [length for length in units["lengths"] if length == length]  # NaN for a class without images
    return _finite(units["shared_part"]), float(sum(length**2 for length in lengths))


def all_metrics() -> list[Metric]:
    """The table, each figure followed by that of the validation images where there is one."""
    pairs = ([metric] if metric.validation == "none" else [metric, metric.on_validation()] for metric in METRICS)
    return [metric for pair in pairs for metric in pair]


def metric_of(name: str) -> Metric:
    """The metric of a column of raw weights; KeyError where there is none."""
    return {metric.name: metric for metric in all_metrics()}[name]


def column_names(*, averaged: bool = True, validated: bool = True) -> list[str]:
    """The columns of log.csv in their order.

    Args:
        averaged: with those of the averaged weights.
        validated: with those of the validation images.
    """
    first = _columns(METRICS[:_IN_FIRST_LOGS], ("alarm", "selected_by"), averaged=averaged, validated=validated)
    return ["epoch", *first, *later_column_names(averaged=averaged, validated=validated)]


def later_column_names(*, averaged: bool = True, validated: bool = True) -> list[str]:
    """Those of them that the first logs did not have."""
    later = (_columns([metric], (), averaged=averaged, validated=validated) for metric in METRICS[_IN_FIRST_LOGS:])
    return [name for names in later for name in names]


def _columns(metrics: Sequence[Metric], texts: Sequence[str], *, averaged: bool, validated: bool) -> list[str]:
    validation = [metric.on_validation() for metric in metrics if validated and metric.validation != "none"]
    averages = [metric.name + AVERAGE for metric in (*metrics, *validation) if averaged and metric.averaged]
    return [*(metric.name for metric in metrics), *texts, *(metric.name for metric in validation), *averages]
