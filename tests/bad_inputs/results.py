"""Saved results that compare is to read; "run" is a finished run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bad_inputs.cases import HTML, Case, Make, bomb_npy, npz_of
from bad_inputs.runs import changed

COMPARE = ["compare", "one.json", "two.json"]


def results(change: Make) -> Make:
    """Two results, "one" and "two", and what is wrong with them."""

    def make(folder: Path) -> None:
        for stem in ("one", "two"):
            for suffix in ("npz", "json"):
                shutil.copy(folder / f"run/probe/001.{suffix}", folder / f"{stem}.{suffix}")
        change(folder)

    return make


def _bytes(name: str, content: bytes) -> Make:
    return results(lambda folder: (folder / name).write_bytes(content))


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _described(change: Callable[[dict[str, Any]], object]) -> Make:
    return results(lambda folder: rewritten(folder / "one.json", change))


def _within(table: str, **values: Any) -> Make:
    return _described(lambda result: result[table].update(values))


def _arrays(change: Callable[[dict[str, Any]], object]) -> Make:
    def rewrite(folder: Path) -> None:
        with np.load(folder / "one.npz") as archive:
            arrays = dict(archive)
        change(arrays)
        np.savez(folder / "one.npz", **arrays)

    return results(rewrite)


def _array(name: str, change: Callable[[Any], Any]) -> Make:
    return _arrays(lambda arrays: arrays.update({name: change(arrays[name])}))


COMPARISONS = {
    "nothing": Case(["compare", "gone"], "expected two models, or one run folder"),
    "an empty name": Case(["compare", "", ""], "expected a run folder"),
    "a run without its last": Case(["compare", "run"], "last.safetensors", changed("last.safetensors", Path.unlink)),
    "a damaged last checkpoint": Case(
        ["compare", "run"], "last.safetensors", changed("last.safetensors", lambda p: p.write_bytes(HTML))
    ),
    "a run whose best epoch is its last": Case(["compare", "run"], "found epoch 1 to be the best and the last"),
    "a run beside a model that is not there": Case(["compare", "run", "gone.safetensors"], "gone.safetensors"),
    "a checkpoint for a model that needs none": Case(["compare", "run", "run", "--checkpoint", "w.pt"], "found 1"),
    "a result that is not there": Case(["compare", "gone.json", "two.json"], "gone.npz", results(lambda _: None)),
    "without arrays": Case(COMPARE, "one.npz", results(lambda folder: (folder / "one.npz").unlink())),
    "without a description": Case(COMPARE, "one.json", results(lambda folder: (folder / "one.json").unlink())),
    "arrays cut short": Case(COMPARE, "one.json", _bytes("one.npz", b"PK\3\4 cut")),
    "arrays of a web page": Case(COMPARE, "one.json", _bytes("one.npz", HTML)),
    "arrays of 16 GB in 128 bytes": Case(
        COMPARE, "one.json", results(npz_of({"matrix.npy": bomb_npy((1 << 15, 1 << 19))}, "one.npz"))
    ),
    "arrays without a matrix": Case(COMPARE, "'matrix'", _arrays(lambda arrays: arrays.pop("matrix"))),
    "a matrix of text": Case(COMPARE, "one.json", _array("matrix", lambda matrix: matrix.astype(str))),
    "a matrix of complex numbers": Case(COMPARE, "one.json", _array("matrix", lambda matrix: matrix + 1j)),
    "a matrix that is no square": Case(COMPARE, "matrix of shape", _array("matrix", lambda matrix: matrix[:3])),
    "an infinite matrix": Case(COMPARE, "infinite numbers in matrix", _array("matrix", lambda m: m * np.inf)),
    "counts of text": Case(COMPARE, "one.json", _array("counts", lambda counts: counts.astype(str))),
    "attributions of too few classes": Case(COMPARE, "of shape", _array("class_attribution", lambda rows: rows[:3])),
    "a confusion matrix of fractions": Case(
        COMPARE, "one.json", _array("confusion_clean", lambda confusion: confusion / 2)
    ),
    "a confusion matrix of too few classes": Case(
        COMPARE, "confusion_clean of shape", _array("confusion_clean", lambda confusion: confusion[:3])
    ),
    "negative confusions": Case(
        COMPARE, "negative numbers in confusion_adversarial", _array("confusion_adversarial", lambda m: m - 1000)
    ),
    "bits of too few images": Case(COMPARE, "correct of shape (1,) for", _array("correct", lambda bits: bits[:1])),
    "bits that are numbers": Case(COMPARE, "correct of shape", _array("correct", lambda bits: bits.astype(float))),
    "a mean row of text": Case(
        COMPARE, "mean_row_share of 'half'", _described(lambda r: r.update(mean_row_share="half"))
    ),
    "centred or not": Case(COMPARE, "centred of None", _described(lambda r: r.update(centred=None))),
    "a web page": Case(COMPARE, "one.json", _bytes("one.json", HTML)),
    "a list": Case(COMPARE, "one.json", _bytes("one.json", b"[1]")),
    "another encoding": Case(COMPARE, "one.json", _bytes("one.json", b"\xff\xfe")),
    "100,000 brackets": Case(COMPARE, "one.json", _bytes("one.json", b"[" * 100_000)),
    "a newer format": Case(COMPARE, "update ccf_plugin", _described(lambda r: r.update(format=2))),
    "a format of text": Case(COMPARE, "one.json", _described(lambda r: r.update(format="new"))),
    "without a threat": Case(COMPARE, "'threat'", _described(lambda r: r.pop("threat"))),
    "another threat": Case(COMPARE, "eps 128/255", _within("threat", eps=128 / 255)),
    "eps of text": Case(COMPARE, "threat.eps of 'wide'", _within("threat", eps="wide")),
    "data of text": Case(COMPARE, "data of 'digits'", _described(lambda r: r.update(data="digits"))),
    "data without a count": Case(COMPARE, "data.count of None", _described(lambda r: r["data"].pop("count"))),
    "an input size of text": Case(COMPARE, "data.input_size of '8×8'", _within("data", input_size="8×8")),
    "another input size": Case(COMPARE, "input size 1×9×9 and 1×8×8", _within("data", input_size=[1, 9, 9])),
    "an infinite seed": Case(COMPARE, "one.json", _within("threat", seed=1e999)),
    "an RA of text": Case(COMPARE, "robust_accuracy of 'high'", _described(lambda r: r.update(robust_accuracy="high"))),
    "an accuracy of text": Case(COMPARE, "accuracy of 'high'", _described(lambda r: r.update(accuracy="high"))),
    "a head of text": Case(COMPARE, "one.json", _described(lambda r: r.update(head="linear"))),
    "a head without a name": Case(COMPARE, "head.name of None", _described(lambda r: r["head"].pop("name"))),
    "a head's history of numbers": Case(COMPARE, "head.history of [3]", _within("head", history=[3])),
    "one name for all classes": Case(COMPARE, "other names", _described(lambda r: r.update(class_names="0123456789"))),
    "too few names of classes": Case(COMPARE, "other names", _described(lambda r: r.update(class_names=["a"]))),
    "other classes": Case(COMPARE, "class names", _described(lambda r: r.update(class_names=list("abcdefghij")))),
    "a folder in the way": Case(
        [*COMPARE, "--out", "taken"], "taken.json", results(lambda folder: (folder / "taken.json").mkdir())
    ),
    "a file for a folder": Case([*COMPARE, "--out", "one.json/here"], "one.json", results(lambda _: None)),
    "no resamples": Case(["compare", "run", "--bootstrap", "0"], "--bootstrap: expected 2 or more"),
    "no pairs": Case([*COMPARE, "--pairs", "0"], "--pairs", results(lambda _: None)),
    "a colour of NaN": Case([*COMPARE, "--vmax", "nan"], "vm", results(lambda _: None)),
    "a difference the wrong way round": Case([*COMPARE, "--difference-vmin", "2"], "vmin", results(lambda _: None)),
}
