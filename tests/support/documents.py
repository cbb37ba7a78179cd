"""What stands in README, guide and documentation: their pages, and the blocks of code on each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *sorted(DOCS.rglob("*.md")))
_FENCE = re.compile(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block of code. ``title`` is the file that it is part of, where a page says one; ``output`` the text that the
    page shows directly below it, or "".
    """

    page: str
    heading: str
    language: str
    title: str
    code: str
    output: str

    def __str__(self) -> str:
        return f"{self.page}: {self.title or self.heading}"


def page(name: str) -> str:
    """A page's text: ``page("results/speed.md")`` of the documentation."""
    return (DOCS / name).read_text("utf-8")


def blocks(language: str) -> list[Block]:
    """All blocks in this language."""
    return [block for path in PAGES for block in _of_page(path) if block.language == language]


def titled(title: str) -> str:
    """The code of the one block with this title."""
    (block,) = [block for path in PAGES for block in _of_page(path) if block.title == title]
    return block.code


def _of_page(path: Path) -> list[Block]:
    text = path.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        headings = re.findall(r"^#+ (.+)$", text[: match.start()], re.M)
        below = re.match(r"\n+```text\n(.*?)^```$", text[match.end() :], re.M | re.S)
        name = path.relative_to(ROOT).as_posix()
        output = below[1] if below else ""
        found.append(Block(name, headings[-1] if headings else "", match[1], match[2] or "", match[3], output))
    return found
