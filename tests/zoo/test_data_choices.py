"""Where data and models lie, and which class names count: options and recipes before variables before defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import Ccf, sets
from support.runs import SMALLEST

from ccf_plugin.errors import UnavailableError
from ccf_plugin.runs.log import read_log
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.zoo.datasets import load_data
from ccf_plugin.zoo.folders import DATA_FOLDER, MODEL_FOLDER, folder_from
from ccf_plugin.zoo.models import load_model

SETTINGS = [*SMALLEST, "optim.epochs=1", "optim.batch_size=16"]


@pytest.mark.parametrize("default", [DATA_FOLDER, MODEL_FOLDER])
@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        ("given", "variable", "given"),
        (Path("given"), None, "given"),
        (None, "variable", "variable"),
        (None, "", "{default}"),
        (None, None, "{default}"),
        (None, "~/there", "{home}/there"),
    ],
)
def test_what_is_given_then_the_variable_then_the_default(
    given: str | Path | None,
    variable: str | None,
    expected: str,
    default: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(default[0], raising=False)
    monkeypatch.setenv("HOME", "/home/of/nobody")
    for value in [] if variable is None else [variable]:
        monkeypatch.setenv(default[0], value)
    assert folder_from(given, default) == Path(expected.format(default=default[1], home="/home/of/nobody"))


def test_the_variables_reach_data_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCF_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("CCF_MODELS", str(tmp_path / "weights"))
    with pytest.raises(UnavailableError, match="elsewhere/imagenet/train"):
        load_data("imagenet")
    with pytest.raises(UnavailableError, match="typed/imagenet/train"):
        load_data("imagenet", root=tmp_path / "typed")
    place = tmp_path / "weights" / "cifar10" / "Linf" / "Wong2020Fast.pt"
    place.parent.mkdir(parents=True)
    place.write_text("<html>")
    with pytest.raises(UnavailableError, match=r"weights/cifar10/Linf/Wong2020Fast\.pt held a web page"):
        load_model("robustbench:Wong2020Fast")


# What the command line, the recipe and the variable say, and where the data are looked for.
ROOTS = [
    ("option", "recipe", "variable", "option"),
    (None, "recipe", "variable", "recipe"),
    (None, None, "variable", "variable"),
    (None, None, None, "data"),
]


@pytest.mark.parametrize(("option", "recipe", "variable", "expected"), ROOTS)
def test_the_root_of_a_run(
    option: str | None,
    recipe: str | None,
    variable: str | None,
    expected: str,
    ccf: Ccf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CCF_DATA", raising=False)
    for value in [] if variable is None else [variable]:
        monkeypatch.setenv("CCF_DATA", value)
    line = "" if recipe is None else f'root = "{recipe}"'
    Path("mine.toml").write_text(f'base = "digits"\n[data]\nname = "tinyimagenet"\n{line}\n')
    typed = [] if option is None else ["--set", f"data.root={option}"]
    code, _, err = ccf("train", "mine.toml", *typed)
    assert code == 1
    assert f"expected {expected}/tiny-imagenet-200/train" in err


@pytest.mark.parametrize(
    ("option", "variable", "expected"),
    [("typed", "variable", "typed"), (None, "variable", "variable"), (None, None, "data")],
)
def test_the_root_of_a_measurement(
    option: str | None, variable: str | None, expected: str, ccf: Ccf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CCF_DATA", raising=False)
    for value in [] if variable is None else [variable]:
        monkeypatch.setenv("CCF_DATA", value)
    typed = [] if option is None else ["--data-root", option]
    for command in (["probe", "python:bad_inputs.cases:network", "--data", "imagenet"], ["fix-tinyimagenet"]):
        code, _, err = ccf(*command, *typed)
        assert code == 1
        assert f"expected {expected}/" in err


def _numbered(root: Path, names: list[str]) -> str:
    """8×8 images of stripes, whose brightness tells the class."""
    for split, count in (("train", 4), ("test", 2)):
        for place, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), 20 * place + number).save(folder / f"{number}.png")
    return f"folder:{root}"


def test_a_run_keeps_the_labels_that_it_was_trained_with(ccf: Ccf, tmp_path: Path) -> None:
    """With data.classes, and where the folders would sort otherwise today."""
    spec = _numbered(tmp_path / "data", [str(number) for number in range(11)])
    names = sorted(str(number) for number in range(11))  # as text, as before numbers counted
    Path("names.txt").write_text("\n".join(names))
    settings = sets([*SETTINGS, f"data.name={spec}", "data.test_limit=22", "data.classes=names.txt"])
    settings += ["--set", "objective.loss=standard", "--set", "precision=float32", "--set", "optim.epochs=4"]
    assert ccf("train", "digits", *settings, "--out", "run")[0] == 0
    assert load_recipe("run/recipe.toml").data.classes == "names.txt"
    found = json.loads(Path("run/probe/best.json").read_text())
    assert found["class_names"] == names
    Path("names.txt").unlink()
    for data in ([], ["--data", spec]):
        code, out, err = ccf("probe", "run/last.safetensors", "--clean", "--json", *data)
        assert (code, err) == (0, "")
        assert json.loads(out)["class_names"] == names
        assert json.loads(out)["clean_accuracy"] == pytest.approx(
            read_log(Path("run"))[-1].test_clean_accuracy, abs=1e-6
        )
    other = _numbered(tmp_path / "other", [str(number) for number in range(11)])
    code, _, err = ccf("probe", "run", "--clean", "--data", other)
    assert (code, err.count("\n")) == (2, 1)
    assert "their order must be the model's" in err


def test_names_on_the_command_line(ccf: Ccf, tmp_path: Path) -> None:
    spec = _numbered(tmp_path / "data", [str(number) for number in range(10)])
    Path("names.txt").write_text("\n".join("abcdefghij"))
    command = ["probe", "python:bad_inputs.cases:network", "--data", spec, "--clean", "--json", "--classes"]
    code, out, err = ccf(*command, "names.txt")
    assert code == 0, err
    assert "order" not in err
    assert json.loads(out)["class_names"] == list("abcdefghij")
    code, _, err = ccf(*command, "gone.txt")
    assert (code, err) == (2, "ccf: gone.txt: expected class names, one a line, found no such file; check the path\n")


def test_a_note_is_said_once_by_a_command_that_reads_the_data_twice(ccf: Ccf, tmp_path: Path) -> None:
    spec = _numbered(tmp_path / "data", [str(number) for number in range(1, 11)])
    network = "python:bad_inputs.cases:network"
    code, _, err = ccf("compare", network, network, "--data", spec, "--clean")
    assert code == 0, err
    assert err.count("classes in doubtful order") == 1


def test_class_folders_of_any_name_are_trained_on_probed_and_drawn(ccf: Ccf, tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in (b"caf\xe9", "猫".encode(), "قطة".encode(), "🚀".encode(), b"$\\frac$")]
    spec = _numbered(tmp_path / "data", names)
    code, _, err = ccf(
        "train", "digits", *sets([*SETTINGS, f"data.name={spec}", "probe.pictures=true"]), "--out", "run"
    )
    assert code == 0, err
    assert [line.partition("note: ")[2][:20] for line in err.splitlines()] == [spec[:20], "no font here has the"]
    assert Path("run/probe/001.png").is_file()
    shown = json.loads(Path("run/probe/001.json").read_text())["class_names"]
    assert sorted(shown) == sorted([r"caf\xe9", "猫", "قطة", "🚀", "$\\frac$"])
    code, _, err = ccf("probe", "run", "--clean", "--out", "found")
    assert code == 0, err
    assert err.count("\n") <= 2
    with np.load("found.npz") as arrays:
        assert arrays["matrix"].shape == (5, 5)
