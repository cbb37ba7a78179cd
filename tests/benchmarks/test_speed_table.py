from __future__ import annotations

from pathlib import Path

from .speed_table import table


def test_the_readme_has_the_table_of_the_results() -> None:
    assert table() in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
