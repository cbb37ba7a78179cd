"""Every Python snippet of the README runs as it stands."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from ccf_plugin.training.recipe_files import load_recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_there_are_snippets() -> None:
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})


def test_the_recipe_in_the_readme_is_one(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^```toml\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.toml").write_text(recipe)
    assert load_recipe(str(tmp_path / "mine.toml")).distill[0].weight == 0.5
