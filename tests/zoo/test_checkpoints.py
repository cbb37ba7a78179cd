from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.checkpoints import save_checkpoint
from support.defaults import other_defaults
from torch import nn

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.checkpoints import apply_state, load_state
from ccf_plugin.zoo.models import build_model, load_model

from .harmful import Harmful

METADATA: dict[str, Any] = {
    "model": {"name": "narrow_preact_resnet18", "options": {"width": 2}, "mean": [0.5], "std": [0.25]},
    "classes": ["a", "b", "c"],
    "data": "digits",
    "input_size": [1, 8, 8],
    "threat": {"norm": "L2", "eps": 0.5},
    "epoch": 3,
}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = build_model(
        "narrow_preact_resnet18", num_classes=3, input_size=(1, 8, 8), options={"width": 2}, mean=[0.5], std=[0.25]
    )
    model(torch.rand(4, 1, 8, 8))
    return model.eval()


def test_a_run_describes_itself(model: nn.Module, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "my_run"
    save_checkpoint(run / "best.safetensors", model, METADATA)
    images = torch.rand(2, 1, 8, 8)
    for spec in (run, run / "best.safetensors"):
        loaded = load_model(str(spec))
        assert torch.equal(loaded.model(images), model(images))
        assert not loaded.model.training
        assert (loaded.num_classes, loaded.class_names, loaded.data) == (3, ("a", "b", "c"), "digits")
        assert (loaded.threat, loaded.input_size, loaded.name) == ({"norm": "L2", "eps": 0.5}, (1, 8, 8), "my_run")
    assert [file.name for file in run.iterdir()] == ["best.safetensors"], "nothing is left beside it"


def test_the_hosts_default_device_and_dtype_change_no_weights(model: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.safetensors", model, METADATA)
    with other_defaults():
        loaded = load_model(str(tmp_path / "best.safetensors")).model
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_are_plain_tensors(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(memory_format=torch.contiguous_format)
    tied[1].weight = tied[0].weight
    tied.register_buffer("flipped", torch.arange(6).view(2, 3).t())
    save_checkpoint(tmp_path / "a.safetensors", tied, {})
    state = load_state(tmp_path / "a.safetensors")
    assert state.keys() == tied.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in tied.state_dict().items())


def test_accelerate_and_transformers_read_them(model: nn.Module, tmp_path: Path) -> None:
    from accelerate import load_checkpoint_in_model
    from transformers.modeling_utils import load_state_dict

    save_checkpoint(path := tmp_path / "model.safetensors", model, METADATA)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    other = build_model(
        "narrow_preact_resnet18", num_classes=3, input_size=(1, 8, 8), options={"width": 2}, mean=[0.0], std=[1.0]
    )
    load_checkpoint_in_model(other, str(path))
    for state in (other.state_dict(), load_state_dict(str(path), map_location="cpu")):
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_a_failed_save_keeps_the_old_file(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, model, METADATA)
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, model, {**METADATA, "epoch": 4})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrap", [lambda state: state, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_state_dicts_are_found(wrap: Any, prefix: str, suffix: str, model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    torch.save(wrap({prefix + key: value for key, value in state.items()}), tmp_path / f"file{suffix}")
    loaded = load_state(tmp_path / f"file{suffix}")
    assert loaded.keys() == state.keys()


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": {}, "extra": Harmful(tmp_path / "harm")}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="nothing is unpickled here"):
        load_state(tmp_path / "bad.pt")
    assert not (tmp_path / "harm").exists()


def _damage(path: Path, how: str, model: nn.Module) -> None:
    if how == "folder":
        path.mkdir()
    elif how in ("empty", "html", "garbage"):
        path.write_bytes({"empty": b"", "html": b"\n<!DOCTYPE html><html>", "garbage": b"\x00" * 999}[how])
    elif how == "truncated":
        if path.suffix == ".pt":
            torch.save(model.state_dict(), path)
        else:
            save_checkpoint(path, model, METADATA)
        path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "found nothing"),
        ("folder", "found a folder"),
        ("empty", "found an empty one"),
        ("html", "found a web page"),
        ("garbage", "damaged"),
        ("truncated", "damaged"),
    ],
)
def test_broken_files_are_named(how: str, message: str, suffix: str, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    _damage(path, how, model)
    with pytest.raises(InputError, match=message) as caught:
        load_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_load_and_run_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    torch.save(network.to(dtype).state_dict(), tmp_path / "weights.pt")
    apply_state(own := nn.Linear(3, 2), load_state(tmp_path / "weights.pt"), source="weights.pt")
    assert own.weight.dtype == torch.float32
    assert torch.equal(own.weight, network.weight.float())


def test_keys_may_come_in_any_order(model: nn.Module, tmp_path: Path) -> None:
    shuffled = dict(reversed(model.state_dict().items()))
    torch.save(shuffled, tmp_path / "weights.pt")
    apply_state(model, load_state(tmp_path / "weights.pt"), source="weights.pt")
    assert all(torch.equal(value, shuffled[key]) for key, value in model.state_dict().items())


def test_infinite_buffers_are_masks_and_load() -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    apply_state(network, network.state_dict(), source="weights.pt")


@pytest.mark.parametrize("content", [[1, 2], {}, {"lr": 0.1}, {"state_dict": {"weight": "text"}}, torch.zeros(2)])
def test_torch_files_without_a_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(InputError, match="expected a state dict"):
        load_state(tmp_path / "file.pt")


def test_other_suffixes(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(InputError, match=r"ending in \.safetensors, \.pt or \.pth"):
        load_state(tmp_path / "file.txt")


def test_another_architecture_is_named_by_its_keys() -> None:
    own = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(2), "head.weight": torch.zeros(1)}
    with pytest.raises(InputError) as caught:
        apply_state(own, state, source="file.pt")
    assert str(caught.value) == (
        "file.pt: expected the weights of this network, found a checkpoint of another architecture: "
        "4 missing (1.weight, 1.bias, 2.weight, …); 1 unexpected (head.weight); 1 of another shape (0.weight); "
        "name the factory that made it"
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "a description of its model, found a safetensors file without one"),
        ("no json", "garbled"),
        ("[1]", "garbled"),
        ({"format": 2, **METADATA}, "written in format 2, this version reads up to 1"),
        ({"format": 1}, "garbled"),
        ({"format": 1, **METADATA, "classes": None}, "garbled"),
        ({"format": 1, **METADATA, "input_size": [1, 8]}, "garbled"),
        ({"format": 1, **METADATA, "classes": ["a", "b"]}, "another architecture: 2 of another shape"),
        ({"format": 1, **METADATA, "model": {"name": "python:os:getcwd"}}, "load python:os:getcwd with checkpoint="),
    ],
)
def test_metadata_that_cannot_be_used(metadata: Any, message: str, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(model.state_dict(), path, metadata=None if metadata is None else {"ccf_plugin": text})
    with pytest.raises(InputError, match=message) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)
