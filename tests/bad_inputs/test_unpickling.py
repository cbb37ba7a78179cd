"""Pickles that would create the file "harm", wherever a command reads a file."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import sets
from zoo.harmful import Harmful

from bad_inputs.cases import FOLDER, NPZ, OWN, SET, Make, X, ends_in_one_line, file, images, listing, network, probe
from bad_inputs.checkpoints import own
from bad_inputs.commands import BENCH, FIX, SWEEP
from bad_inputs.readers import BOARD, EVALUATE, REPORT
from bad_inputs.results import COMPARE, results
from bad_inputs.runs import RESUME, state
from bad_inputs.zoo import PLACE, PROBE_ROBUST, ROBUST

# Pickles that would create the file "harm"


def _pickle(name: str, wrap: Callable[[Harmful], Any] = lambda harmful: harmful) -> Make:
    return lambda f: file(name, pickle.dumps(wrap(Harmful(f / "harm"))))(f)


def _torch_file(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": network().state_dict(), "more": Harmful(folder / "harm")}, folder / name)

    return make


def _harmful_npz(folder: Path) -> None:
    np.savez(folder / "data.npz", x=X, y=np.array([Harmful(folder / "harm")] * 10, dtype=object))


def _harmful_arrays(name: str, array: str) -> Make:
    def make(folder: Path) -> None:
        with np.load(folder / name) as archive:
            arrays = dict(archive)
        np.savez(folder / name, **{**arrays, array: np.array([Harmful(folder / "harm")] * 10, dtype=object)})

    return make


def _train(*settings: str) -> list[str]:
    return ["train", "digits", *SET, *sets(settings)]


ENSEMBLE = "cifar10/corruptions/Diffenderfer2021Winning_LRR_CARD_Deck"  # its networks take seconds to build
SLOW = {"an ensemble's weights"}
TEACHER = "distill=[{teacher='%s', weight=0.5}]"
TIMM = "model={name='timm:%s', options={%s}}"
HARMFUL = {
    **{f"a torch file ending in .{end}": (own(f"w.{end}"), _torch_file(f"w.{end}")) for end in ("pt", "pth", "tar")},
    **{f"a bare pickle ending in .{end}": (own(f"w.{end}"), _pickle(f"w.{end}")) for end in ("pt", "bin", "ckpt")},
    "a pickle called safetensors": (own("w.safetensors"), _pickle("w.safetensors")),
    "a torch file called safetensors": (own("w.safetensors"), _torch_file("w.safetensors")),
    "a torch file as a model": (["probe", "w.pt"], _torch_file("w.pt")),
    "a pickle in a run folder": (["probe", "run"], _pickle("run/best.safetensors")),
    "RobustBench's weights": (PROBE_ROBUST, _torch_file(PLACE)),
    "RobustBench's weights, a bare pickle": (PROBE_ROBUST, _pickle(PLACE)),
    "RobustBench's weights in another folder": (
        [*PROBE_ROBUST, "--model-dir", "other"],
        _torch_file(PLACE.replace("models", "other")),
    ),
    "an ensemble's weights": (
        ["probe", f"robustbench:{ENSEMBLE}", "--data", "digits"],
        _torch_file(f"models/{ENSEMBLE}.pt_m0.pt"),
    ),
    "RobustBench's weights in a recipe": (
        _train(f"model={{name='robustbench:{ROBUST}', options={{pretrained=true}}}}"),
        _torch_file(PLACE),
    ),
    "a RobustBench teacher": (_train(TEACHER % f"robustbench:{ROBUST}"), _torch_file(PLACE)),
    "a teacher's checkpoint": (_train(TEACHER % "w.safetensors"), _pickle("w.safetensors")),
    "a teacher's torch file": (_train(TEACHER % "w.pt"), _torch_file("w.pt")),
    "timm's checkpoint_path": (_train(TIMM % ("resnet18", "checkpoint_path='w.pth'")), _torch_file("w.pth")),
    "timm's checkpoint_path to an npz": (
        _train(TIMM % ("vit_tiny_patch16_224", "checkpoint_path='w.npz'")),
        _pickle("w.npz"),
    ),
    "timm's weights from a file": (
        _train(TIMM % ("resnet18", "pretrained=true, pretrained_cfg_overlay={file='w.pth'}")),
        _torch_file("w.pth"),
    ),
    "arrays of objects": (probe(NPZ), _harmful_npz),
    "a pickle called npz": (probe(NPZ), _pickle("data.npz")),
    "a pickle called png": (probe(FOLDER), images(_pickle("data/test/0/a.png"))),
    "CIFAR-10": (probe("cifar10"), _pickle("data/cifar-10-batches-py/test_batch", lambda h: {"data": h})),
    "a recipe": (["train", "mine.toml"], _pickle("mine.toml")),
    "compare, a checkpoint": (["compare", "run", "w.pt"], _torch_file("w.pt")),
    "compare, a run's last": (["compare", "run"], _pickle("run/last.safetensors")),
    "compare, weights of a python: model": (
        ["compare", OWN, "run", "--checkpoint", "w.pt", "--data", "digits"],
        _torch_file("w.pt"),
    ),
    "compare, a result's arrays": (COMPARE, results(_harmful_arrays("one.npz", "matrix"))),
    "compare, a bare pickle for arrays": (COMPARE, results(_pickle("one.npz"))),
    "compare, a bare pickle for JSON": (COMPARE, results(_pickle("one.json"))),
    "saliency, a checkpoint": (["saliency", "run", "w.pth"], _torch_file("w.pth")),
    "saliency, a run's best": (["saliency", "run"], _pickle("run/best.safetensors")),
    "saliency, data": (["saliency", "run", "--data", NPZ], _harmful_npz),
    "evaluate, a checkpoint": (["evaluate", OWN, "--checkpoint", "w.pt", "--data", "digits"], _torch_file("w.pt")),
    "evaluate, RobustBench's weights": (["evaluate", f"robustbench:{ROBUST}", "--data", "digits"], _torch_file(PLACE)),
    "evaluate, the file to continue": (EVALUATE, _pickle("found.json")),
    "evaluate, data": ([*EVALUATE, "--data", NPZ], _harmful_npz),
    "leaderboard, the table to continue": (BOARD, _pickle("board.csv")),
    "leaderboard, data": ([*BOARD, "--data", NPZ], _harmful_npz),
    "report, a log": (REPORT, _pickle("run/log.csv")),
    "report, a recipe": (REPORT, _pickle("run/recipe.toml")),
    "report, an environment": (REPORT, _pickle("run/environment.json")),
    "report, a result's arrays": (REPORT, _harmful_arrays("run/probe/001.npz", "counts")),
    "report, a bare pickle for arrays": (REPORT, _pickle("run/probe/001.npz")),
    "report, a bare pickle for JSON": (REPORT, _pickle("run/probe/001.json")),
    "fix-tinyimagenet, the list": (FIX, _pickle("data/tiny-imagenet-200/val/val_annotations.txt")),
    "sweep, a recipe": (["sweep", "mine.toml", "seed=1,2"], _pickle("mine.toml")),
    "sweep, data": ([*SWEEP, "seed=1,2", "--set", f"data.name={NPZ}"], _harmful_npz),
    "sweep, a run's state": (
        [*SWEEP, "optim.epochs=2,3", "--out", "out"],
        lambda f: (
            shutil.copytree(f / "run", f / "out/optim.epochs=2"),
            _pickle("out/optim.epochs=2/state/001.safetensors")(f),
            (recipe := f / "out/optim.epochs=2/recipe.toml").write_text(
                recipe.read_text().replace("\nepochs = 1\n", "\nepochs = 2\n")
            ),
        ),
    ),
    "bench, a recipe": (["bench", "--recipe", "mine.toml"], _pickle("mine.toml")),
    "bench, data": ([*BENCH, "--set", f"data.name={NPZ}"], _harmful_npz),
    "bench, a teacher": ([*BENCH, "--set", TEACHER % "w.pt"], _torch_file("w.pt")),
    "a run's state": (RESUME, _pickle("run/state/001.safetensors")),
    "a run's state of another name": (
        RESUME,
        lambda f: (_torch_file("run/state/w.pt")(f), state(lambda s: s.update(file="w.pt"))(f)),
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in HARMFUL])
def test_no_command_unpickles_anything(
    ccf: Callable[..., tuple[int, str]],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    command, make = HARMFUL[name]
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # whatever the user's environment says
    shutil.copytree(finished, tmp_path / "run")
    make(tmp_path)
    before = listing(tmp_path)
    code, err = ccf(*command)
    ends_in_one_line(code, err, "")
    assert listing(tmp_path) == before
    assert not (tmp_path / "harm").exists()


def test_the_harmful_object_does_harm(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Harmful(tmp_path / "harm")))
    assert (tmp_path / "harm").exists()


def test_a_leaderboard_unpickles_nothing(ccf: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """It goes on to the next model, so that it ends well: its table says what was refused."""
    _torch_file(PLACE)(tmp_path)
    images = np.zeros((10, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(10))
    assert ccf("leaderboard", "--local", "--only", ROBUST, "--data", "npz:images.npz", "--out", "board") == (0, "")
    assert "nothing is unpickled here" in (tmp_path / "board.csv").read_text()
    assert not (tmp_path / "harm").exists()


def test_a_report_embeds_pictures_as_they_are(
    ccf: Callable[..., tuple[int, str]], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    _pickle("run/saliency/a.png")(tmp_path)
    (tmp_path / "run/saliency/a.json").write_text("[" * 100_000)
    (tmp_path / "run/saliency/folder.png").mkdir()
    assert ccf("report", "run", "--out", "page.html") == (0, "")
    assert not (tmp_path / "harm").exists()
