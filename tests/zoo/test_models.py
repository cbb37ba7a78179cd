from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import save_checkpoint
from torch import nn

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.zoo.models import build_model, load_model

OWN_CODE = """
from torch import nn

def net(hidden=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, 2))

ready = net()
number = 3

def fails():
    raise ValueError("no\\nluck")

class Net(nn.Linear):
    num_classes = 2

    def __init__(self):
        super().__init__(3, 2)
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_code_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_timm_without_weights() -> None:
    loaded = load_model("timm:resnet18", pretrained=False)
    assert (loaded.num_classes, loaded.input_size, loaded.name) == (1000, (3, 224, 224), "resnet18")
    assert loaded.preprocess is not None
    from PIL import Image

    assert loaded.preprocess(Image.new("RGB", (300, 500))).size == (224, 224)
    images = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network = loaded.model.get_submodule("model")
    torch.testing.assert_close(loaded.model(images), network((images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)))
    assert not loaded.model.training


def test_timm_s_weights_come_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With huggingface_hub of any version: timm 1.0.9 takes recent ones for not installed."""
    import timm
    from safetensors.torch import save_file

    published = timm.create_model("resnet18", pretrained=False)
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(tmp_path / "model.safetensors"))
    from timm.models import _hub

    monkeypatch.setattr(_hub, "_has_hf_hub", False)
    monkeypatch.setattr(_hub, "hf_hub_download", None)
    loaded = load_model("timm:resnet18")
    assert torch.equal(loaded.model.get_submodule("model.fc").weight, published.fc.weight)
    assert loaded.data == "imagenet"

    def unreachable(*_: Any, **__: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("no\nnetwork")

    monkeypatch.setattr(_hub, "_has_hf_hub", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(UnavailableError, match=r"weights of timm:resnet18 .*cannot be reached") as caught:
        load_model("timm:resnet18")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet18.a1_in2k", "did you mean 'resnet18.a1_in1k'"),
        ("timm:resne18", "did you mean 'resnet18'"),
        ("timm:botnet50ts_256", "expected a model with weights of timm's, found none for 'botnet50ts_256'"),
        ("timn:resnet18", "no kind 'timn'.*did you mean 'timm'"),
        ("runs/nothing", "no such file or folder; expected preact_resnet18, narrow_preact_resnet18, robustbench"),
        ("python:nothing.here:net", "importing nothing.here failed"),
        ("python:torch.nn:Linaer", "did you mean 'Linear'"),
        ("python:torch.nn:", "expected python:package.module:name"),
        ("python:os:getcwd", "expected an nn.Module from it, found str"),
    ],
)
def test_specs_that_name_nothing(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_own_code_with_a_checkpoint(own_code: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 2)).double()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in trained.state_dict().items()}}, tmp_path / "a.pt"
    )
    loaded = load_model(f"python:{own_code}:net", checkpoint=tmp_path / "a.pt")
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loaded.model(images), trained.float()(images))
    assert (loaded.num_classes, loaded.name, loaded.model.training) == (None, "net", False)
    assert load_model(f"python:{own_code}:Net").num_classes == 2
    assert isinstance(load_model(f"python:{own_code}:ready").model, nn.Sequential)


def test_a_run_of_own_code_needs_its_name(own_code: str, tmp_path: Path) -> None:
    spec = f"python:{own_code}:net"
    model = build_model(spec, num_classes=2, input_size=(1, 8, 8), options={"hidden": 5}, mean=[0.5], std=[0.5])
    metadata = {
        "model": {"name": spec, "options": {"hidden": 5}, "mean": [0.5], "std": [0.5]},
        "classes": ["a", "b"],
        "input_size": [1, 8, 8],
    }
    path = tmp_path / "run" / "best.safetensors"
    save_checkpoint(path, model, metadata)
    with pytest.raises(InputError, match=f"load {spec} with checkpoint="):
        load_model(str(path.parent))
    loaded = load_model(spec, checkpoint=path)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.model(images), model(images))
    assert loaded.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("number", "to call, found int"), ("fails", r"failed \(ValueError: no luck\)")],
)
def test_own_code_that_does_not_work(attribute: str, message: str, own_code: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(f"python:{own_code}:{attribute}")


def test_a_checkpoint_of_another_architecture(own_code: str, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: .* a checkpoint of another architecture: 4 missing \(1\.weight"):
        load_model(f"python:{own_code}:net", checkpoint=tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"checkpoint: expected none, or a model with weights of your own .*python:"):
        load_model("robustbench:Wong2020Fast", checkpoint=tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"expected a \.safetensors checkpoint of a run, found another file"):
        load_model(str(tmp_path / "a.pt"))


def test_a_folder_without_the_best_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(InputError, match=r"expected a run folder with best.safetensors, found last\.safetensors"):
        load_model(str(tmp_path))


def test_a_trained_network_from_real_files(outside_data: Path) -> None:
    """pyautoattack's ResNet-18 on the first CIFAR-10 test images; 93.7 % on all 1,000."""
    from ccf_plugin.zoo.datasets import load_data

    package = importlib.util.find_spec("pyautoattack")
    assert package is not None
    assert package.submodule_search_locations is not None
    checkpoint = Path(package.submodule_search_locations[0]) / "examples" / "model_test.pt"
    loaded = load_model("python:pyautoattack.examples.resnet:ResNet18", checkpoint=checkpoint)
    data = load_data(f"npz:{outside_data / 'cifar10_test1000.npz'}", test_limit=100)
    assert data.test is not None
    assert len(data.classes) == 10
    with torch.no_grad():
        correct = [loaded.model(x).argmax(dim=1) == y for x, y in data.test.batches(50, torch.device("cpu"))]
    assert torch.cat(correct).float().mean() > 0.88


def test_a_run_needs_none_of_the_heavy_libraries(tmp_path: Path) -> None:
    model = build_model("narrow_preact_resnet18", num_classes=2, input_size=(1, 8, 8), options={"width": 1})
    metadata = {
        "model": {"name": "narrow_preact_resnet18", "options": {"width": 1}, "mean": None, "std": None},
        "classes": ["a", "b"],
        "input_size": [1, 8, 8],
    }
    save_checkpoint(tmp_path / "best.safetensors", model, metadata)
    code = (
        "import sys, ccf_plugin.zoo.attacks, ccf_plugin.zoo.datasets; from ccf_plugin.zoo.models import load_model; "
        "load_model(sys.argv[1]); "
        "print([m for m in ('robustbench', 'timm', 'torchvision', 'torchattacks', 'sklearn') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert result.stdout.strip() == "[]"
