"""Impossible wishes on the command line."""

from __future__ import annotations

from bad_inputs.cases import HTML, OWN, SET, Case, Make, file, link
from bad_inputs.recipes import MINIMAL


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
    "a negative batch": Case(option("--batch-size", "-1", "--clean"), "--batch-size: expected at least 1"),
    "a seed of 2^70": Case(option("--seed", str(2**70), "--steps", "1"), "seed"),
    "another device": Case(option("--device", "cuda:99"), "cuda:99"),
    "a device of no kind": Case(option("--device", "tpu"), "expected auto, cpu, cuda"),
    "a head that is no layer": Case(option("--head", "nothing", "--clean"), "nothing"),
}


SWEEP = ["sweep", "digits", *SET]

SWEEPS = {
    "no settings": Case(["sweep", "digits"], "Missing argument"),
    "an unknown recipe": Case(["sweep", "digit", "seed=1,2"], "did you mean 'digits'"),
    "a recipe of a web page": Case(["sweep", "mine.toml", "seed=1,2"], "expected TOML", file("mine.toml", HTML)),
    "code in a recipe": Case(
        ["sweep", "mine.toml", "seed=1,2"],
        "add --allow-code",
        file("mine.toml", MINIMAL.replace(b"narrow_preact_resnet18", OWN.encode())),
    ),
    "a key of nothing": Case([*SWEEP, "=1,2"], "expected key=value,value"),
    "values of commas": Case([*SWEEP, "seed=,,"], "expected key=value,value"),
    "an unknown key": Case([*SWEEP, "sead=1,2"], "did you mean 'seed'"),
    "one value out of range": Case([*SWEEP, "seed=1,2,-3"], "seed: expected"),
    "a value of two lines": Case([*SWEEP, "model.name='a\nb'"], "model"),
    "ten thousand brackets": Case([*SWEEP, "seed=" + "[" * 10_000], "seed"),
    "two values in one folder": Case([*SWEEP, "data.name=npz:a b,npz:a_b"], "a folder for each run"),
    "the same value twice": Case([*SWEEP, "seed=1,1"], "a folder for each run"),
    "a file for a folder": Case([*SWEEP, "seed=1,2", "--out", "file"], "file", file("file", b"x")),
    "a link to itself": Case([*SWEEP, "seed=1,2", "--out", "loop"], "loop", link("loop", "loop")),
    "a damaged run": Case(
        [*SWEEP, "seed=1,2", "--out", "out"], "last.json", file("out/seed=1/state/last.json", b"\xff")
    ),
    "other files in a run's folder": Case(
        [*SWEEP, "seed=1,2", "--out", "out"], "found other files (thesis.txt)", file("out/seed=1/thesis.txt", b"x")
    ),
}

BENCH = ["bench", "--recipe", "digits", *SET, "--quick", "--epochs", "1", "--reference-steps", "0"]

BENCHES = {
    "an unknown recipe": Case(["bench", "--recipe", "digit"], "did you mean 'digits'"),
    "a recipe of a web page": Case(["bench", "--recipe", "mine.toml"], "expected TOML", file("mine.toml", HTML)),
    "a recipe of another encoding": Case(
        ["bench", "--recipe", "mine.toml"], "expected TOML", file("mine.toml", b"\xff")
    ),
    "code in a recipe": Case(
        ["bench", "--recipe", "mine.toml"],
        "add --allow-code",
        file("mine.toml", MINIMAL.replace(b"narrow_preact_resnet18", OWN.encode())),
    ),
    "an unknown key": Case([*BENCH, "--set", "sead=1"], "did you mean 'seed'"),
    "a device of no kind": Case([*BENCH, "--device", "tpu"], "expected auto, cpu, cuda"),
    "no epochs": Case([*BENCH, "--epochs", "0"], "--epochs"),
    "fewer than no steps": Case([*BENCH, "--reference-steps", "-1"], "--reference-steps"),
    "data that are gone": Case([*BENCH, "--set", "data.name=npz:gone.npz"], "gone.npz"),
    "data of objects": Case([*BENCH, "--set", "data.name=npz:gone.npz"], "damaged", file("gone.npz", HTML)),
    "a folder in the way": Case([*BENCH, "--out", "here"], "here", lambda folder: (folder / "here").mkdir()),
    "a file for a folder": Case([*BENCH, "--out", "file/here.json"], "file", file("file", b"x")),
}

THEORIES = {
    "no samples": Case(["theory", "--samples", "0"], "samples: expected 300"),
    "a million million samples": Case(["theory", "--samples", str(10**12)], "samples: expected 300"),
    "no points": Case(["theory", "--points", "0"], "points: expected at least 1"),
    "no features": Case(["theory", "--features", "0"], "features: expected at least 1"),
    "features of 10^15": Case(["theory", "--features", str(10**15)], "samples: expected"),
    "a mean of NaN": Case(["theory", "--mu", "nan"], "mu: expected"),
    "a mean of 1e308": Case(["theory", "--mu", "1e308", "--samples", "300", "--points", "1"], "finite"),
    "no deviation": Case(["theory", "--sigma", "0"], "sigma: expected"),
    "a wide deviation": Case(["theory", "--sigma", "9"], "sigma: expected below"),
    "no decay": Case(["theory", "--lam", "0"], "lam: expected"),
    "an infinite decay": Case(["theory", "--lam", "inf"], "lam: expected"),
    "no smoothing": Case(["theory", "--beta", "0"], "beta: expected"),
    "too much smoothing": Case(["theory", "--beta", "0.5"], "beta: expected"),
    "a seed of 2^70": Case(["theory", "--seed", str(2**70), "--samples", "300", "--points", "1"], "seed"),
    "a negative seed": Case(["theory", "--seed", "-1", "--samples", "300", "--points", "1"], "seed"),
    "words": Case(["theory", "--samples", "many"], "--samples"),
    "a folder in the way": Case(
        ["theory", "--samples", "300", "--points", "1", "--out", "here"],
        "here.json",
        lambda folder: (folder / "here.json").mkdir(),
    ),
    "a file for a folder": Case(
        ["theory", "--samples", "300", "--points", "1", "--out", "file/here"], "file", file("file", b"x")
    ),
}

RECIPE_LISTS = {
    "a word too much": Case(["recipes", "more"], "unexpected extra argument"),
    "an option of no kind": Case(["recipes", "--all"], "No such option"),
    "a command of no kind": Case(["recipe"], "No such command"),
}

_TINY = "data/tiny-imagenet-200/val"
_ANNOTATIONS = f"{_TINY}/val_annotations.txt"
FIX = ["fix-tinyimagenet"]


def _annotated(lines: bytes) -> Make:
    """Tiny-ImageNet's validation set of one image, "a.JPEG"."""
    return lambda folder: (file(_ANNOTATIONS, lines)(folder), file(f"{_TINY}/images/a.JPEG", b"x")(folder))


TINY_IMAGENETS = {
    "no folder": Case([*FIX, "--data-root", "gone"], "gone"),
    "a file for the folder": Case(FIX, "tiny-imagenet-200/val", file(_TINY, b"x")),
    "a link to itself": Case(FIX, "tiny-imagenet-200", link("data", "data")),
    "an empty list": Case(FIX, "expected a line for each image, found none", file(_ANNOTATIONS, b"")),
    "a web page": Case(FIX, "expected lines of file, tab, wnid", file(_ANNOTATIONS, HTML)),
    "lines without a class": Case(FIX, "expected lines of file, tab, wnid", file(_ANNOTATIONS, b"val_0.JPEG\n")),
    "a class above the folder": Case(
        FIX, "expected lines of file, tab, wnid", file(_ANNOTATIONS, b"val_0.JPEG\t..\t0\n")
    ),
    "a class at the root": Case(
        FIX, "expected lines of file, tab, wnid", file(_ANNOTATIONS, b"val_0.JPEG\t/tmp/here\t0\n")
    ),
    "a file above the folder": Case(
        FIX, "expected lines of file, tab, wnid", file(_ANNOTATIONS, b"../../secret\tn01\t0\n")
    ),
    "a class of a zero byte": Case(FIX, "val_annotations.txt", file(_ANNOTATIONS, b"val_0.JPEG\tn\0\t0\n")),
    "a class of 5,000 letters": Case(
        FIX,
        "val",
        lambda f: (
            file(_ANNOTATIONS, b"a.JPEG\t" + b"n" * 5000 + b"\t0\n")(f),
            file(f"{_TINY}/images/a.JPEG", b"x")(f),
        ),
    ),
    "a class named as the list": Case(
        FIX,
        "val_annotations.txt",
        _annotated(b"a.JPEG\tval_annotations.txt\t0\n"),
    ),
    "an image twice": Case(
        FIX,
        "a.JPEG",
        _annotated(b"a.JPEG\tn1\t0\na.JPEG\tn2\t0\n"),
    ),
    "a word too much": Case([*FIX, "more"], "unexpected extra argument"),
}
