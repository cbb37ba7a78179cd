"""What is installed: the version, the typing marker, the shipped recipes, and documents that name what there is."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from support.documents import PAGES

import ccf_plugin
from ccf_plugin.training.recipe_files import shipped_recipes

ROOT = Path(__file__).parents[1]


def test_the_names_that_are_promised_exist() -> None:
    for name in ccf_plugin.__all__:
        assert getattr(ccf_plugin, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'CrossClassProbes'"):
        ccf_plugin.CrossClassProbes  # noqa: B018


def test_documents_import_public_names_alone() -> None:
    lines = [line.strip() for path in PAGES for line in path.read_text("utf-8").splitlines()]
    imports = [line for line in lines if re.match(r"(from|import) ccf_plugin(?!\.integrations\.)", line)]
    assert imports
    for line in imports:
        names = re.fullmatch(r"from ccf_plugin import ([\w, ]+?)(?:  #.*)?", line)
        assert line == "import ccf_plugin" or names, line
        assert names is None or {name.strip() for name in names[1].split(",")} <= set(ccf_plugin.__all__), line


def test_public_names_are_those_of_the_modules_and_come_when_asked_for() -> None:
    assert sorted([*ccf_plugin._MODULES, "__version__"]) == sorted(ccf_plugin.__all__)
    assert ccf_plugin.__version__ == metadata.version("ccf_plugin")


def test_no_public_name_is_a_rooms_too() -> None:
    """Importing a module sets its name in the package, in place of a function that is called the same."""
    rooms = {path.stem for path in Path(ccf_plugin.__file__).parent.iterdir()}
    assert not rooms & set(ccf_plugin.__all__)


MAKE_TENSORS = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn"} | {
    *("randperm", "tensor", "zeros"),
}
OF_THE_DEFAULT_DTYPE = {"empty", "eye", "linspace", "ones", "rand", "randn", "zeros"}


def test_every_tensor_says_where_and_of_what_dtype_it_is() -> None:
    """A host may have a default device and dtype of its own. What a module keeps follows them, as its weights do."""
    for path in Path(ccf_plugin.__file__).parent.rglob("*.py"):
        kept: set[ast.AST] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node in kept:
                continue
            if node.func.attr in ("register_buffer", "add_state"):
                kept |= set(ast.walk(node))
            elif node.func.attr in MAKE_TENSORS and ast.unparse(node.func.value) == "torch":
                said = {keyword.arg for keyword in node.keywords}
                wanted = {"device", "dtype"} if node.func.attr in OF_THE_DEFAULT_DTYPE else {"device"}
                assert wanted <= said, f"{path}, line {node.lineno}: {ast.unparse(node)}"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata.version("ccf_plugin") == project["version"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_files_that_the_guide_names_exist() -> None:
    package = ROOT / "ccf_plugin"
    for name in re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|toml))?|\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()):
        places = (ROOT / name, package / name, package / "training" / name)
        assert any(place.exists() for place in places), name


def test_types_are_shipped() -> None:
    assert (Path(ccf_plugin.__file__).parent / "py.typed").is_file()


def test_the_table_of_recipes_names_each_one() -> None:
    table = (ROOT / "recipes" / "README.md").read_text()
    for name in shipped_recipes():
        assert f"`{name}`" in table


def test_what_is_not_on_pypi_is_not_advised_as_if_it_were() -> None:
    """Anyone could register the name: an extra is installed from a clone, as ``errors._INSTALL`` alone says."""
    texts = [*PAGES, *(ROOT / "ccf_plugin").rglob("*.py"), *(ROOT / "recipes").rglob("*.toml")]
    lines = [line.strip() for path in texts for line in path.read_text("utf-8").splitlines()]
    advised = [line for line in lines if re.search(r"pip install\b.*\bccf_plugin(\[|\s|'|`|$)", line)]
    assert [line for line in advised if "clone" not in line and "git+" not in line] == []


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "ccf_plugin").rglob("*.py"))
    named = re.findall(r'missing_extra\("[^"]*", "([^"]*)", "([^"]*)"\)', sources)
    assert len(named) == sources.count("missing_extra(") - 1  # its definition
    for library, extra in named:
        assert any(line.startswith(library) for line in extras[extra]), (library, extra)
    advised = re.findall(r"\.\[([a-z]+)\]", "".join(path.read_text("utf-8") for path in PAGES))
    assert advised
    assert set(advised) <= set(extras)
