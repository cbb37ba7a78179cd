"""A run in pieces joins to the same bits; what is missing, damaged or of another epoch is told in one line."""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import Quiet, assert_same_run, contents, interrupted, tiny

from ccf_plugin.errors import InputError
from ccf_plugin.runs import pieces as module
from ccf_plugin.runs.log import log_bytes
from ccf_plugin.runs.pieces import Precision, pack, unpack
from ccf_plugin.runs.state import read_state
from ccf_plugin.training.loop import train
from ccf_plugin.training.run import Run
from ccf_plugin.zoo.models import load_model

RECIPE = ["optim.epochs=3", "average={kind='ema', decay=0.9}", "checkpoints.every=1"]


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after its first epoch of three."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    interrupted(tiny(*RECIPE), folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny(*RECIPE), tmp_path_factory.mktemp("whole") / "run", Quiet())


def test_a_run_goes_on_elsewhere_bit_for_bit(halfway: Path, whole: Run, tmp_path: Path) -> None:
    files = pack(halfway, tmp_path / "pieces", megabytes=0.02)
    assert len(files) > 3
    assert all(file.stat().st_size <= 0.02 * 2**20 for file in files)
    assert unpack(tmp_path / "pieces", tmp_path / "there") == {"": [1, 0]}
    there, here = contents(tmp_path / "there"), contents(halfway)
    joined = {Path(name).relative_to(tmp_path / "there"): content for name, content in there.items()}
    first = {Path(name).relative_to(halfway): content for name, content in here.items()}
    left = {path for path in first if path.name == ".lock" or path.parent.name == "epochs" or path.suffix == ".png"}
    assert joined.keys() - {Path(".lock")} == first.keys() - left
    assert all(joined[path] == first[path] for path in first.keys() - left)
    assert_same_run(train(tiny(*RECIPE), tmp_path / "there", Quiet(), resume=True), whole)


@pytest.mark.parametrize(
    ("precision", "bound"),
    [
        (Precision(momentum="bfloat16"), 2**-8),
        (Precision("float16", "bfloat16"), 2**-8),
        (Precision("float16", "none"), 2**-11),
    ],
)
def test_what_is_not_exact_is_off_by_its_rounding(
    precision: Precision, bound: float, halfway: Path, tmp_path: Path
) -> None:
    pack(halfway, tmp_path / "pieces", precision=precision)
    unpack(tmp_path / "pieces", tmp_path / "there")
    before, after = (load_file(read_state(folder).tensors) for folder in (halfway, tmp_path / "there"))
    left_out = {key for key in before if key.startswith("optimizer.")} if precision.momentum == "none" else set()
    assert after.keys() == before.keys() - left_out
    for key, tensor in after.items():
        assert tensor.dtype == before[key].dtype
        is_exact = not key.startswith("optimizer.") and (
            precision.weights == "float32" or not key.startswith(("model.", "average."))
        )
        tolerance = 0.0 if is_exact else bound
        torch.testing.assert_close(tensor, before[key], rtol=tolerance, atol=tolerance * 1e-4)
    run = train(tiny(*RECIPE), tmp_path / "there", Quiet(), resume=True)
    assert run.epoch == 3


def test_a_state_alone_leaves_the_weights_that_are_there(halfway: Path, whole: Run, tmp_path: Path) -> None:
    shutil.copytree(halfway, tmp_path / "home")
    best = (tmp_path / "home" / "best.safetensors").read_bytes()
    pack(halfway, tmp_path / "out", state_only=True)
    unpack(tmp_path / "out", tmp_path / "away")
    assert not list((tmp_path / "away").glob("*.safetensors"))
    train(tiny(*RECIPE), tmp_path / "away", Quiet(), resume=True)
    pack(tmp_path / "away", tmp_path / "back")
    assert unpack(tmp_path / "back", tmp_path / "home") == {"": [3, 0]}
    assert [path.name for path in (tmp_path / "home" / "state").glob("*.safetensors")] == ["003.safetensors"]
    assert whole.best is not None
    assert ((tmp_path / "home" / "best.safetensors").read_bytes() == best) is (whole.best.epoch == 1)
    assert Run.read(tmp_path / "home", tiny(*RECIPE)).is_finished


def test_weights_that_stayed_behind_are_told_from_those_of_the_log(halfway: Path, whole: Run, tmp_path: Path) -> None:
    """The state went on elsewhere and came back alone: the last weights here are of epoch 1, the log of epoch 3."""
    shutil.copytree(halfway, tmp_path / "home")
    pack(whole.folder, tmp_path / "back", state_only=True)
    unpack(tmp_path / "back", tmp_path / "home")
    with pytest.warns(UserWarning, match=r"last_average\.safetensors is of epoch 1, and .* the last one is epoch 3"):
        load_model(str(tmp_path / "home" / "last_average.safetensors"))
    rows = [*whole.rows[:2], replace(whole.rows[2], unknown={}, test_robust_accuracy_average=1.0)]
    (tmp_path / "home" / "log.csv").write_bytes(log_bytes(rows, averaged=True, validated=False))
    with pytest.warns(UserWarning, match="is of epoch 1, and .* the best one is epoch 3: bring its"):
        load_model(str(tmp_path / "home"))
    with warnings.catch_warnings(action="error"):
        load_model(str(whole.folder))
        load_model(str(whole.folder / "last.safetensors"))


def test_a_run_that_lost_its_empty_folders_goes_on(halfway: Path, whole: Run, tmp_path: Path) -> None:
    shutil.copytree(halfway, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "epochs")
    shutil.rmtree(tmp_path / "copy" / "probe")
    run = train(tiny(*RECIPE), tmp_path / "copy", Quiet(), resume=True)
    assert [row.cas for row in run.rows] == [row.cas for row in whole.rows]


def _refused(folder: Path, into: Path, message: str) -> None:
    before = contents(into) if into.exists() else {}
    with pytest.raises(InputError) as error:
        unpack(folder, into)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert (contents(into) if into.exists() else {}) == before


def test_pieces_that_are_not_whole_are_refused(halfway: Path, whole: Run, tmp_path: Path) -> None:
    into, folder = tmp_path / "there", tmp_path / "pieces"
    files = pack(halfway, folder, megabytes=0.05)
    _refused(tmp_path, into, "expected pieces (*.piece)")
    second = files[1].read_bytes()
    files[1].unlink()
    _refused(folder, into, f"expected {len(files)} pieces of run at epoch 1 in {folder}, found all but 2; bring it too")
    files[1].write_bytes(second[:-1] + bytes([second[-1] ^ 1]))
    _refused(folder, into, "found damaged ones; copy them anew")
    files[1].write_bytes(second[:40])
    _refused(folder, into, "expected a piece in")
    later = pack(whole.folder, tmp_path / "later", megabytes=0.05)
    shutil.copy(later[1], files[1])
    _refused(folder, into, "expected pieces of one run at one epoch")
    _refused(folder, into, "run at epoch 3")
    for content in (b"", b"\n\n", b"ccf piece\n{}\n", b"ccf piece\n[1]\n", b'ccf piece\n{"format": 1, "piece": -1}\n'):
        files[1].write_bytes(content)
        _refused(folder, into, f"expected a piece in {files[1]}")
    assert not into.exists()


def test_a_place_that_holds_something_else_is_refused(halfway: Path, whole: Run, tmp_path: Path) -> None:
    pack(halfway, tmp_path / "pieces")
    _refused(tmp_path / "pieces", whole.folder, "expected pieces of epoch 3 or later")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    _refused(tmp_path / "pieces", tmp_path / "mine", "found other files")
    shutil.copytree(halfway, tmp_path / "another")
    (tmp_path / "another" / "recipe.toml").write_text(tiny(*RECIPE, "optim.lr=0.2").as_toml())
    _refused(tmp_path / "pieces", tmp_path / "another", "found one of another recipe")
    with pytest.raises(InputError, match="expected an empty folder"):
        pack(halfway, tmp_path / "mine")
    with pytest.raises(InputError, match="expected a run with a saved state, or a study"):
        pack(tmp_path / "mine", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "state/../../evil", "evil.py", "other/log.csv"])
def test_a_stranger_s_pieces_write_nothing_else(name: str, halfway: Path, tmp_path: Path) -> None:
    (file,) = pack(halfway, tmp_path / "pieces")
    magic, header, whole = file.read_bytes().split(b"\n", 2)
    buffer = io.BytesIO(whole)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"evil")
    described = json.loads(header)
    described |= {"bytes": len(buffer.getvalue()), "sha256": module.hashlib.sha256(buffer.getvalue()).hexdigest()}
    file.write_bytes(magic + b"\n" + json.dumps(described).encode() + b"\n" + buffer.getvalue())
    _refused(tmp_path / "pieces", tmp_path / "there", "expected the files of a run or a study")
    assert not list(tmp_path.rglob("evil*"))
