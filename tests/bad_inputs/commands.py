"""Impossible wishes on the command line."""

from __future__ import annotations

from bad_inputs.cases import OWN, Case


def option(*words: str) -> list[str]:
    return ["probe", OWN, "--data", "digits", "--limit", "20", *words]


OPTIONS = {
    "a model of no kind": Case(["probe", "torchvision:resnet18"], "no kind 'torchvision'"),
    "a model of nothing": Case(["probe", ""], "expected a run folder"),
    "a model of 5,000 letters": Case(["probe", "m" * 5000], "File name too long"),
    "code that is not there": Case(["probe", "python:nowhere:f", "--data", "digits"], "importing nowhere failed"),
    "code without a name": Case(["probe", "python:bad_inputs.cases", "--data", "digits"], "python:package.module:"),
    "code that makes no model": Case(["probe", "python:os:getcwd", "--data", "digits"], "expected an nn.Module"),
    "code that fails": Case(["probe", "python:os:abort_", "--data", "digits"], "os has no 'abort_'"),
    "a data set of nothing": Case(option("--data", ""), "data '' is unknown"),
    "a folder of nothing": Case(option("--data", "folder:"), "unknown"),
    "eps of NaN": Case(option("--eps", "nan"), "eps"),
    "eps of 1e999": Case(option("--eps", "1e999"), "eps"),
    "a negative eps": Case(option("--eps", "-1/255"), "eps"),
    "no steps": Case(option("--steps", "0"), "steps: expected a whole number of at least 1"),
    "a negative limit": Case(option("--limit", "-3"), "--limit"),
    "a negative batch": Case(option("--batch-size", "-1", "--clean"), "batch size"),
    "a seed of 2^70": Case(option("--seed", str(2**70), "--steps", "1"), "seed"),
    "another device": Case(option("--device", "cuda:99"), "cuda:99"),
    "a device of no kind": Case(option("--device", "tpu"), "expected auto, cpu, cuda"),
    "a head that is no layer": Case(option("--head", "nothing", "--clean"), "nothing"),
}
