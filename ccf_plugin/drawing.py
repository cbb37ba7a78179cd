"""The picture of a matrix over classes, in the manner of the paper's figures."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ccf_plugin.errors import InputError
from ccf_plugin.files import write_together

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PICTURES = (".png", ".pdf", ".svg")
_MOST_LABELS = 25
_MOST_NUMBERS = 12
_MANY_CLASSES = 100
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601)
_DARK = 0.5  # a colour on which text is white
DIFFERENCE_SCALE = (0.0, 0.5)  # of the paper's Figure 4


def colour_scale(
    classes: int, vmin: float | None = None, vmax: float | None = None, *, clean: bool = False
) -> tuple[float, float]:
    """vmin and vmax; None is that of the paper's figures of C.

    They go from 0 to 1 (Figures 2 and 6), from -0.75 to 0.75 for 100 classes and more (Figure 5), and along standard
    training, whose C is that of clean images, from 0 to 0.5 (Figure 9).

    Raises:
        InputError: they do not ascend.
    """
    low, high = (-0.75, 0.75) if classes >= _MANY_CLASSES else (0.0, 0.5) if clean else (0.0, 1.0)
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if not low < high:
        raise InputError(f"expected vmin below vmax, found {low:g} and {high:g}")
    return low, high


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no display and is known to nobody else."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: nothing global
    return figure


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
    """Draw a (K, K) matrix. Up to 12 classes show their values, up to 25 every name, beyond that some; NaN is grey.

    Where no font here has the characters of the names, the classes are numbered from 0 (``class_labels``).
    """
    import matplotlib as mpl

    if ax is None:
        ax = new_figure(6.4, 5.6).add_subplot()
    colours = mpl.colormaps[cmap].with_extremes(bad="0.85")
    image = ax.imshow(np.ma.masked_invalid(matrix), vmin=vmin, vmax=vmax, cmap=colours, interpolation="nearest")
    classes = len(matrix)
    shown = np.unique(np.linspace(0, classes - 1, min(classes, _MOST_LABELS)).astype(int))
    all_labels, font = class_labels(tuple(names))
    labels = [all_labels[index] for index in shown]
    if max(map(len, labels)) <= 2:
        ax.set_xticks(shown, labels, **font)
    elif classes <= _MOST_NUMBERS:
        ax.set_xticks(shown, labels, rotation=45, ha="right", rotation_mode="anchor", **font)
    else:
        ax.set_xticks(shown, labels, rotation=90, **font)
    ax.set_yticks(shown, labels, **font)
    if classes > _MOST_NUMBERS:
        ax.tick_params(labelsize=7)
    if classes <= _MOST_NUMBERS:
        shades = image.to_rgba(np.ma.masked_invalid(matrix))[..., :3] @ _LUMINANCE
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                ax.text(
                    j,
                    i,
                    f"{value:.2f}".replace("-0.00", "0.00"),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if shades[i, j] < _DARK else "black",
                )
    outside = ("min" if np.nanmin(matrix, initial=vmin) < vmin else "") + (
        "max" if np.nanmax(matrix, initial=vmax) > vmax + 1e-9 else ""
    )
    extend = {"": "neither", "min": "min", "max": "max", "minmax": "both"}[outside]
    figure_of(ax).colorbar(image, ax=ax, fraction=0.046, pad=0.03, extend=extend)
    heading, font = drawable(title)
    ax.set_title(heading, **font)
    return ax


def figure_bytes(figure: Figure, ending: str = ".png", dpi: float | None = None) -> bytes:
    """A figure as a file's content: PNG, PDF or SVG by the ending; the same figure gives the same bytes.

    Fonts of a PDF are embedded as TrueType (type 42, which publishers accept); texts of an SVG are outlines, so that it
    looks the same where the fonts are not.

    Args:
        dpi: of a PNG, and of the cells in the others; 150 and 300 by default.

    Raises:
        InputError: another ending.
    """
    import matplotlib as mpl

    if ending not in PICTURES:
        raise InputError(f"expected a picture's name to end in {', '.join(PICTURES)}, found {ending or 'no ending'!r}")
    buffer = BytesIO()
    if ending == ".png":
        figure.savefig(buffer, format="png", dpi=dpi or 150)
    else:
        date = "CreationDate" if ending == ".pdf" else "Date"
        with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "ccf"}):
            figure.savefig(buffer, format=ending.removeprefix("."), dpi=dpi or 300, metadata={date: None})
    return buffer.getvalue()


def save_figure(figure: Figure, *paths: Path, dpi: float | None = None) -> list[Path]:
    """Write a figure as what each name ends in (`figure_bytes`): all files whole, or none."""
    write_together({path: figure_bytes(figure, path.suffix, dpi) for path in paths})
    return list(paths)


def drop_figure(figure: Figure) -> None:
    """Free what a figure holds. They are cyclic: dozens of 3 MB each would wait for Python's collector."""
    from matplotlib.backend_bases import FigureCanvasBase

    figure.clear()
    FigureCanvasBase(figure)  # in place of the canvas that holds the pixels


def shorten(name: str, most: int = 18) -> str:
    """A class name as a label: ImageNet's can fill a line."""
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


@functools.lru_cache(maxsize=16)
def class_labels(names: tuple[str, ...], most: int = 18) -> tuple[list[str], dict[str, Any]]:
    """What a picture calls the classes, and the properties of matplotlib's texts that they need.

    Each is its name, of at most ``most`` characters, in a font that has them. Where there is none here for some name,
    all classes are numbers from 0, the places of their names in a result's ``class_names``; one warning says so.
    """
    shown = ["".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name) for name in names]
    missing = _missing("".join(shown), _further_fonts("".join(shown)))
    if missing:
        count = sum(not missing.isdisjoint(name) for name in shown)
        warnings.warn(
            f"no font here has the characters of {count} class names; pictures number the classes from 0, in the order "
            "of class_names in the JSON; install a font that has them",
            stacklevel=3,
        )
        shown = list(map(str, range(len(names))))
    return [shorten(name, most) for name in shown], _text_properties("".join(shown))


def _text_properties(text: str) -> dict[str, Any]:
    """Dollars in names are no formulas. Only where the usual font lacks a character are others named."""
    fonts = _further_fonts(text)
    return {"parse_math": False} | ({"fontfamily": [*_usual_fonts(), *fonts]} if fonts else {})


def drawable(text: str) -> tuple[str, dict[str, Any]]:
    """The text with a box for each character that no font here has, and the properties that matplotlib needs for it."""
    missing = _missing(text, _further_fonts(text))
    shown = "".join("\N{WHITE SQUARE}" if letter in missing else letter for letter in text)
    return shown, _text_properties(shown)


def _usual_fonts() -> list[str]:
    import matplotlib as mpl

    return list(mpl.rcParams["font.family"])


def _missing(text: str, further: Sequence[str]) -> frozenset[str]:
    """The characters that neither the usual font nor one of these families has."""
    from matplotlib.font_manager import FontProperties, findfont

    files = [findfont(FontProperties(family=family)) for family in (_usual_fonts(), *([name] for name in further))]
    return _without(frozenset(text) - {" ", "\n"}, files)


def _without(letters: frozenset[str], files: Sequence[str]) -> frozenset[str]:
    """Those that no font in these files draws."""
    from matplotlib.font_manager import get_font

    for file in files:
        font = get_font(file)
        if font.scalable:  # fonts of emoji that are images cannot be drawn
            letters -= {letter for letter in letters if font.get_char_index(ord(letter))}
    return letters


@functools.lru_cache(maxsize=64)
def _further_fonts(text: str) -> tuple[str, ...]:
    """The families that have what the usual font lacks of a text: as many as it takes, and as far as there are such."""
    from matplotlib.font_manager import fontManager

    missing, families = _missing(text, ()), []
    by_name = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    for name, file in sorted(by_name.items()):
        if not missing:
            break
        if "last resort" in name.lower().replace("lastresort", "last resort"):  # boxes for all of Unicode
            continue
        try:
            left = _without(missing, [file])
        except (OSError, RuntimeError):  # gone since matplotlib listed it, or of a kind that it cannot read
            continue
        if left != missing:
            families.append(name)
            missing = left
    return tuple(families)


def figure_of(ax: Axes) -> Figure:
    """The figure that the axes are in."""
    return cast("Figure", ax.figure)
