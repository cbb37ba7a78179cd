"""Pictures of finished models: three matrices side by side (Figure 4), saliency maps (Figure 3c), scatters, curves."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccf_plugin.drawing import (
    DIFFERENCE_SCALE,
    class_labels,
    colour_scale,
    draw_heatmap,
    drawable,
    figure_of,
    new_figure,
)
from ccf_plugin.measuring.ablation_result import MARGIN_WORDS, MARGINS
from ccf_plugin.threat import threat_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from ccf_plugin.measuring.ablation_result import Ablation
    from ccf_plugin.measuring.compare import Comparison
    from ccf_plugin.measuring.evaluate import MeasuredSplit
    from ccf_plugin.measuring.leaderboard import Row
    from ccf_plugin.measuring.saliency import Saliency, SharedFeatures

_MOST_NAMES = 15
_COLOURS = {"shared": "tab:blue", "specific": "tab:orange", "matched": "tab:green", "random": "0.5"}  # of what goes


def draw_comparison(
    comparison: Comparison,
    *,
    titles: tuple[str, str],
    vmin: float | None = None,
    vmax: float | None = None,
    difference_scale: tuple[float, float] = DIFFERENCE_SCALE,
    width: float = 18.0,
) -> Figure:
    """C of the first, C of the second, and first − second; the classes are named once.

    Args:
        titles: what the two are called.
        vmin, vmax: of the two matrices' colours; None is the paper's for this number of classes.
        difference_scale: the same of the difference; the paper's by default. Where it goes below 0, colours go from
            red over white to blue.
        width: of all three, in inches.

    Raises:
        InputError: colours that do not ascend.
    """
    first, second = comparison.first, comparison.second
    figure = new_figure(width, 0.32 * width)
    axes = figure.subplots(1, 3)
    for ax, result, title in zip(axes, (first, second), titles, strict=False):
        result.plot(ax, vmin=vmin, vmax=vmax, title=f"{title}\n{result.title()}")
    delta = comparison.differences["cas"]
    low, high = colour_scale(len(first.matrix), *difference_scale)
    cmap = "RdBu" if low < 0 else "Blues"
    heading = f"first − second\nΔCAS = {delta:.1f}".replace("-", "−")
    if comparison.uncounted_pairs:
        heading += f", without {comparison.uncounted_pairs}: negative in both"
    draw_heatmap(
        comparison.matrix,
        first.names,
        ax=axes[2],
        vmin=low,
        vmax=high,
        cmap=cmap,
        title=heading,
        label="difference of C[i, j]",
    )
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
        ax.set_ylabel("")
    return figure


def draw_saliency(seen: Saliency, titles: tuple[str, str]) -> Figure:
    """A column for each example: the test image, and where the best and the last model look on their own attack's.

    Above each stands its class and its place in the test split, beneath what a model takes it for: red where that is
    wrong.

    Args:
        titles: what the two models are called.
    """
    examples, classes = seen.examples, seen.classes
    figure = new_figure(1.8 + 1.55 * max(len(examples), 2), 5.8)
    axes = figure.subplots(3, len(examples), squeeze=False)
    labels, font = class_labels(tuple(classes))
    for column, example in enumerate(examples):
        _show(axes[0, column], example.image)
        axes[0, column].set_title(f"class {labels[example.label]}\nimage {example.index}", fontsize=9, **font)
        for row, view in ((1, example.best), (2, example.last)):
            _show(axes[row, column], view.image)
            shown = axes[row, column].imshow(view.saliency.numpy(), cmap="jet", vmin=0, vmax=1, alpha=0.45)
            right = view.predicted == example.label
            axes[row, column].set_xlabel(
                labels[view.predicted], fontsize=9, color="black" if right else "firebrick", **font
            )
    for row, title in enumerate(("test image", *(f"{title} says" for title in titles))):
        axes[row, 0].set_ylabel(fill(title, 22), fontsize=9)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("Grad-CAM of the true class,\nshare of its largest value", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    attack, font = drawable(seen.attack)
    figure.suptitle("\n".join(wrap(attack, 25 * max(len(examples), 2))), fontsize=10, **font)
    return figure


def draw_shared_features(shared: SharedFeatures, data: MeasuredSplit, title: str) -> Figure:
    """A row for each feature: the test images that excite it most, strongest first.

    Args:
        data: what the features were found on.
        title: what the model is called.
    """
    names, font = class_labels(data.classes, 14)
    columns = len(shared.features[0].images)
    figure = new_figure(1.4 + 1.1 * columns, 0.7 + 1.35 * len(shared.features))
    axes = figure.subplots(len(shared.features), columns, squeeze=False)
    for row, feature in zip(axes, shared.features, strict=True):
        images = data.split.images[torch.tensor(feature.images, device="cpu")].float() / 255
        for ax, image, index in zip(row, images, feature.images, strict=True):
            _show(ax, image)
            ax.set_xlabel(names[int(data.split.labels[index])], fontsize=8, **font)
        row[0].set_ylabel(f"feature {feature.feature}\n{feature.share:+.3f}", fontsize=9)
    heading, font = drawable(f"{title}, {shared.heading(class_labels(data.classes)[0])}")
    figure.suptitle(heading, fontsize=11, **font)
    return figure


def draw_leaderboard(rows: Sequence[Row], title: str) -> Figure:
    """CAS against robust accuracy, a point for each model; a ring is its published accuracy under AutoAttack.

    Up to 15 models are all named; of more, those with the highest and lowest CAS and RA, where there is room.
    """
    cas = np.array([row.cas for row in rows], dtype=float)
    robust = np.array([row.robust_accuracy for row in rows], dtype=float) * 100
    published = np.array([row.published_autoattack_accuracy for row in rows], dtype=float) * 100
    figure = new_figure(8.0, 6.0)
    ax = figure.add_subplot()
    ax.vlines(cas, robust, published, color="0.8", linewidth=0.8, zorder=1)
    ax.scatter(cas, robust, color="tab:blue", s=28, label=f"RA ({threat_label(vars(rows[0]))})", zorder=3)
    ax.scatter(
        cas, published, facecolors="white", edgecolors="tab:orange", s=28, label="AutoAttack, as published", zorder=2
    )
    ax.set_xlabel("CAS")
    ax.set_ylabel("robust accuracy (%)")
    ax.margins(x=0.15)
    ax.set_title(title)
    ax.legend(loc="best", fontsize=8)
    ax.grid(alpha=0.25)
    _name_points(ax, [row.model for row in rows], cas, robust)
    return figure


def draw_ablation(ablation: Ablation, title: str) -> Figure:
    """Both margins against the number of removed features, by kind, and against C with the shared ones removed."""
    figure = new_figure(15.0, 4.6)
    axes = figure.subplots(1, 3)
    doses = [dose.count for dose in ablation.doses]
    low = min(min(getattr(dose, name).values()) for dose in ablation.doses for name in MARGINS)
    for ax, (name, heading) in zip(axes, MARGIN_WORDS.items(), strict=False):
        for kind, colour in _COLOURS.items():
            means = [getattr(dose, name)[kind] for dose in ablation.doses]
            ax.plot(doses, means, "o-", ms=4, color=colour, label=kind)
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.axvline(ablation.count, color="0.6", linewidth=0.8, linestyle=":")
        ax.set(xlabel=f"removed features, of {ablation.features}", title=heading)
        ax.set_xscale("log")
        ax.set_xticks(doses, [str(dose) for dose in doses])
        ax.minorticks_off()
        ax.set_ylim(min(low * 1.05, -1e-3), max(-low * 0.05, 1e-3))
    axes[0].set_ylabel("change of the margin (logits)")
    axes[0].legend(fontsize=9)
    for name, marker in (("rest", "o"), ("between", "x")):
        points = [(pair.correlation, getattr(pair.removals["shared"].change, name)) for pair in ablation.pairs]
        rank = ablation.spearman[name]
        label = MARGIN_WORDS[name] + ("" if rank != rank else f", ρ = {rank:.2f}".replace("-", "−"))  # NaN: none
        axes[2].scatter(*np.transpose(points), marker=marker, s=22, label=label, color=_COLOURS["shared"])
    axes[2].axhline(0, color="0.6", linewidth=0.8)
    axes[2].set(xlabel="C of the pair", title=f"without {ablation.count} shared features, a point for each pair")
    axes[2].legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _name_points(ax: Axes, names: Sequence[str], cas: NDArray[Any], robust: NDArray[Any]) -> None:
    figure_of(ax).canvas.draw()  # settles where in the picture everything is
    points = ax.transData.transform(np.column_stack([cas, robust]))
    placed: list[Any] = []
    for index in _named(cas, robust):
        for offset, side in ((6, "left"), (-6, "right")):
            text = ax.annotate(
                names[index], (cas[index], robust[index]), (offset, 3), ha=side, textcoords="offset points", fontsize=7
            )
            box = text.get_window_extent()
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1
            if inside and not any(box.overlaps(other) for other in placed) and not box.count_contains(points):
                placed.append(box)
                break
            text.remove()


def _named(cas: NDArray[Any], robust: NDArray[Any]) -> list[int]:
    if len(cas) <= _MOST_NAMES:
        return list(range(len(cas)))
    order, by_robust = np.argsort(cas), np.argsort(robust)
    first = [*by_robust[-3:], *order[-3:], *order[:3], *by_robust[:2]]  # of two across each other, the earlier stays
    return list(dict.fromkeys(map(int, first)))


def _show(ax: Axes, image: Tensor) -> None:
    """An image (C, H, W) in [0, 1] of one or three channels, without axes."""
    pixels: NDArray[Any] = np.moveaxis(image.numpy(), 0, -1)
    ax.imshow(np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
