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
