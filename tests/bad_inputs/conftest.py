"""The command line in a folder of its own, and a run to damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import run_here
from support.runs import Quiet

from bad_inputs.cases import SETTINGS
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe_files import load_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(load_recipe("digits", SETTINGS), tmp_path_factory.mktemp("finished") / "run", Quiet()).folder


@pytest.fixture
def ccf(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Run ``ccf`` in this process, in a folder of its own: exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("gdown.download", fail)

    def run(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        return run_here(*arguments), capfd.readouterr().err

    return run
