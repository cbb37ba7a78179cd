"""Run folders that are damaged, taken, or of another version; "run" is a copy of a finished one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from bad_inputs.cases import HTML, SET, Case, Make, file, link
from bad_inputs.commands import option


def changed(name: str, change: Callable[[Path], object]) -> Make:
    return lambda folder: change(folder / "run" / name)


def state(change: Callable[[dict[str, Any]], object]) -> Make:
    def rewrite(path: Path) -> None:
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    return changed("state/last.json", rewrite)


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    def rewrite(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        path.write_bytes(save(tensors))

    return changed("state/001.safetensors", rewrite)


RESUME = [
    "train",
    "digits",
    *SET,
    "--out",
    "run",
    "--resume",
    "--set",
    "optim.epochs=2",
    "--allow-change",
    "optim.epochs",
]
NEW = ["train", "digits", *SET, "--out"]

RUNS = {
    "of a newer version": Case(RESUME, "update ccf_plugin", state(lambda s: s.update(format=2))),
    "of a format of text": Case(RESUME, "last.json", state(lambda s: s.update(format="new"))),
    "a state of a list": Case(RESUME, "last.json", changed("state/last.json", lambda p: p.write_text("[]"))),
    "a state of another encoding": Case(
        RESUME, "last.json", changed("state/last.json", lambda p: p.write_bytes(b"\xff"))
    ),
    "a state of 100,000 brackets": Case(
        RESUME, "last.json", changed("state/last.json", lambda p: p.write_text("[" * 100_000))
    ),
    "a state of rows of text": Case(RESUME, "last.json", state(lambda s: s["rows"][0].update(cas="high"))),
    "a state of rows without their epoch": Case(RESUME, "last.json", state(lambda s: s["rows"][0].pop("epoch"))),
    "a state of a list of numbers": Case(RESUME, "last.json", state(lambda s: s.update(rows=[1]))),
    "a state of an epoch of text": Case(RESUME, "last.json", state(lambda s: s.update(epoch="one"))),
    "a state of a negative step": Case(RESUME, "last.json", state(lambda s: s.update(step=-1))),
    "without its tensors": Case(RESUME, "001.safetensors", changed("state/001.safetensors", Path.unlink)),
    "tensors cut short": Case(
        RESUME, "001.safetensors", changed("state/001.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-99]))
    ),
    "tensors of a web page": Case(
        RESUME, "001.safetensors", changed("state/001.safetensors", lambda p: p.write_bytes(HTML))
    ),
    "tensors without the model": Case(
        RESUME, "001.safetensors", _tensors(lambda t: [t.pop(key) for key in list(t) if key.startswith("model.")])
    ),
    "tensors of other sizes": Case(
        RESUME, "001.safetensors", _tensors(lambda t: t.update({"model.linear.bias": torch.zeros(3)}))
    ),
    "tensors without random numbers": Case(RESUME, "001.safetensors", _tensors(lambda t: t.pop("rng.0"))),
    "random numbers cut short": Case(
        RESUME, "001.safetensors", _tensors(lambda t: t.update({"rng.0": t["rng.0"][:9]}))
    ),
    "momentum of other sizes": Case(
        RESUME, "001.safetensors", _tensors(lambda t: t.update({"optimizer.0.momentum_buffer": torch.zeros(3)}))
    ),
    "a recipe that was damaged": Case(RESUME, "recipe.toml", changed("recipe.toml", lambda p: p.write_bytes(b"\xff"))),
    "a recipe that was deleted": Case(RESUME, "recipe.toml", changed("recipe.toml", Path.unlink)),
    "an environment that was damaged": Case(
        RESUME, "environment.json", changed("environment.json", lambda p: p.write_text("[1]"))
    ),
    "an environment that was deleted": Case(RESUME, "environment.json", changed("environment.json", Path.unlink)),
    "another recipe": Case([*RESUME, "--set", "optim.lr=0.2"], "--allow-change optim.lr"),
    "fewer epochs than are done": Case([*NEW, "gone", "--resume"], "expected a run to resume in gone, found none"),
    "taken": Case([*NEW, "run"], "continue it with --resume, replace it with --force"),
    "a file": Case([*NEW, "file"], "found the file file", file("file", b"x")),
    "inside a file": Case([*NEW, "file/run"], "file", file("file", b"x")),
    "a link to itself": Case([*NEW, "loop"], "loop", link("loop", "loop")),
    "with other files": Case([*NEW, "mine"], "found other files (thesis.txt)", file("mine/thesis.txt", b"x")),
    "a result inside a file": Case([*option("--clean"), "--out", "file/result"], "file", file("file", b"x")),
    "an interrupted wish": Case(["train", "digits", "--resume", "--force"], "--resume or --force"),
    "a change without a run": Case(["train", "digits", "--allow-change", "seed"], "--allow-change with --resume"),
    "an unknown tracker": Case([*NEW, "new", "--track", "wonderboard"], "wonderboard"),
}
