"""Pictures of several models: three matrices side by side (Figure 4), saliency maps (Figure 3c), a scatter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccf_plugin.probe.heatmap import colour_scale, draw_heatmap, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccf_plugin.measure.compare import Comparison


def draw_comparison(
    comparison: Comparison,
    *,
    titles: tuple[str, str],
    vmin: float | None = None,
    vmax: float | None = None,
    difference_scale: tuple[float, float] = (0.0, 0.5),
) -> Figure:
    """C of the first, C of the second, and first − second.

    Args:
        titles: what the two are called.
        vmin, vmax: of the two matrices' colours; None is the paper's for so many classes.
        difference_scale: the same of the difference; the paper's by default.

    Raises:
        InputError: colours that do not ascend.
    """
    first, second = comparison.first, comparison.second
    figure = new_figure(18.0, 5.8)
    axes = figure.subplots(1, 3)
    for ax, result, title in zip(axes, (first, second), titles, strict=False):
        result.plot(ax, vmin=vmin, vmax=vmax, title=f"{title}\n{result.title()}")
    delta = comparison.differences["cas"]
    low, high = colour_scale(len(first.matrix), *difference_scale)
    heading = f"first − second\nΔCAS = {delta:.1f}".replace("-", "−")
    draw_heatmap(comparison.matrix, first.names, ax=axes[2], vmin=low, vmax=high, cmap="Blues", title=heading)
    return figure
