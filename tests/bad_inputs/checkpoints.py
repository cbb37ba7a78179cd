"""Checkpoints that are damaged, of something else, or not to be trusted."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bad_inputs.cases import HTML, OWN, SETTINGS, Case, Make, file, network, zip_bomb
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.zoo.models import build_model


def _torch(change: Callable[[dict[str, Any]], object], name: str = "weights.pt") -> Make:
    return lambda folder: torch.save(change(network().state_dict()), folder / name)


def _damaged(cut: Callable[[bytes], bytes], name: str) -> Make:
    def make(folder: Path) -> None:
        state = network().state_dict()
        (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)
        (folder / name).write_bytes(cut((folder / name).read_bytes()))

    return make


def _safetensors(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _permuted(state: dict[str, Any]) -> dict[str, Any]:
    keys = list(state)
    return dict(zip(keys, [state[key] for key in keys[1:] + keys[:1]], strict=True))


def _with(key: str, value: Callable[[torch.Tensor], object]) -> Callable[[dict[str, Any]], object]:
    return lambda state: {**state, key: value(state[key])}


def own(name: str = "weights.pt") -> list[str]:
    return ["probe", OWN, "--checkpoint", name, "--data", "digits", "--limit", "20", "--clean"]


CHECKPOINTS = {
    "missing": Case(own(), "weights.pt: expected a checkpoint file, found nothing"),
    "a folder": Case(own(), "found a folder", lambda folder: (folder / "weights.pt").mkdir()),
    "a named pipe": Case(own(), "expected a checkpoint file", lambda folder: os.mkfifo(folder / "weights.pt")),
    "a device": Case(own(), "expected a checkpoint file", lambda f: (f / "weights.pt").symlink_to("/dev/zero")),
    "a link to itself": Case(own(), "expected a checkpoint", lambda f: (f / "weights.pt").symlink_to("weights.pt")),
    "empty": Case(own(), "found an empty one", file("weights.pt", b"")),
    "empty safetensors": Case(own("w.safetensors"), "found an empty one", file("w.safetensors", b"")),
    "a web page": Case(own(), "found a web page; download it again", file("weights.pt", HTML)),
    "a web page, safetensors": Case(own("w.safetensors"), "found a web page", file("w.safetensors", HTML)),
    "random bytes": Case(own(), "damaged", file("weights.pt", bytes(range(256)) * 8)),
    "random bytes, safetensors": Case(own("w.safetensors"), "damaged", file("w.safetensors", bytes(range(256)) * 8)),
    "cut short": Case(own(), "damaged", _damaged(lambda raw: raw[:-200], "weights.pt")),
    "cut short, safetensors": Case(own("w.safetensors"), "damaged", _damaged(lambda r: r[:-9], "w.safetensors")),
    "cut in its header": Case(own("w.safetensors"), "damaged", _damaged(lambda r: r[:100], "w.safetensors")),
    "a changed byte in the archive": Case(
        own(), "damaged", _damaged(lambda raw: raw.replace(b"PK\x01\x02", b"PK\x01\x03", 1), "weights.pt")
    ),
    "a header of an exabyte": Case(
        own("w.safetensors"), "damaged", file("w.safetensors", struct.pack("<Q", 1 << 60) + b"{}")
    ),
    "tensors beyond the file's end": Case(
        own("w.safetensors"),
        "damaged",
        file("w.safetensors", _safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})),
    ),
    "a zip bomb's header": Case(own(), "damaged", zip_bomb("weights.pt", "archive/data.pkl", b"\0" * 999, 1 << 31)),
    "a pointer of Git LFS": Case(own(), "fetch it by git lfs pull", file("weights.pt", b"version https://git-lfs.x/1")),
    "TorchScript": Case(
        own(),
        "found a TorchScript module; save its state dict",
        lambda f: torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(f / "weights.pt")),
    ),
    "a text file": Case(own("weights.txt"), "ending in .safetensors, .pt or .pth", file("weights.txt", b"hello")),
    "a list": Case(own(), "expected a state dict", _torch(lambda state: list(state.values()))),
    "an optimiser's state": Case(own(), "these are no tensors: lr", _torch(lambda _: {"lr": 0.1})),
    "a whole pickled model": Case(
        own(), "nothing is unpickled here", lambda f: torch.save(network(), f / "weights.pt")
    ),
    "of another architecture": Case(own(), "another architecture", _torch(lambda _: nn.Linear(3, 3).state_dict())),
    "of other sizes": Case(own(), "1 of another shape (1.weight)", _torch(_with("1.weight", lambda w: w[:, :9]))),
    "of permuted keys": Case(own(), "of another shape", _torch(_permuted)),
    "of NaN weights": Case(own(), "'1.weight'", _torch(_with("1.weight", lambda w: w * torch.nan))),
    "of infinite weights": Case(own(), "'4.bias'", _torch(_with("4.bias", lambda b: b / 0))),
    "of a NaN statistic": Case(own(), "'2.running_var'", _torch(_with("2.running_var", lambda v: v * torch.nan))),
    "of 8-bit integers": Case(own(), "'1.weight'", _torch(_with("1.weight", lambda w: (w * 99).to(torch.int8)))),
    "of complex numbers": Case(own(), "'1.weight'", _torch(_with("1.weight", lambda w: w.to(torch.complex64)))),
    "of sparse tensors": Case(own(), "weights.pt", _torch(_with("1.weight", lambda w: w.to_sparse()))),
    "of tensors without data": Case(own(), "weights.pt", _torch(_with("1.weight", lambda w: w.to("meta")))),
    "of another kind of model": Case(
        ["probe", "digits_net.pt", "--data", "digits"],
        "expected a .safetensors checkpoint of a run, found another file",
        file("digits_net.pt", b"x"),
    ),
    "with a model that names itself": Case(
        ["probe", "robustbench:Wong2020Fast", "--checkpoint", "w.pt"],
        "checkpoint: expected none, or a model with weights of your own",
        file("w.pt", b"x"),
    ),
}

# A run's own checkpoint, whose description is changed


def described(change: Callable[[dict[str, Any]], object]) -> Make:
    def make(folder: Path) -> None:
        torch.manual_seed(0)
        recipe = load_recipe("digits", SETTINGS)

        model = build_model(
            "narrow_preact_resnet18", num_classes=10, input_size=(1, 8, 8), options=recipe.model.options
        )
        metadata = {
            "format": 1,
            "model": {"name": "narrow_preact_resnet18", "options": recipe.model.options, "mean": None, "std": None},
            "classes": list("0123456789"),
            "data": "digits",
            "input_size": [1, 8, 8],
            "test_limit": 10,
            "threat": {"norm": "Linf", "eps": 0.1},
        }
        text = change(metadata)
        text = text if isinstance(text, str) else json.dumps(metadata if text is None else text)
        save_file(model.state_dict(), folder / "best.safetensors", metadata={"ccf_plugin": text})

    return make


def _description(change: Callable[[dict[str, Any]], object], says: str) -> Case:
    return Case(["probe", "best.safetensors", "--clean"], says, described(change))


DESCRIPTIONS = {
    "without a description": Case(
        ["probe", "best.safetensors"],
        "expected a description of its model, found a safetensors file without one",
        lambda folder: save_file(network().state_dict(), folder / "best.safetensors"),
    ),
    "no JSON": _description(lambda _: "{", "garbled"),
    "a nested description": _description(lambda _: "[" * 100_000, "garbled"),
    "a newer format": _description(lambda m: m.update(format=2), "this version reads up to 1; update ccf_plugin"),
    "a format of text": _description(lambda m: m.update(format="1"), "format"),
    "without classes": _description(lambda m: m.pop("classes"), "garbled"),
    "too few classes": _description(lambda m: m.update(classes=["a"]), "another architecture"),
    "an unknown model": _description(lambda m: m["model"].update(name="resnet"), "model 'resnet' is unknown"),
    "code in a file": _description(
        lambda m: m["model"].update(name="python:os:getcwd"), "load python:os:getcwd with --checkpoint"
    ),
    "a network of an exabyte": _description(lambda m: m["model"]["options"].update(width=1 << 40), "best.safetensors"),
    "options of text": _description(lambda m: m["model"].update(options="width"), "garbled"),
    "an input without height": _description(lambda m: m.update(input_size=[1, 8]), "garbled"),
    "a threat of other keys": _description(lambda m: m.update(threat={"norm": "Linf", "colour": 3}), "garbled"),
    "a threat in bytes": Case(
        ["probe", "best.safetensors"], "eps: expected 0 to 1", described(lambda m: m["threat"].update(eps=8))
    ),
    "a threat that is a list": _description(lambda m: m.update(threat=[1, 2]), "garbled"),
    "a head of a number": _description(lambda m: m.update(head=3), "garbled"),
    "an output of a list": _description(lambda m: m.update(output=["logits"]), "garbled"),
    "a limit of text": _description(lambda m: m.update(test_limit="ten"), "garbled"),
    "data of a number": _description(lambda m: m.update(data=3), "garbled"),
    "data that are gone": _description(lambda m: m.update(data="npz:gone.npz"), "gone.npz"),
    "a folder without a best checkpoint": Case(
        ["probe", "run"], "expected a run folder with best.safetensors", file("run/last.pt", b"x")
    ),
}


def _saved(content: Callable[[dict[str, Any]], object]) -> Make:
    return _torch(content, "w.pth")


OF_ANY_CODE = {
    "two state dicts": Case(
        own("w.pth"),
        "--checkpoint-key: expected one of the state dicts that fit in w.pth, state_dict or swa_state_dict, found none",
        _saved(lambda s: {"state_dict": s, "swa_state_dict": {key: value + 1 for key, value in s.items()}}),
    ),
    "a key that is not there": Case(
        [*own("w.pth"), "--checkpoint-key", "ema"],
        "--checkpoint-key: expected one that fits (net), found 'ema'",
        _saved(lambda state: {"net": state}),
    ),
    "a key without a file": Case(
        ["probe", OWN, "--data", "digits", "--checkpoint-key", "net"], "--checkpoint-key: expected a checkpoint"
    ),
    "a part of a network": Case(
        own("w.pth"),
        "1 unexpected (head.weight)",
        _saved(lambda s: {f"net.{key}": value for key, value in s.items()} | {"head.weight": torch.zeros(2, 2)}),
    ),
    "a dictionary in itself": Case(own("w.pth"), "expected a state dict", _saved(lambda _: _in_itself())),
    "weights without data in two places": Case(
        own("w.pth"),
        "w.pth",
        _saved(lambda s: {name: {key: value.to("meta") for key, value in s.items()} for name in ("a", "b")}),
    ),
    "a normalisation by zero": Case(
        own("w.pth"),
        "2 unexpected",
        _saved(lambda s: {**s, "normalize.mean": torch.zeros(1), "normalize.std": torch.zeros(1)}),
    ),
    "a mean of text": Case([*own(), "--mean", "a,b", "--std", "1,1"], "expected numbers such as 0.5,0.5,0.5"),
    "a mean alone": Case([*own(), "--mean", "0.5"], "std: expected 1 values", _torch(lambda state: state)),
    "a deviation of zero": Case(
        [*own(), "--mean", "0.5", "--std", "0"], "std: expected positive numbers", _torch(lambda state: state)
    ),
    "two normalisations": Case(
        [*own(), "--mean", "0.5", "--std", "1", "--normalize", "cifar10"], "expected --normalize, or --mean and --std"
    ),
    "an unknown normalisation": Case(
        [*own(), "--normalize", "cifar"], "--normalize: expected one of cifar10, cifar100", _torch(lambda state: state)
    ),
    "an option without a value": Case([*own(), "--model-option", "width"], "expected KEY=VALUE, found 'width'"),
    "an option that the code lacks": Case(
        [*own(), "--model-option", "width=[1"], "calling it with {'width': '[1'} failed", _torch(lambda state: state)
    ),
    "no weights for the paper's network": Case(
        ["probe", "preact_resnet18", "--data", "digits"], "--checkpoint: expected the weights of preact_resnet18"
    ),
    "classes that the file has not": Case(
        ["probe", "timm:resnet18", "--checkpoint", "w.pth", "--num-classes", "7", "--data", "digits"],
        "another architecture",
        _saved(lambda state: state),
    ),
    "weights of one's own for a run": Case(
        ["train", "digits", "--set", "model.weights=gone.pth"],
        "model.weights: expected a checkpoint or a run, found",
    ),
}


def _in_itself() -> dict[str, Any]:
    content: dict[str, Any] = {"epoch": 3}
    content["again"] = content
    return content
