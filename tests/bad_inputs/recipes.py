"""Recipes, and what is said of them on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bad_inputs.cases import HTML, OWN, Case, Make, X, Y, file, link
from bad_inputs.checkpoints import described

MINIMAL = b'[model]\nname = "narrow_preact_resnet18"\n[data]\nname = "digits"\n'
TRAIN = ["train", "mine.toml"]


def _recipe(content: bytes) -> Make:
    return file("mine.toml", content)


def _bases(count: int) -> Make:
    def make(folder: Path) -> None:
        (folder / "mine.toml").write_text('base = "r0"')
        for number in range(count):
            (folder / f"r{number}.toml").write_text(f'base = "r{number + 1}"')
        (folder / f"r{count}.toml").write_bytes(MINIMAL)

    return make


RECIPES = {
    "missing": Case(TRAIN, "expected a recipe file, found no 'mine.toml'"),
    "a folder": Case(TRAIN, "mine.toml", lambda folder: (folder / "mine.toml").mkdir()),
    "a link to itself": Case(TRAIN, "mine.toml", link("mine.toml", "mine.toml")),
    "a name of 5,000 letters": Case(["train", "r" * 5000], "File name too long"),
    "without a model": Case(TRAIN, "model: expected a value", _recipe(b'data = {name = "digits"}')),
    "a web page": Case(TRAIN, "expected TOML", _recipe(HTML)),
    "cut short": Case(TRAIN, "expected TOML", _recipe(MINIMAL[:-3])),
    "keys twice": Case(TRAIN, "expected TOML", _recipe(MINIMAL + b'name = "cifar10"\n')),
    "tables twice": Case(TRAIN, "expected TOML", _recipe(MINIMAL + b"[data]\n")),
    "another encoding": Case(TRAIN, "expected TOML", _recipe("seed = 1 # größer".encode("latin-1"))),
    "UTF-16": Case(TRAIN, "expected TOML", _recipe(MINIMAL.decode().encode("utf-16"))),
    "10 MB": Case(TRAIN, "expected a recipe under 1 MB", _recipe(b"# " + b"x" * 10_000_000)),
    "a million brackets": Case(TRAIN, "expected TOML", _recipe(b"seed = " + b"[" * 900_000)),
    "a number of 5,000 digits": Case(TRAIN, "mine.toml", _recipe(b"seed = " + b"9" * 5000 + b"\n" + MINIMAL)),
    "a hexadecimal number of 9,000 digits": Case(
        TRAIN, "seed: expected", _recipe(b"seed = 0x" + b"f" * 9000 + b"\n" + MINIMAL)
    ),
    "a circle of bases": Case(TRAIN, "without a circle", _recipe(b'base = "mine"')),
    "a tower of bases": Case(TRAIN, "base", _bases(2000)),
    "a base that is missing": Case(TRAIN, "found no 'nowhere'", _recipe(b'base = "nowhere"')),
    "a base of a number": Case(TRAIN, "base: expected a recipe's name", _recipe(b"base = 3")),
    "an unknown key": Case(TRAIN, "did you mean 'seed'", _recipe(b"sead = 1\n" + MINIMAL)),
    "a key of a wrong type": Case(TRAIN, "seed: expected", _recipe(b'seed = "one"\n' + MINIMAL)),
    "a key of two lines": Case(TRAIN, "expected a known key", _recipe(b'"a\\nb" = 1\n' + MINIMAL)),
    "a rate of NaN": Case(TRAIN, "optim.lr", _recipe(MINIMAL + b"[optim]\nlr = nan\n")),
    "an infinite rate": Case(TRAIN, "optim.lr", _recipe(MINIMAL + b"[optim]\nlr = inf\n")),
    "eps of NaN": Case(TRAIN, "attack.eps", _recipe(MINIMAL + b"[attack]\neps = nan\n")),
    "eps of 10^400": Case(TRAIN, "attack.eps", _recipe(MINIMAL + b"[attack]\neps = 1" + b"0" * 400 + b"\n")),
    "eps of words": Case(TRAIN, "attack.eps", _recipe(MINIMAL + b'[attack]\neps = "__import__(1)"\n')),
    "code in a file": Case(
        TRAIN, "add --allow-code", _recipe(MINIMAL.replace(b"narrow_preact_resnet18", OWN.encode()))
    ),
    "a teacher that is missing": Case(
        TRAIN,
        "expected the teacher's run at runs/gone",
        _recipe(MINIMAL + b'[[distill]]\nteacher="runs/gone"\nweight=1\n'),
    ),
    "a teacher in a torch file": Case(
        TRAIN,
        "expected a .safetensors checkpoint of a run",
        lambda f: (_recipe(MINIMAL + b'[[distill]]\nteacher="t.pt"\nweight=1\n')(f), file("t.pt", HTML)(f)),
    ),
    "a teacher of a web page": Case(
        TRAIN,
        "found a web page",
        lambda f: (
            _recipe(MINIMAL + b'[[distill]]\nteacher="t.safetensors"\nweight=1\n')(f),
            file("t.safetensors", HTML)(f),
        ),
    ),
    "a teacher of other classes": Case(
        [*TRAIN, "--set", "data.name=npz:three.npz", "--set", "distill=[{teacher='best.safetensors', weight=1}]"],
        "expected a teacher of 3 classes, found 10",
        lambda f: (
            _recipe(MINIMAL)(f),
            described(lambda _: None)(f),
            np.savez(f / "three.npz", x_train=X[:6], y_train=Y[:6] % 3, x_test=X[:6], y_test=Y[:6] % 3),
        ),
    ),
    "data of another size than the model": Case(
        TRAIN, "3×32×32", _recipe(MINIMAL.replace(b"narrow_preact_resnet18", b"preact_resnet18"))
    ),
    "a network of an exabyte": Case(
        TRAIN, "narrow_preact_resnet18", _recipe(MINIMAL + b"[model.options]\nwidth = 1099511627776\n")
    ),
    "--set without a key": Case(["train", "digits", "--set", "=3"], "--set: expected key=value"),
    "--set of nothing": Case(["train", "digits", "--set", ""], "--set: expected key=value"),
    "--set of a million brackets": Case(["train", "digits", "--set", "seed=" + "[" * 100_000], "seed"),
    "--set into a value": Case(["train", "digits", "--set", "seed.x=3"], "not a table"),
    "a sweep without values": Case(["sweep", "digits", "seed="], "expected key=value,value"),
    "a sweep of a fault": Case(["sweep", "digits", "seed=1,x"], "seed: expected"),
    "a sweep of a damaged recipe": Case(["sweep", "mine.toml", "seed=1,2"], "expected TOML", _recipe(b"\xff")),
    "recipes with a word too much": Case(["recipes", "more"], "unexpected extra argument"),
}
