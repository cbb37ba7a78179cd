"""Class names of any script in the pictures: a font that has them, or numbers, and one note."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont, fontManager

from ccf_plugin import drawing
from ccf_plugin.drawing import class_labels, draw_heatmap, figure_of, save_figure
from ccf_plugin.errors import InputError
from ccf_plugin.probe import CrossClassResult


@pytest.fixture(autouse=True)
def _fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those that matplotlib brings, whatever the machine has."""
    bundled = Path(mpl.get_data_path())
    fonts = [font for font in fontManager.ttflist if bundled in Path(font.fname).parents]
    monkeypatch.setattr(fontManager, "ttflist", fonts)
    caches = (drawing.class_labels, drawing._further_fonts)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def _drawn(names: list[str], path: Path) -> tuple[list[str], list[str]]:
    """The labels of both axes, and all warnings of drawing the picture three times, as three epochs do."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            ax = draw_heatmap(np.eye(len(names)), names, vmin=0, vmax=1, cmap="Blues", title=f"C of {names[0]}")
            save_figure(figure_of(ax), path / "picture.png")
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert [label.get_text() for label in ax.get_xticklabels()] == labels
    return labels, [str(warning.message) for warning in caught]


# Names, what the picture calls them, and whether there is a note.
SCRIPTS: dict[str, tuple[list[str], list[str], bool]] = {
    "Latin": (["cat", "naïve", "größe"], ["cat", "naïve", "größe"], False),
    "Greek and Cyrillic": (["γάτα", "кошка"], ["γάτα", "кошка"], False),
    "from right to left": (["قطة", "חתול"], ["قطة", "חתול"], False),
    "accents apart": (["cafe\N{COMBINING ACUTE ACCENT}", "b"], ["cafe\N{COMBINING ACUTE ACCENT}", "b"], False),
    "CJK": (["猫", "강아지", "ふね"], ["0", "1", "2"], True),
    "one of CJK": (["cat", "犬"], ["0", "1"], True),
    "Devanagari": (["बिल्ली", "कुत्ता"], ["0", "1"], True),
    "emoji": (["\N{ATHLETIC SHOE}", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}"], ["0", "1"], True),
    "formulas": (["$x^2$", "a$\\frac$", "_^{}"], ["$x^2$", "a$\\frac$", "_^{}"], False),
    "control characters": (["a\nb", "c\td", "\x00"], ["a\\nb", "c\\td", "\\x00"], False),
    "bytes of no encoding": (["caf\udce9", "b"], ["caf\\udce9", "b"], False),
    "nothing": (["", " "], ["", " "], False),
    "a long one": (["x" * 50, "b"], ["x" * 17 + "…", "b"], False),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_names_of_any_script_are_drawn_with_one_note_at_most(kind: str, tmp_path: Path) -> None:
    names, expected, is_noted = SCRIPTS[kind]
    labels, notes = _drawn(names, tmp_path)
    assert labels == expected
    assert [note.startswith("no font here has the characters of ") for note in notes] == [True] * is_noted


def test_numbers_are_the_places_of_the_names_in_the_json(tmp_path: Path) -> None:
    names = tuple(f"類{number}" for number in range(30))
    result = CrossClassResult(
        matrix=np.eye(30), class_attribution=np.eye(30), counts=np.ones(30, dtype=int), class_names=names
    )
    with pytest.warns(UserWarning, match=r"of 30 class names; pictures number the classes from 0.*class_names"):
        ax = result.plot()
    assert ax.get_yticklabels()[-1].get_text() == "29"
    result.save(tmp_path / "result")
    assert CrossClassResult.load(tmp_path / "result").names[29] == "類29"


def test_a_font_that_has_the_characters_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The usual font is one of Latin letters alone, so that another must be found."""
    monkeypatch.setitem(mpl.rcParams, "font.family", ["cmtt10"])
    usual = findfont(FontProperties(family="cmtt10"))
    assert drawing._without(frozenset("кошка"), [usual])
    labels, font = class_labels(("кошка", "γάτα"))
    assert labels == ["кошка", "γάτα"]
    families = font["fontfamily"]
    assert families[0] == "cmtt10"
    files = [findfont(FontProperties(family=[family])) for family in families]
    assert not drawing._without(frozenset("кошкаγάτα"), files)
    assert not any("last" in family.lower() for family in families)
    assert _drawn(["кошка", "γάτα"], tmp_path) == (["кошка", "γάτα"], [])


def test_a_font_that_is_gone_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    font = next(font for font in fontManager.ttflist if font.name == "DejaVu Sans Mono")
    copy = tmp_path / "gone.ttf"
    shutil.copy(font.fname, copy)
    gone = type(font)(fname=str(copy), name="AAA", style="normal", weight=400)
    copy.write_bytes(b"no font")
    monkeypatch.setattr(fontManager, "ttflist", [gone, *fontManager.ttflist])
    labels, notes = _drawn(["猫", "b"], tmp_path)
    assert (labels, len(notes)) == (["0", "1"], 1)


def _result(classes: int, names: tuple[str, ...] | None = None, seed: int = 0) -> CrossClassResult:
    """Of C from -1 to 1."""
    attribution = np.random.default_rng(seed).normal(size=(classes, 4))
    attribution /= np.linalg.norm(attribution, axis=1, keepdims=True)
    return CrossClassResult(
        attribution @ attribution.T, attribution, np.ones(classes, dtype=int), class_names=names, accuracy=0.5
    )


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Classes, their names, the width in inches, how many panels; whether the values are shown.
PICTURES: dict[str, tuple[int, tuple[str, ...] | None, float, int, bool]] = {
    "a column": (10, CIFAR, 3.25, 1, True),
    "two across a page": (10, CIFAR, 6.75, 2, True),
    "three across a page": (10, CIFAR, 6.75, 3, False),
    "two classes": (2, None, 3.25, 1, True),
    "twenty long names": (20, tuple(f"the long name of class {i}" for i in range(20)), 6.75, 2, False),
    "a hundred": (100, None, 3.25, 1, False),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_can_be_read_at_its_size(kind: str) -> None:
    """No label lies on another or beyond the page, none is below 6 points, and values are inside their cells."""
    classes, names, width, panels, has_values = PICTURES[kind]
    figure = drawing.new_figure(width, 0.9 * width / panels)
    axes = [
        _result(classes, names, seed).plot(ax) for seed, ax in enumerate(figure.subplots(1, panels, squeeze=False)[0])
    ]
    figure.canvas.draw()
    page = figure.bbox.padded(1)
    for ax in axes:
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("class j", "class i")
        for axis, side in ((ax.yaxis, 1), (ax.xaxis, 0)):
            labels, places = axis.get_ticklabels(), axis.get_ticklocs()
            ticks = ax.transData.transform(np.column_stack([places, places]))[:, side]
            size, turn = labels[0].get_fontsize(), 0.707 if labels[0].get_rotation() == 45 else 1.0
            assert size >= 6
            assert turn * np.abs(np.diff(ticks)).min(initial=1e3) >= 0.95 * size * figure.dpi / 72
        for text in (*ax.get_yticklabels(), *ax.get_xticklabels(), ax.title, ax.xaxis.label, ax.yaxis.label):
            box = text.get_window_extent()
            assert page.contains(*box.min), text
            assert page.contains(*box.max), text
        cell = np.abs(np.diff(ax.transData.transform([(0, 0), (1, 1)]), axis=0))[0]
        values = [text for text in ax.texts if text.get_fontsize() >= 4.5 and text.get_fontsize() != 10]
        assert len(values) == (classes**2 if has_values else 0)
        assert all((text.get_window_extent().size <= cell).all() for text in values)


@pytest.mark.parametrize("cmap", ["Blues", "RdBu", "viridis", "gray", "coolwarm"])
def test_values_stand_out_from_every_colour_of_a_scale(cmap: str) -> None:
    """A contrast of 4.5 is WCAG's level AA for text; its formula, in plain steps."""
    for colour in mpl.colormaps[cmap](np.linspace(0, 1, 101))[:, :3]:
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in map(float, colour)]
        luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
        contrast = {"black": (luminance + 0.05) / 0.05, "white": 1.05 / (luminance + 0.05)}
        assert contrast[drawing.text_colour(colour)] >= 4.5


def test_what_is_drawn_can_be_chosen() -> None:
    result = _result(10)
    counts = {}
    for annotate in (True, False, "auto"):
        figure = drawing.new_figure(1.6, 1.4)
        ax = result.plot(figure.add_subplot(), annotate=annotate, colorbar=False, fontsize=5)
        figure.canvas.draw()
        counts[annotate] = sum(text.get_fontsize() <= 5 for text in ax.texts)
        assert len(figure.axes) == 1
        assert {label.get_fontsize() for label in ax.get_yticklabels()} == {5}
    assert counts == {True: 100, False: 0, "auto": 0}
    (bar,) = [ax for ax in figure_of(result.plot(title="")).axes if ax.get_ylabel() == "C[i, j]"]
    assert bar.get_ylim() == (0, 1)
    with pytest.raises(InputError, match="annotate: expected True, False or 'auto', found 'some'"):
        result.plot(annotate="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fontsize: expected points above 0, found 0"):
        result.plot(fontsize=0)


def test_a_picture_is_what_its_name_says(tmp_path: Path) -> None:
    result = _result(2, ("größe", "γάτα"))
    contents = {}
    for name in ("a.png", "a.pdf", "a.svg"):
        contents[name] = result.save_picture(tmp_path / name).read_bytes()
    assert contents["a.png"].startswith(b"\x89PNG")
    assert contents["a.pdf"].startswith(b"%PDF")
    assert b"/FontFile2" in contents["a.pdf"]  # TrueType, embedded
    assert b"/Type3" not in contents["a.pdf"]
    assert b"</svg>" in contents["a.svg"]
    assert b"<text" not in contents["a.svg"]  # outlines
    assert result.save_picture(tmp_path / "a.pdf").read_bytes() == contents["a.pdf"]  # neither date nor random names
    sizes = [len(result.save_picture(tmp_path / "b.png", dpi=dpi).read_bytes()) for dpi in (50, 300)]
    assert sizes[0] < sizes[1]
    with pytest.raises(InputError, match=r"ends in .png, .pdf, .svg, found '.jpg'"):
        result.save_picture(tmp_path / "a.jpg")
    assert not (tmp_path / "a.jpg").exists()


def test_names_that_differ_at_their_ends_stay_apart() -> None:
    names = tuple(f"a rather long name, number {number}" for number in range(12))
    labels, _ = class_labels(names)
    assert len(set(labels)) == 12
    assert max(map(len, labels)) <= 18
