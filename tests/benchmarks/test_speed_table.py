from __future__ import annotations

from pathlib import Path

from .speed_table import gpu_table, table

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_the_tables_of_the_results() -> None:
    assert table() in README
    assert gpu_table() in README
