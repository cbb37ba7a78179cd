"""What README, guide and documentation show is so: each snippet runs as it stands, in a process of its own, each
command and option exists, and each file that a page shows does what the page says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import typer
from nbclient import NotebookClient
from support.checkpoints import save_checkpoint
from support.commands import run, sets
from support.documents import DOCS, PAGES, ROOT, Block, blocks, page, titled

import ccf_plugin
from ccf_plugin import CrossClassProbe, class_attribution, correlation_matrix, plugins
from ccf_plugin.cli.app import app
from ccf_plugin.probe.result_files import ARRAYS, BITS, PARTS
from ccf_plugin.runs import layout
from ccf_plugin.runs.log import column_names, read_log
from ccf_plugin.training.recipe_files import load_recipe, shipped_recipes
from ccf_plugin.training.study import load_study
from ccf_plugin.zoo.models import build_model

# A block with a title is a file, which the test named here uses; all others run, or load, as they stand.
FILES = {
    "my_net.py": "test_the_study_of_a_network_of_ones_own_trains_it",
    "mine.toml": "test_the_study_of_a_network_of_ones_own_trains_it",
    "my_losses.py": "test_the_loss_and_the_data_train",
    "my_sharing_losses.py": "test_the_loss_that_reads_the_head_is_cross_entropy_less_cas",
    "my_attacks.py": "test_the_loss_and_the_attack_are_what_the_package_takes",
    "my_data.py": "test_the_loss_and_the_data_train",
    "eps.toml": "test_the_study_of_the_tutorial_writes_what_it_names",
    "my_entry.py": "test_a_run_becomes_an_entry_of_robustbench",
    "pyproject.toml": "test_the_entry_point_of_a_plugin_is_in_the_group_that_is_loaded",
}
SNIPPETS = [block for block in blocks("python") if not block.title]
OF_RUNS = [block for block in blocks("toml") if not block.title and "[project" not in block.code]
STUDIES = [block for block in OF_RUNS if "[runs." in block.code]
RECIPES = [block for block in OF_RUNS if block not in STUDIES]

# RobustBench's snippet downloads weights and images: random ones stand in, behind the same two functions.
OFFLINE = """
import torch
from ccf_plugin.zoo.robustbench_models import import_robustbench
import_robustbench()
import robustbench.data, robustbench.utils
from robustbench.model_zoo import model_dicts
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
def load_model(name, *, dataset, threat_model):
    torch.manual_seed(0)
    return model_dicts[BenchmarkDataset(dataset)][ThreatModel(threat_model)][name]["model"]().eval()
robustbench.utils.load_model = load_model
robustbench.data.load_cifar10 = lambda n_examples: (torch.rand(n_examples, 3, 32, 32), torch.arange(n_examples) % 10)
"""

# MAIR is not on PyPI: a trainer of ours makes the same calls in the same order (the real 1.0.3 was tried by hand).
LIKE_MAIR = """
import sys, types
import torch
class RobModel(torch.nn.Module):
    def __init__(self, model, n_classes):
        super().__init__()
        self.model = model
    def forward(self, images):
        return self.model(images)
class TRADES:
    def __init__(self, rmodel, eps, alpha, steps, beta):
        import torchattacks
        self.rmodel, self.beta, self.atk = rmodel, beta, torchattacks.TPGD(rmodel, eps, alpha, steps)
    def setup(self, optimizer, n_epochs, n_iters):
        self.optimizer = torch.optim.SGD(self.rmodel.parameters(), lr=0.1)
    def calculate_cost(self, batch):
        images, labels = batch
        clean = self.rmodel(images)
        logits = self.rmodel(self.atk(images))
        divergence = torch.nn.functional.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="batchmean")
        return torch.nn.functional.cross_entropy(clean, labels) + self.beta * divergence
    def _update_weight(self, batch):
        cost = self.calculate_cost(batch)
        self.optimizer.zero_grad()
        cost.backward()
        self.optimizer.step()
    def fit(self, train_loader, n_epochs, record_type, save_type):
        for batch in train_loader:
            self.rmodel.train()
            self._update_weight(batch)
sys.modules["mair"] = types.SimpleNamespace(RobModel=RobModel, TRADES=TRADES)
"""
HEAVY = re.compile(
    r"^(?:import|from) (?:accelerate|lightning|mair|robustbench|timm|transformers)\b", re.M
)  # seconds to import
SLOW_PAGES = (
    *("docs/how-to/ablate.md", "docs/how-to/attacks.md", "docs/how-to/own-code.md", "docs/how-to/pictures.md"),
    *("docs/how-to/studies.md", "docs/explanation/head.md", "docs/tutorials/your-loop.md"),
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def test_each_file_that_a_page_shows_is_tested() -> None:
    shown = sorted(block.title for language in ("python", "toml") for block in blocks(language) if block.title)
    assert shown == sorted(FILES)
    assert set(FILES.values()) <= set(globals())


def test_the_entry_point_of_a_plugin_is_in_the_group_that_is_loaded() -> None:
    assert list(tomllib.loads(titled("pyproject.toml"))["project"]["entry-points"]) == [plugins.GROUP]


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(each, marks=pytest.mark.slow if HEAVY.search(each.code) or each.page in SLOW_PAGES else ())
        for each in SNIPPETS
    ],
    ids=str,
)
def test_snippet_runs(block: Block, tmp_path: Path) -> None:
    code = block.code
    prelude = "import torch; torch.set_num_threads(1)\n"
    prelude += (OFFLINE if "robustbench" in code else "") + (LIKE_MAIR if "import mair" in code else "")
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout)  # each prints what it measured
    says_robust = re.search(r"\bRA( \(\S+\))? = ", done.stdout) is not None
    assert says_robust == any(call in code for call in ("attack(images", "attack_pgd(", "mair.TRADES", "run("))
    assert_alike(block.output or done.stdout, done.stdout)


def assert_alike(shown: str, printed: str) -> None:
    """The lines that a page shows are among those printed, in order; numbers may differ as processors differ."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        words, numbers = NUMBER.split(_spaced(line)), [float(number) for number in NUMBER.findall(line)]
        same = next((other for other in lines if NUMBER.split(_spaced(other)) == words), None)
        assert same is not None, line
        np.testing.assert_allclose([float(number) for number in NUMBER.findall(same)], numbers, rtol=0.1, atol=0.05)


def _spaced(line: str) -> str:
    return re.sub(r"[ ─│]+", " ", line).strip()


def test_lines_that_differ_are_told() -> None:
    assert_alike("│ RA  86.7% │", "┌──┐\n│ RA      86.2%    │\n")
    for shown in ("RA 86.7%\nCAS 5", "RA 70%", "RA of 86.2%", "CAS 7.4\nRA 86.2%"):
        with pytest.raises(AssertionError):
            assert_alike(shown, "RA 86.2%\nCAS 7.4")


def test_the_readme_is_short_and_tells_every_command() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    commands = re.findall(r"^\| `ccf ([\w-]+)` \| \S", text, re.M)
    assert commands == list(typer.main.get_command(app).commands)


def test_the_figures_of_the_small_run_are_its_log_s() -> None:
    rows = {row.epoch: row for row in read_log(DOCS / "results" / "overfit_small")}
    best, last = rows[13], rows[40]
    assert max(rows.values(), key=lambda row: row.test_robust_accuracy) is best
    figures = [f"{row.test_robust_accuracy:.1%}".replace("%", " %") for row in (best, last)]
    for name in ("cas", "cas_excess"):
        figures += [f"{getattr(row, name):.1f}" for row in (best, last)]
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert "falls from {} to {} after epoch 13".format(*figures) in text
    assert "CAS falls from {} to {}, of which {} and {} are beyond chance".format(*figures[2:]) in text
    for row in (rows[2], best, last):
        shares = [f"{share:.1%}".replace("%", " %") for share in (row.train_robust_accuracy, row.test_robust_accuracy)]
        cells = [str(row.epoch), *shares, f"{row.cas:.1f}", f"{row.cas_excess:.1f}"]
        assert f"| {' | '.join(cells)} |" in page("results/small-runs.md")


@pytest.mark.slow
def test_what_readme_shows_of_the_digits_is_printed(tmp_path: Path) -> None:
    """Its first command trains them; then it probes that run."""
    code, _, err = run("train", "digits", cwd=tmp_path)
    assert code == 0, err
    code, out, err = run("probe", "runs/digits", cwd=tmp_path)
    assert code == 0, err
    (block,) = [
        block for block in blocks("bash") if block.page == "README.md" and "ccf probe runs/digits" in block.code
    ]
    assert_alike(block.output, out)


@pytest.mark.slow
def test_the_notebook_gives_what_it_shows(tmp_path: Path) -> None:
    shown = nbformat.read(DOCS / "tutorials" / "digits.ipynb", as_version=4)
    again = deepcopy(shown)
    NotebookClient(again, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert _printed(shown)
    assert_alike(_printed(shown), _printed(again))
    assert (tmp_path / "C.png").is_file()


def _printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_recipe_loads(block: Block, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(block.code)
    load_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("block", STUDIES, ids=str)
def test_study_loads(block: Block, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(block.code)
    load_study(str(tmp_path / "mine.toml"))


def test_each_command_and_option_exists() -> None:
    """In blocks and within sentences: ``ccf NAME`` with its options, as far as the line goes."""
    known = {
        name: {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in typer.main.get_command(app).commands.items()
    }
    lines = [line for block in blocks("bash") for line in block.code.replace("\\\n", " ").splitlines()]
    lines += [code for path in PAGES for code in re.findall(r"`(ccf [^`]+)`", path.read_text("utf-8"))]
    found = [match for line in lines for match in re.finditer(r"\bccf(?:_plugin)? ([a-z][\w-]*)([^#&|]*)", line)]
    assert len(found) > 50
    for match in found:
        assert match[1] in known, match[0]
        options = {word.split("=")[0] for word in re.findall(r"(?<!\S)--[\w-]+", match[2])}
        assert options <= known[match[1]] | {"--help"}, match[0]


def test_each_recipe_that_is_named_is_shipped() -> None:
    text = "".join(path.read_text("utf-8") for path in PAGES)
    named = set(re.findall(r"ccf (?:train|sweep) (?:recipes/)?([a-z_0-9]+)\b(?!/)", text))
    assert named
    assert named <= set(shipped_recipes())


def test_each_study_has_its_page_or_is_named_among_those_that_wait() -> None:
    waiting = page("results/index.md").split("## What waits for a GPU")[1]
    for path in (ROOT / "recipes" / "studies").glob("*.toml"):
        assert (DOCS / "results" / f"{path.stem}.md").is_file() or f"| `{path.stem}` |" in waiting, path.stem


def test_links_lead_to_files() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_the_page_of_files_names_every_field_of_a_result_and_every_column() -> None:
    sections = re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", page("reference/files.md"), re.M | re.S)
    cells = {heading: " ".join(re.findall(r"^\| (`.*?) \|", part, re.M)) for heading, part in sections}
    named = {heading: re.findall(r"`(.*?)`", found) for heading, found in cells.items()}
    model = torch.nn.Linear(4, 3)
    with CrossClassProbe(model) as probe:
        model(torch.rand(3, 4))
        probe.update(torch.arange(3))
        result = probe.compute()
    assert sorted(named["A result: .json"]) == sorted(result.to_json())
    assert sorted(named["A result: .npz"]) == sorted((*ARRAYS, *PARTS, *BITS))
    assert sorted(named["log.csv"]) == sorted(column_names(averaged=False, validated=False))
    for name in (layout.RECIPE, layout.ENVIRONMENT, layout.LOG, "best.safetensors", "last_average.safetensors"):
        assert name in named["A run's folder"]


def test_the_api_page_has_each_public_name_once() -> None:
    listed = re.findall(r"^::: ccf_plugin\.(\w+)$", page("reference/api.md"), re.M)
    assert sorted([*listed, "__version__"]) == sorted(ccf_plugin.__all__)


def test_the_loss_and_the_attack_are_what_the_package_takes() -> None:
    found: dict[str, Any] = {}
    exec(titled("my_losses.py") + titled("my_attacks.py"), found)
    images, labels = torch.rand(4, 3, 2, 2), torch.arange(4) % 3
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    output = found["margin"](network, images, images, labels, gap=0.5)
    assert output.loss.requires_grad
    assert torch.equal(output.logits, network(images))
    adversarial = found["reflected"](network, 0.1)(images, labels)
    torch.testing.assert_close((adversarial - images).abs(), torch.full_like(images, 0.1))


def test_the_study_of_a_network_of_ones_own_trains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my_net.py", "my_losses.py", "mine.toml"):
        (tmp_path / name).write_text(titled(name))
    monkeypatch.syspath_prepend(tmp_path)
    study = load_study(str(tmp_path / "mine.toml"), allow_code=True)
    recipes = {member.name: member.recipe for member in study.members}
    assert [recipe.objective.loss for recipe in recipes.values()] == ["madry", "python:my_losses:margin"]
    for recipe in recipes.values():
        assert recipe.model.options == {}
        model = build_model(recipe.model.name, num_classes=7, input_size=(3, 16, 16), options=recipe.model.options)
        assert model(torch.rand(2, 3, 16, 16)).shape == (2, 7)


def test_the_loss_that_reads_the_head_is_cross_entropy_less_cas() -> None:
    found: dict[str, Any] = {}
    exec(titled("my_sharing_losses.py"), found)
    g, head, labels = torch.rand(6, 4), torch.randn(3, 4), torch.arange(6) % 3
    logits = g @ head.T
    output = found["sharing"](lambda _: logits, g, g, labels, features=lambda _: g, head=head, weight=3.0)
    matrix = correlation_matrix(class_attribution(g, head, labels))
    cas = matrix.clamp(min=0).sum() - 3
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits, labels) - 3 * cas / 6)


@pytest.mark.slow
def test_the_loss_and_the_data_train(tmp_path: Path) -> None:
    for name in ("my_losses.py", "my_data.py"):
        (tmp_path / name).write_text(titled(name))
    settings = ["objective.loss=python:my_losses:margin", "objective.options.gap=2.0", "data.name=python:my_data:noise"]
    settings += ["optim.epochs=1", "evaluate.steps=1", "attack.steps=1"]
    code, _, err = run("train", "digits", "--out", "run", *sets(settings), cwd=tmp_path)
    assert code == 0, err
    with np.load(tmp_path / "run" / "probe" / "001.npz") as result:
        assert result["matrix"].shape == (3, 3)


@pytest.mark.slow
def test_the_study_of_the_tutorial_writes_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "eps.toml").write_text(titled("eps.toml"))
    code, out, err = run("study", "eps.toml", "--page", "results", *sets(["optim.epochs=1"]), cwd=tmp_path)
    assert code == 0, err
    assert "eps5.cas > eps20.cas" in out
    for name in ("results/eps.md", "results/eps.png", "runs/eps/table.tex"):
        assert (tmp_path / name).is_file()
    code, _, err = run(
        "compare", "runs/eps/eps20-0", "runs/eps/eps5-0", "--eps", "5/255", "--format", "pdf", cwd=tmp_path
    )
    assert code == 0, err


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A network as a run of preact_linf saves it, and what RobustBench's ``load_model`` makes of the page's entry."""
    recipe = load_recipe("preact_linf").model
    torch.manual_seed(0)
    model = build_model(recipe.name, num_classes=10, input_size=(3, 32, 32), mean=recipe.mean, std=recipe.std)
    model(torch.rand(8, 3, 32, 32))  # moves BatchNorm's statistics
    description = {"model": recipe.model_dump(), "classes": list("0123456789"), "input_size": [3, 32, 32]}
    save_checkpoint(tmp_path / "runs/preact_linf/best.safetensors", model.eval(), description)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(titled("my_entry.py"), names)

    import robustbench
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    entries = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
    monkeypatch.setitem(entries, "Mine", {"model": names["Mine"], "gdrive_id": "none"})
    return model, robustbench.load_model("Mine", dataset="cifar10", threat_model="Linf")


def test_a_run_becomes_an_entry_of_robustbench(entry: tuple[torch.nn.Module, torch.nn.Module]) -> None:
    model, loaded = entry
    images = torch.rand(4, 3, 32, 32)
    assert not loaded.training
    torch.testing.assert_close(loaded(images), model(images))


@pytest.mark.slow
def test_robustbench_s_benchmark_takes_it(
    entry: tuple[torch.nn.Module, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    import robustbench

    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        labels = entry[0](images).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % 10
    monkeypatch.setattr("robustbench.eval.load_clean_dataset", lambda *_: (images, labels))
    for network in entry:
        figures = robustbench.benchmark(network, n_examples=4, dataset="cifar10", threat_model="Linf", eps=0.1)
        assert figures == (0.5, 0.0)
