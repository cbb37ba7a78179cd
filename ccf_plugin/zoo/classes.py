"""Class names: their order where folders give it, a file or a model that gives another, and names that can be shown."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ccf_plugin.errors import InputError, counted, some_of
from ccf_plugin.files import by_numbers_inside
from ccf_plugin.zoo.class_lists import KNOWN

_LARGEST_FILE = 10_000_000
_NUMBER = re.compile(r"[0-9]+")
_IMAGENET_CLASSES = 1000
_SAME = {
    "plane": "airplane",
    "aeroplane": "airplane",
    "car": "automobile",
    "tshirt": "tshirttop",
    "computerkeyboard": "keyboard",
}
_SHOWN = 6


def in_order(names: Sequence[str]) -> list[str]:
    """Whole numbers by their value ("2" before "10"), then the other names as text."""
    return sorted(names, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))


def order_in_doubt(ordered: Sequence[str]) -> str | None:
    """Why the order that ``in_order`` gave to folders may not be the one that was meant; None where it is plain."""
    numbers = [name for name in ordered if _is_number(name)]
    words = [name for name in ordered if not _is_number(name)]
    doubts = []
    if numbers and words:
        doubts.append("whole numbers, which come first, stand beside other names")
    elif numbers and [int(name) for name in numbers] != list(range(len(numbers))):
        doubts.append("the numbers are not 0, 1, 2, … without a gap")
    if any(name != str(int(name)).zfill(min(map(len, numbers))) for name in numbers):
        doubts.append("some numbers are padded with zeros and some are not")
    alike = [group for group in _grouped(ordered) if len(group) > 1]
    if alike:
        doubts.append(f"names differ by case alone ({some_of(alike[0])})")
    if words != sorted(words, key=by_numbers_inside):
        doubts.append("numbers inside names count as text")
    return "; ".join(doubts) or None


def order_of_known_list(classes: Sequence[str]) -> str | None:
    """The data set whose class names these are, in another order than its own; else None."""
    letters = [_letters(name) for name in classes]
    for name, known_names in KNOWN.items():
        known_letters = [_letters(known_name) for known_name in known_names]
        if sorted(letters) == sorted(known_letters):
            return None if letters == known_letters else name
    if len(classes) != _IMAGENET_CLASSES:
        return None
    from timm.data import ImageNetInfo

    table = ImageNetInfo()
    wnids = table.label_names()
    words = [_first_word(table.label_name_to_description(wnid)) for wnid in wnids]
    count = Counter(words)  # "crane" is two classes
    position = {name: index for names in (words, wnids) for index, name in enumerate(names) if count[name] < 2}
    known = [place for name in classes if (place := position.get(_first_word(name))) is not None]
    # Nine in ten: each list spells some of the words in its own way.
    return "ImageNet" if len(known) >= 0.9 * _IMAGENET_CLASSES and known != sorted(known) else None


def read_class_names(path: Path) -> list[str]:
    """The names in a file, one a line, in their order; empty lines at its end do not count.

    Raises:
        InputError: no such file, not UTF-8, an empty line among the names, or nothing in it.
    """
    if not path.is_file():
        content = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: expected class names, one a line, found {content}; check the path")
    if (size := path.stat().st_size) > _LARGEST_FILE:
        raise InputError(f"{path}: expected class names, one a line, found {size:,} bytes; is it another file?")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, found other bytes; convert the file") from error
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "\0" in text or names == [""]:
        content = "nothing" if names == [""] else "bytes that are no text"
        raise InputError(f"{path}: expected class names, one a line, found {content}; is it another file?")
    if "" in names:
        line = names.index("") + 1
        raise InputError(f"{path}: expected a class name in each line, found none in line {line}; remove the line")
    return names


def matched(
    spec: str, data_names: Sequence[str], chosen: Sequence[str], source: str, readable: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[int]]:
    """The names that are ``chosen``, and for each of them the index of its class in ``data_names``.

    They are the data's own names (or the ``readable`` forms of those) in any order; or, where the data's own are whole
    numbers, as many other names, in the order of the numbers.

    Raises:
        InputError: other names, or another number of them.
    """
    for known in (data_names, readable):
        if len(set(chosen)) == len(chosen) and sorted(chosen) == sorted(known):
            index = {name: place for place, name in enumerate(known)}
            return tuple(chosen), [index[name] for name in chosen]
    if len(chosen) == len(data_names) and all(map(_is_number, data_names)) and not set(chosen) & set(data_names):
        return _with_unique_names(chosen), list(range(len(data_names)))
    raise InputError(
        f"{source}: expected the names of the {len(data_names)} classes of {spec} in their order "
        f"({some_of(data_names)}), found {_difference(data_names, chosen)}; correct the names, or choose other data"
    )


def printable(name: str) -> str:
    """A name that every file and picture can hold: bytes of a folder's name that are not UTF-8 become ``\\xe9``."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character that is not out of a file system
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def listed(names: Sequence[str]) -> str:
    """The first of many names, for a note."""
    return some_of(names, _SHOWN)


def _is_number(name: str) -> bool:
    return _NUMBER.fullmatch(name) is not None


def _grouped(names: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    return list(groups.values())


def _letters(name: str) -> str:
    """A name as every spelling of it has it: "T-shirt_top" as "T-shirt/top", "car" as "automobile"."""
    letters = "".join(filter(str.isalnum, name.lower()))
    return _SAME.get(letters, letters)


def _first_word(name: str) -> str:
    return name.split(",")[0].strip().lower().replace("_", " ")


def _with_unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Two classes of one name, as ImageNet's "crane", get their numbers."""
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))


def _difference(data_names: Sequence[str], chosen: Sequence[str]) -> str:
    twice = [name for name, count in Counter(chosen).items() if count > 1]
    other = [name for name in chosen if name not in set(data_names)]
    missing = [name for name in data_names if name not in set(chosen)]
    parts = [counted(len(chosen), "name")]
    parts += [
        f"{kind}: {some_of(names)}"
        for kind, names in (("twice", twice), ("not theirs", other), ("missing", missing))
        if names
    ]
    return "; ".join(parts) if len(parts) == 1 else f"{parts[0]} ({'; '.join(parts[1:])})"
