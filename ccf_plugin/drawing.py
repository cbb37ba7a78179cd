"""The picture of a matrix over classes, in the manner of the paper's figures."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import Fault, InputError
from ccf_plugin.files import PICTURES, write_together

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE = 1.2  # height of a name's line, in its size
_LEAST_NAME = 6.0  # points of a name that shrinks so that all have room
_MOST_LABELS = 60  # names on an axis
_SHORT = 3  # letters of a name that lies
_FEW = 12  # classes whose names stand at an angle, not upright
_MOST_NUMBERS = 30  # rows whose values are written
_LEAST_SIZE = 4.5  # points of a number that can be read
_DIGIT = 0.64  # width of one, in its size
_MANY_CLASSES = 100
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue (sRGB)
Annotate = bool | Literal["auto"]
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
    """An empty figure, in inches, that needs no display and no pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Layout(ConstrainedLayoutEngine):
        """Twice: beside square axes with a colour bar matplotlib 3.11 places labels up to 0.1 inches off at first."""

        def execute(self, fig: Figure) -> None:
            super().execute(fig)
            super().execute(fig)

    figure = Figure(figsize=(width, height), layout=Layout(w_pad=0.07))
    FigureCanvasAgg(figure)  # no pyplot: nothing global
    return figure


def square_axes(width: float = 6.4) -> Axes:
    """Axes for one matrix in a figure of their own, ``width`` inches wide."""
    return new_figure(width, 0.875 * width).add_subplot()


def draw_heatmap(
    matrix: NDArray[np.float64],
    names: Sequence[str],
    *,
    ax: Axes | None = None,
    vmin: float,
    vmax: float,
    cmap: str,
    title: str,
    label: str = "",
    annotate: Annotate = "auto",
    colorbar: bool = True,
    fontsize: float | None = None,
) -> Axes:
    """Draw a (K, K) matrix so that it can be read at the axes' own size; NaN is grey.

    As many classes are named as there is room for, evenly. Where no font here has the characters of the names, the
    classes are numbered from 0 (``class_labels``).

    Args:
        ax: the axes to draw into; a figure of 6.4 x 5.6 inches of its own where None.
        label: what the colours are, beside the colour bar.
        annotate: the values in their cells: True, False, or "auto", where they fit and can be read. Their size follows
            the cell's.
        colorbar: whether there is one.
        fontsize: of names, labels and title, in points; by default it follows the axes' width, from 6 to 9.

    Raises:
        InputError: another ``annotate``, or a size that is not above 0.
    """
    import matplotlib as mpl

    if annotate not in (True, False, "auto"):
        raise InputError(Fault("annotate", "True, False or 'auto'", repr(annotate)))
    if fontsize is not None and not fontsize > 0:
        raise InputError(Fault("fontsize", "points above 0", repr(fontsize)))
    if ax is None:
        ax = square_axes()
    extent, dpi = ax.get_window_extent(), figure_of(ax).dpi
    inches, height = extent.width / dpi, extent.height / dpi
    size = fontsize or min(max(2.4 * inches, _LEAST_NAME), 9.0)
    colours = mpl.colormaps[cmap].with_extremes(bad="0.85")
    image = ax.imshow(np.ma.masked_invalid(matrix), vmin=vmin, vmax=vmax, cmap=colours, interpolation="nearest")
    labels, font = class_labels(tuple(names))
    room = 0.8 * 72 * min(inches, height) / (_LINE * max(len(labels), 1))  # of one name; a fifth goes to the margins
    names_size = min(size, room) if fontsize is None and room >= _LEAST_NAME else size
    _name_classes(ax, labels, names_size, font)
    ax.tick_params(labelsize=names_size, length=min(3.5, size / 3))
    ax.set_xlabel("class j", fontsize=size)
    ax.set_ylabel("class i", fontsize=size)
    if annotate:
        _write_values(ax, matrix, image.to_rgba(np.ma.masked_invalid(matrix))[..., :3], size, always=annotate is True)
    if colorbar:
        outside = ("min" if np.nanmin(matrix, initial=vmin) < vmin else "") + (
            "max" if np.nanmax(matrix, initial=vmax) > vmax + 1e-9 else ""
        )
        extend = {"": "neither", "min": "min", "max": "max", "minmax": "both"}[outside]
        bar = figure_of(ax).colorbar(image, ax=ax, fraction=0.046, pad=0.03, extend=extend)
        bar.ax.tick_params(labelsize=size, length=min(3.5, size / 3))
        bar.set_label(label, fontsize=size)
    heading, font = drawable(title)
    letters = max(int(72 * inches / (0.55 * size)), 12)
    lines = [line for part in heading.split("\n") for line in wrap(part, letters) or [""]]
    ax.set_title("\n".join(lines), fontsize=1.1 * size, **font)
    return ax


def _name_classes(ax: Axes, labels: Sequence[str], size: float, font: dict[str, Any]) -> None:
    """Names at as many classes as have room when the figure is drawn: at each, each second, each fifth, …

    Short names lie, those of few classes are at an angle, others stand.
    """
    from matplotlib.ticker import Locator

    classes, longest = len(labels), max(map(len, labels), default=0)
    pitch = across = _LINE * size
    turned: dict[str, Any] = {"rotation": 90}
    if longest <= _SHORT:
        turned, across = {}, max(pitch, (_DIGIT * longest + 0.5) * size)
    elif classes <= _FEW:
        turned, across = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}, 1.2 * pitch

    class Places(Locator):
        """The named classes along one axis, on which a name takes so many points."""

        def __init__(self, side: str, needed: float) -> None:
            self._side, self._needed = side, needed

        def __call__(self) -> Any:
            points = getattr(ax.get_window_extent(), self._side) * 72 / figure_of(ax).dpi
            room = min(max(int(points / self._needed), 1), _MOST_LABELS)
            steps = (digit * 10**power for power in range(classes) for digit in (1, 2, 5))
            return np.arange(0, classes, next(step for step in steps if -(-classes // step) <= room))

    for axis, places, style in (
        (ax.xaxis, Places("width", across), {**font, **turned}),
        (ax.yaxis, Places("height", pitch), font),
    ):
        axis.set_major_locator(places)
        axis.set_major_formatter(lambda place, _: labels[int(place)] if 0 <= place < classes else "")
        for tick in axis.get_major_ticks(min(classes, _MOST_LABELS)):  # tick_params knows no lists of fonts
            tick.label1.update(style)


def _write_values(ax: Axes, matrix: NDArray[np.float64], colours: NDArray[Any], size: float, *, always: bool) -> None:
    """Each value in its cell, black or white, in a size that follows the cell's when the figure is drawn.

    Args:
        colours: of the cells, (K, K, 3) in [0, 1].
        size: the largest, in points.
        always: also where that is too small to be read.
    """
    from matplotlib.text import Text

    values = {place: value for place, value in np.ndenumerate(matrix) if np.isfinite(value)}
    shown = {place: f"{value:.2f}".replace("-0.00", "0.00") for place, value in values.items()}
    widest = max(
        (sum(_DIGIT if letter.isdigit() else 0.57 * _DIGIT for letter in text) for text in shown.values()), default=1
    )

    class Value(Text):
        """A value that looks at its cell's size before it is drawn."""

        def draw(self, renderer: Any) -> None:
            corners = ax.transData.transform([(0, 0), (1, 1)])
            width, height = np.abs(corners[1] - corners[0]) * 72 / figure_of(ax).dpi
            fitting = min(0.9 * width / widest, 0.7 * height, size)
            if always or fitting >= _LEAST_SIZE:
                self.set_fontsize(fitting)
                super().draw(renderer)

    if not always and len(matrix) > _MOST_NUMBERS:  # no figure has cells for them, and each costs
        return
    for (i, j), text in shown.items():
        value = Value(j, i, text, ha="center", va="center", color=text_colour(colours[i, j]))
        value.set_in_layout(False)
        ax.add_artist(value)


def text_colour(colour: NDArray[Any]) -> str:
    """Black or white, whichever is further in contrast from a colour (3,) in sRGB (WCAG 2.2's relative luminance)."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ _LUMINANCE)
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


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
        expected = f"a picture's name that ends in {', '.join(PICTURES)}"
        raise InputError(Fault("path", expected, repr(ending) if ending else "none"))
    buffer = BytesIO()
    if ending == ".png":
        figure.savefig(buffer, format="png", dpi=dpi or 150)
    else:
        date = "CreationDate" if ending == ".pdf" else "Date"
        with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "ccf"}):
            figure.savefig(buffer, format=ending.removeprefix("."), dpi=dpi or 300, metadata={date: None})
    return buffer.getvalue()


def figure_pixels(figure: Figure) -> NDArray[np.uint8]:
    """What a figure of `new_figure` shows, (H, W, 3) uint8, at 100 dots an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(100)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def save_figure(figure: Figure, *paths: Path, dpi: float | None = None) -> list[Path]:
    """Write a figure as what each name ends in (`figure_bytes`): all files whole, or none."""
    write_together({path: figure_bytes(figure, path.suffix, dpi) for path in paths})
    return list(paths)


def drop_figure(figure: Figure) -> None:
    """Free what a figure holds. They are cyclic: dozens of 3 MB each would wait for Python's collector."""
    from matplotlib.backend_bases import FigureCanvasBase

    figure.clear()
    FigureCanvasBase(figure)  # in place of the canvas that holds the pixels


def shorten(name: str, most: int = 18, keep: int = 0) -> str:
    """A class name as a label, with its last ``keep`` letters: ImageNet's can fill a line."""
    if len(name) <= most:
        return name
    return name[: most - 1 - keep].rstrip() + "…" + name[len(name) - keep :].lstrip()


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
    cut = [shorten(name, most) for name in shown]
    if len(set(cut)) < len(set(shown)):  # names that differ at their ends
        cut = [shorten(name, most, keep=most // 2) for name in shown]
    return cut, _text_properties("".join(shown))


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
    """The installed font families that together have the characters of a text which the usual font lacks."""
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
