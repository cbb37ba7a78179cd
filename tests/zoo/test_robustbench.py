from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.zoo.models import load_model

from .harmful import Harmful

NAME = "Rade2021Helper_R18_extra"  # a PreActResNet-18, small enough for tests


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "new" / "models"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, output: str, **__: Any) -> None:
        Path(output + "partial").write_bytes(b"half")
        print("Downloading...", file=sys.stderr)
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("gdown.download", fail)


def downloads(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, output: str, **__: Any) -> str:
        Path(output).write_bytes(content)
        return output

    monkeypatch.setattr("gdown.download", download)


def test_architectures() -> None:
    loaded = load_model(f"robustbench:{NAME}", pretrained=False)
    assert loaded.spec == f"robustbench:cifar10/Linf/{NAME}"
    assert (loaded.num_classes, loaded.data, loaded.input_size) == (10, "cifar10", (3, 32, 32))
    assert loaded.threat == {"norm": "Linf", "eps": 8 / 255}
    assert loaded.class_names is not None
    assert loaded.class_names[3] == "cat"
    assert loaded.preprocess is None
    assert loaded.model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("spec", "classes", "threat"),
    [
        ("CIFAR100/linf/Debenedetti2022Light_XCiT-S12", 100, {"norm": "Linf", "eps": 8 / 255}),
        ("cifar10/L2/Rade2021Helper_R18_ddpm", 10, {"norm": "L2", "eps": 0.5}),
        ("cifar10/corruptions/Modas2021PRIMEResNet18", 10, {"norm": "Linf", "eps": 8 / 255}),
    ],
)
def test_defaults_are_the_benchmark_s(spec: str, classes: int, threat: dict[str, Any]) -> None:
    loaded = load_model(f"robustbench:{spec}", pretrained=False)
    assert (loaded.num_classes, loaded.threat) == (classes, threat)
    assert loaded.preprocess is None


def test_imagenet_s_images_are_cropped_as_the_benchmark_does() -> None:
    loaded = load_model("robustbench:imagenet/Linf/Salman2020Do_R18", pretrained=False)
    assert (loaded.num_classes, loaded.threat) == (1000, {"norm": "Linf", "eps": 4 / 255})
    assert loaded.preprocess is not None
    assert loaded.preprocess(Image.new("RGB", (300, 500))).size == (224, 224)
    assert loaded.input_size == (3, 224, 224)


def test_a_checkpoint_in_its_place_is_loaded(models: Path) -> None:
    torch.manual_seed(0)
    trained = load_model(f"robustbench:{NAME}", pretrained=False).model
    path = models / "cifar10" / "Linf" / f"{NAME}.pt"
    path.parent.mkdir(parents=True)
    torch.save({f"module.{key}": value for key, value in trained.state_dict().items()}, path)
    loaded = load_model(f"robustbench:cifar10/Linf/{NAME}", model_dir=models)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.model(images), trained(images))


def test_no_network(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnavailableError) as caught:
        load_model(f"robustbench:{NAME}", model_dir=models)
    message = str(caught.value)
    assert f"could not download robustbench:cifar10/Linf/{NAME} (ConnectionError: no network)" in message
    assert "https://drive.google.com/uc?id=" in message
    assert message.endswith(f" as {models}/cifar10/Linf/{NAME}.pt")
    assert "\n" not in message
    assert caught.value.exit_code == 1
    assert not models.parent.exists(), "nothing is left behind"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("before", [False, True], ids=["downloaded", "there before"])
def test_a_web_page_under_the_name_of_the_weights_is_said_and_removed_if_it_came_now(
    before: bool, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
    path = models / "cifar10" / "Linf" / f"{NAME}.pt"
    if before:
        path.parent.mkdir(parents=True)
        path.write_bytes(page)
    else:
        downloads(page, monkeypatch)
    message = "remove it and run again" if before else "it was removed"
    with pytest.raises(UnavailableError, match=rf"held a web page instead of weights .* {message}") as caught:
        load_model(f"robustbench:{NAME}", model_dir=models)
    assert f"as {path}" in str(caught.value)
    assert path.exists() == models.exists() == before


def test_a_download_cut_short_is_removed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads(b"PK\x03\x04 cut short", monkeypatch)
    with pytest.raises(UnavailableError, match=r"the download of .* cannot be used"):
        load_model(f"robustbench:{NAME}", model_dir=models)
    assert not models.exists()


def test_nothing_is_unpickled(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = models / "cifar10" / "Linf" / f"{NAME}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "extra": Harmful(tmp_path / "harm")}, path)
    with pytest.raises(InputError, match="nothing is unpickled here"):
        load_model(f"robustbench:{NAME}", model_dir=models)
    assert not (tmp_path / "harm").exists()
    assert path.exists(), "the user's file stays"


def test_a_checkpoint_of_another_architecture(models: Path) -> None:
    path = models / "cifar10" / "Linf" / f"{NAME}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"another architecture than .*Missing key") as caught:
        load_model(f"robustbench:{NAME}", model_dir=models)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rade2021helper_r18_extar", f"did you mean .*'{NAME}'"),
        ("cifar10/L2/Carmon2019Unlabeled", "it exists as robustbench:cifar10/Linf/Carmon2019Unlabeled"),
        ("cifar11/Linf/X", "no dataset 'cifar11'; it has cifar10, cifar100, imagenet"),
        ("cifar10/L1/X", "no threat model for cifar10 'L1'"),
        ("Linf/X", "expected .*robustbench:"),
        ("", "expected .*robustbench:"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(f"robustbench:{spec}")


@pytest.mark.slow
def test_a_clean_interpreter_imports_it_quietly() -> None:
    """robustbench 1.1.1 imports ``autoattack``, which its dependency calls ``pyautoattack``."""
    code = (
        "from ccf_plugin.zoo.robustbench_models import import_robustbench, robustbench_resnets\n"
        "block = robustbench_resnets().PreActBlock\n"
        "import_robustbench()\n"
        "from robustbench.model_zoo.architectures.resnet import PreActBlock\n"
        "assert PreActBlock is block"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert result.returncode == 0, result.stderr
    assert "pkg_resources" not in result.stderr
