from __future__ import annotations

from support.documents import page

from .speed_table import gpu_table, table


def test_the_page_has_the_tables_of_the_results() -> None:
    assert table() in page("results/speed.md")
    assert gpu_table() in page("results/speed.md")
