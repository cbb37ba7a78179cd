"""The picture of a matrix over classes, in the manner of the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from ccf_plugin.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_MOST_LABELS = 25
_MOST_NUMBERS = 12


def draw_heatmap(
    matrix: NDArray[np.float64],
    names: Sequence[str],
    *,
    ax: Axes | None = None,
    vmin: float,
    vmax: float,
    cmap: str,
    title: str,
) -> Axes:
    """Draw a (K, K) matrix. Up to 12 classes show their values, up to 25 every name, beyond that some; NaN is grey."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if ax is None:
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        FigureCanvasAgg(figure)  # no pyplot: nothing global, and no display needed
        ax = figure.add_subplot()
    colours = mpl.colormaps[cmap].with_extremes(bad="0.85")
    image = ax.imshow(np.ma.masked_invalid(matrix), vmin=vmin, vmax=vmax, cmap=colours, interpolation="nearest")
    classes = len(matrix)
    shown = np.unique(np.linspace(0, classes - 1, min(classes, _MOST_LABELS)).astype(int))
    labels = [names[index] for index in shown]
    upright = max(map(len, labels)) <= 2
    ax.set_xticks(
        shown, labels, rotation=0 if upright else 45, ha="center" if upright else "right", rotation_mode="anchor"
    )
    ax.set_yticks(shown, labels)
    if classes <= _MOST_NUMBERS:
        middle = (vmin + vmax) / 2
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                ax.text(
                    j,
                    i,
                    f"{value:.2f}".replace("-0.00", "0.00"),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if value > middle else "black",
                )
    outside = ("min" if np.nanmin(matrix, initial=vmin) < vmin else "") + (
        "max" if np.nanmax(matrix, initial=vmax) > vmax + 1e-9 else ""
    )
    extend = {"": "neither", "min": "min", "max": "max", "minmax": "both"}[outside]
    cast("Figure", ax.figure).colorbar(image, ax=ax, fraction=0.046, pad=0.03, extend=extend)
    ax.set_title(title)
    return ax


def save_figure(ax: Axes, path: Path) -> Path:
    """Write the axes' figure as a PNG, whole or not at all."""
    buffer = BytesIO()
    cast("Figure", ax.figure).savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
    return path
