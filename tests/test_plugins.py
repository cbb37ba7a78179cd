"""Plug-ins: an installed distribution with an entry point adds to every table, in one file."""

from __future__ import annotations

import csv
import functools
import shutil
import sys
from pathlib import Path

import pytest
from support.commands import run
from support.runs import PLUGIN

import ccf_plugin
from ccf_plugin import plugins
from ccf_plugin.errors import InputError

RECIPE = (
    PLUGIN
    + """
[objective]
loss = "halved"
"""
)


def _install(folder: Path, code: str, name: str = "own") -> Path:
    """What pip leaves of a package ``my-package`` with one module and an entry point for it."""
    module = f"{name}_module"
    (folder / f"{module}.py").write_text(code)
    info = folder / f"my_package_{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: my-package-{name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[ccf_plugin]\n{name} = {module}\n")
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, from which nothing was loaded yet."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(plugins, "_not_imported", functools.cache(plugins._not_imported.__wrapped__))
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    return folder


def test_a_plugin_is_imported_once_at_the_first_name_that_it_may_extend(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _install(site, "print('loaded')\nfrom ccf_plugin import METRICS, OBJECTIVES, train")
    assert ccf_plugin.CrossClassProbe is not None
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert ccf_plugin.load_recipe is not None
    assert capsys.readouterr() == ("", "loaded\n")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_module_that_is_missing", "ModuleNotFoundError: No module named 'a_module_that_is_missing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('done')", "SystemExit: done"),
        ("from ccf_plugin import OBJECTIVES, gone", "ImportError: cannot import name 'gone' from 'ccf_plugin'"),
    ],
)
def test_one_that_fails_is_named_in_one_line_each_time(code: str, reason: str, site: Path) -> None:
    _install(site, code)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            ccf_plugin.load_recipe  # noqa: B018
        assert str(caught.value).startswith(
            f"plug-in 'own' of my-package-own 1.5: expected it to be imported, found that importing own_module fails "
            f"({reason}"
        )
        assert str(caught.value).endswith("; correct it, or uninstall its package")


def test_the_command_line_ends_in_that_line(tmp_path: Path) -> None:
    code, out, err = run("--version", cwd=tmp_path, found_in=[_install(tmp_path, "1 / 0")])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ccf: plug-in 'own' of my-package-own 1.5: expected it to be imported")


@pytest.mark.slow
def test_one_file_adds_a_loss_a_figure_data_and_models(tmp_path: Path) -> None:
    """Four processes, none of which imports the plug-in by itself."""
    site = tmp_path / "site"
    site.mkdir()
    _install(site, (Path(__file__).parent / "support" / "plugin.py").read_text())
    (tmp_path / "mine.toml").write_text(RECIPE)

    def ccf(*arguments: object) -> str:
        code, out, err = run(*arguments, cwd=tmp_path, found_in=[site])
        assert (code, err) == (0, "")
        return out

    progress = ccf("train", "mine.toml", "--out", "run")
    assert "largest C " in next(line for line in progress.splitlines() if line.startswith("epoch 1 · "))
    (row,) = csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines())
    assert float(row["largest"]) <= 1
    written = (tmp_path / "run" / "recipe.toml").read_text()
    assert ['loss = "halved"' in written, 'name = "PGD"' in written] == [True, True]
    ccf("report", "run", "--out", "page.html")
    assert '"name":"largest","label":"largest C"' in (tmp_path / "page.html").read_text()
    text = " ".join(ccf("probe", "--help").split())
    assert ["mine:SIZE" in text, "dots:COUNT" in text] == [True, True]
    shutil.rmtree(site)
    code, _, err = run("train", "mine.toml", "--out", "another", cwd=tmp_path)
    faults = err.splitlines()
    assert code == 2
    assert [any(key in line for line in faults) for key in ("objective.loss", "data.name", "model.name")] == [True] * 3
