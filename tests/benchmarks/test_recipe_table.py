"""recipes/README.md's column of measurements is what the committed studies say; so are their pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccf_plugin.report.study_page import MOST_BYTES, build_page

from .recipe_table import RESULTS, TABLE, filled

KEPT = sorted(path.parent for path in RESULTS.glob("*/study.json"))


def test_the_table_is_what_the_script_writes() -> None:
    text = TABLE.read_text("utf-8")
    assert filled(text) == text, "run python tests/benchmarks/recipe_table.py"


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_page_is_what_its_committed_files_give(folder: Path) -> None:
    assert (folder.parent / f"{folder.name}.md").read_text("utf-8") == build_page(folder)[0]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert not [path for path in files if path.suffix == ".safetensors"]
