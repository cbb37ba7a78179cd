"""Models of RobustBench and timm that are not there, and files in the place of their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bad_inputs.cases import HTML, Case, Make, file, network

ROBUST = "Rade2021Helper_R18_extra"
PLACE = f"models/cifar10/Linf/{ROBUST}.pt"


def _in_place(content: object) -> Make:
    def make(folder: Path) -> None:
        (folder / PLACE).parent.mkdir(parents=True)
        torch.save(content, folder / PLACE)

    return make


PROBE_ROBUST = ["probe", f"robustbench:{ROBUST}", "--data", "digits"]

ZOO = {
    "an unknown entry": Case(["probe", "robustbench:Nobody2031"], "RobustBench has no model 'Nobody2031'"),
    "an unknown dataset": Case(["probe", "robustbench:mnist/Linf/X"], "RobustBench has no dataset 'mnist'"),
    "a web page": Case(PROBE_ROBUST, "web page", file(PLACE, HTML)),
    "an empty file": Case(PROBE_ROBUST, PLACE, file(PLACE, b"")),
    "random bytes": Case(PROBE_ROBUST, "damaged", file(PLACE, bytes(range(256)))),
    "a whole pickled model": Case(
        PROBE_ROBUST, f"'{PLACE}.weights.pt'); then put it in its place", _in_place(network())
    ),
    "NumPy's numbers": Case(
        PROBE_ROBUST,
        f"'{PLACE}.weights.pt'); then put it in its place",
        _in_place({"state_dict": {}, "best": np.float64(1)}),
    ),
    "another architecture": Case(PROBE_ROBUST, "another architecture", _in_place({"weight": torch.zeros(3)})),
    "a list": Case(PROBE_ROBUST, PLACE, _in_place([1, 2])),
    "an unknown network": Case(["probe", "timm:resnet181", "--data", "digits"], "did you mean 'resnet18'"),
    "unknown weights": Case(["probe", "timm:resnet18.nobody", "--data", "digits"], "timm has no weights"),
    "a hub of strangers": Case(["probe", "timm:hf-hub:stranger/model", "--data", "digits"], "timm has no model"),
    "options for timm": Case(
        ["train", "digits", "--set", "model={name='timm:resnet18', options={colour=3}}"], "refuses its options"
    ),
}
