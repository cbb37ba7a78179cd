"""What saliency, evaluate, leaderboard and report are to read; "run" is a finished run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bad_inputs.cases import HTML, OWN, Case, Make, file, link
from bad_inputs.results import results, rewritten
from bad_inputs.runs import changed

SALIENCY = ["saliency", "run", "run/last.safetensors"]

SALIENCIES = {
    "nothing": Case(["saliency", "gone"], "gone"),
    "a run without its last": Case(SALIENCY, "last.safetensors", changed("last.safetensors", Path.unlink)),
    "a web page": Case(SALIENCY, "best.safetensors", changed("best.safetensors", lambda p: p.write_bytes(HTML))),
    "a saved result": Case(
        ["saliency", "one.json", "run"], "a saved result, which has no weights", results(lambda _: None)
    ),
    "an index too high": Case([*SALIENCY, "--indices", "9999"], "found 9999"),
    "an index of 200 digits": Case([*SALIENCY, "--indices", "9" * 200], "--indices"),
    "an index of 5,000 digits": Case([*SALIENCY, "--indices", "9" * 5000], "--indices"),
    "an index of superscripts": Case([*SALIENCY, "--indices", "²"], "--indices: expected numbers"),
    "no index": Case([*SALIENCY, "--indices", ""], "--indices: expected numbers"),
    "no images": Case([*SALIENCY, "--count", "0"], "--count"),
    "a layer that is none": Case([*SALIENCY, "--layer", "nothing"], "nothing"),
    "an unknown class": Case([*SALIENCY, "--class", "²"], "expected a class's name or its index below 10"),
    "a pair of three": Case([*SALIENCY, "--pair", "1,2,3"], "--pair: expected two classes"),
    "a class of no images": Case([*SALIENCY, "--limit", "10", "--class", "cat"], "expected a class's name"),
}

EVALUATE = ["evaluate", OWN, "--data", "digits", "--limit", "20", "--steps", "1", "--out", "found.json"]


def _found(content: bytes) -> Make:
    return file("found.json", content)


def _of_nan(path: Path) -> None:
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(path)
    tensors["linear.bias"] *= float("nan")
    save_file(tensors, path, metadata=metadata)


EVALUATIONS = {
    "a model that is not there": Case(["evaluate", "gone"], "gone"),
    "a model of a web page": Case(["evaluate", "w.safetensors"], "found a web page", file("w.safetensors", HTML)),
    "an empty file to continue": Case(EVALUATE, "--restart", _found(b"")),
    "a web page to continue": Case(EVALUATE, "--restart", _found(HTML)),
    "a list to continue": Case(EVALUATE, "--restart", _found(b"[1]")),
    "another encoding to continue": Case(EVALUATE, "--restart", _found(b"\xff\xfe")),
    "100,000 brackets to continue": Case(EVALUATE, "--restart", _found(b"[" * 100_000)),
    "progress of text": Case(EVALUATE, "--restart", _found(b'{"format": 1, "progress": {"clean": "all"}}')),
    "infinite progress": Case(
        EVALUATE, "--restart", _found(b'{"format": 1, "progress": {"clean": {"batches": 1e999, "correct": 1}}}')
    ),
    "another evaluation to continue": Case(EVALUATE, "--restart", _found(b'{"format": 1, "progress": {}}')),
    "a newer format": Case(EVALUATE, "--restart", _found(b'{"format": 2, "progress": {}}')),
    "a folder to continue": Case(EVALUATE, "found.json", lambda folder: (folder / "found.json").mkdir()),
    "a file for a folder": Case([*EVALUATE, "--out", "file/found"], "file", file("file", b"x")),
    "no steps": Case([*EVALUATE, "--steps", "0", "--out", "new/found"], "--steps: expected at least 1"),
    "no radius": Case([*EVALUATE, "--eps", "zero"], "eps"),
    "an unknown norm": Case([*EVALUATE, "--norm", "L7"], "L7"),
    "weights of NaN": Case(
        ["evaluate", "run"],
        "expected finite weights",
        changed("best.safetensors", _of_nan),
    ),
}


BOARD = ["leaderboard", "--local", "--data", "digits", "--only", "Wong2020Fast", "--limit", "10", "--out", "board"]


def _board(content: bytes) -> Make:
    return file("board.csv", content)


_COLUMNS = (
    b"model,clean_accuracy,robust_accuracy,cas,instance_cas,published_clean_accuracy,published_autoattack_accuracy,"
    b"images,data,limit,attack,norm,eps,step_size,steps,seed,precision,unavailable\n"
)

LEADERBOARDS = {
    "an unknown data set": Case(["leaderboard", "--dataset", "mnist"], "no dataset 'mnist'"),
    "an unknown threat": Case(["leaderboard", "--threat", "L7"], "L7"),
    "nobody": Case([*BOARD, "--only", "Nobody2031"], "Nobody2031"),
    "data that are gone": Case([*BOARD, "--data", "npz:gone.npz"], "gone.npz"),
    "no images": Case([*BOARD, "--limit", "0"], "--limit: expected at least 1"),
    "eps of NaN": Case([*BOARD, "--eps", "nan"], "eps"),
    "an empty table": Case(BOARD, "choose another --out", _board(b"")),
    "a table of a web page": Case(BOARD, "choose another --out", _board(HTML)),
    "a table of another encoding": Case(BOARD, "choose another --out", _board(b"\xff\xfe")),
    "a table of zeros": Case(BOARD, "choose another --out", _board(bytes(99))),
    "other columns": Case(BOARD, "choose another --out", _board(b"epoch,lr\n1,2\n")),
    "a row cut short": Case(BOARD, "a row cut short", _board(_COLUMNS + b"Wong2020Fast,0.8\n")),
    "a row too long": Case(BOARD, "choose another --out", _board(_COLUMNS + b"a" + b"," * 30 + b"\n")),
    "an accuracy of text": Case(BOARD, "choose another --out", _board(_COLUMNS + b"a,high" + b"," * 16 + b"\n")),
    "a cell of a megabyte": Case(BOARD, "choose another --out", _board(_COLUMNS + b"a" * 1_000_000)),
    "measured otherwise": Case(BOARD, "limit None there, 10 now", _board(_COLUMNS + b"a,0.8" + b"," * 16 + b"\n")),
    "a folder in the way": Case(BOARD, "board.csv", lambda folder: (folder / "board.csv").mkdir()),
    "a file for a folder": Case([*BOARD, "--out", "file/board"], "file", file("file", b"x")),
}

REPORT = ["report", "run"]


def _recipe(line: str) -> Make:
    return changed("recipe.toml", lambda path: path.write_text(line))


def _result(change: Callable[[Path], object], suffix: str = "json") -> Make:
    return changed(f"probe/001.{suffix}", change)


def _log(change: Callable[[str], str]) -> Make:
    return changed("log.csv", lambda path: path.write_text(change(path.read_text())))


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


REPORTS = {
    "nothing": Case(["report", "gone"], "expected a run folder"),
    "a file": Case(["report", "run/log.csv"], "expected a run folder"),
    "a link to itself": Case(["report", "loop"], "loop", link("loop", "loop")),
    "one run twice": Case(["report", "run", "./run"], "expected each run once"),
    "a run of other classes": Case(
        ["report", "run", "other"],
        "found '0' in run and 'a' in other",
        lambda folder: (
            shutil.copytree(folder / "run", folder / "other"),
            rewritten(folder / "other/probe/001.json", lambda r: r.update(class_names=list("abcdefghij"))),
        ),
    ),
    "without a log": Case(REPORT, "expected a run folder", changed("log.csv", Path.unlink)),
    "an empty log": Case(REPORT, "found none yet", _log(lambda _: "")),
    "a log of garbage": Case(REPORT, "log.csv", changed("log.csv", lambda path: path.write_bytes(b"\xff\x00"))),
    "a log cut short": Case(REPORT, "a row cut short", _log(lambda text: text + "2\n")),
    "a log of text": Case(REPORT, "log.csv", _log(lambda text: text.replace("\n1,", "\none,"))),
    "a log of NaN": Case(REPORT, "of nan", _log(lambda text: text.replace(",0.1,", ",nan,"))),
    "a log of a megabyte a cell": Case(REPORT, "log.csv", _log(lambda text: text + "1" * 1_000_000)),
    "a recipe of garbage": Case(REPORT, "recipe.toml", changed("recipe.toml", lambda p: p.write_bytes(b"\xff"))),
    "a recipe of 100,000 brackets": Case(REPORT, "recipe.toml", _recipe("seed = " + "[" * 100_000)),
    "a recipe of numbers": Case(REPORT, "objective = 3", _recipe("objective = 3")),
    "epochs of text": Case(REPORT, "optim.epochs = 'many'", _recipe("optim.epochs = 'many'")),
    "selected by colour": Case(REPORT, "evaluate.select = 'colour'", _recipe("evaluate.select = 'colour'")),
    "published figures of text": Case(REPORT, "recipe.toml", _recipe("published.figures = [{at=1, cas='high'}]")),
    "published figures of NaN": Case(REPORT, "published.figures", _recipe("published.figures = [{at=1, cas=nan}]")),
    "published figures of nothing": Case(REPORT, "recipe.toml", _recipe("published.figures = 3")),
    "an environment of a web page": Case(
        REPORT, "environment.json", changed("environment.json", lambda path: path.write_bytes(HTML))
    ),
    "an environment of 100,000 brackets": Case(
        REPORT, "environment.json", changed("environment.json", lambda path: path.write_text("[" * 100_000))
    ),
    "an environment of a list": Case(
        REPORT, "environment.json", changed("environment.json", lambda path: path.write_text("[1]"))
    ),
    "an environment of a pipe": Case(REPORT, "environment.json", changed("environment.json", _a_pipe)),
    "without results": Case(REPORT, "found none", changed("probe", shutil.rmtree)),
    "a result cut short": Case(REPORT, "001.json", _result(lambda path: path.write_bytes(b"PK\3\4 cut"), "npz")),
    "a result without arrays": Case(REPORT, "001.npz", _result(Path.unlink, "npz")),
    "a result of a web page": Case(REPORT, "001.json", _result(lambda path: path.write_bytes(HTML))),
    "a result without data's name": Case(
        REPORT, "data.name of None", _result(lambda path: rewritten(path, lambda r: r["data"].pop("name")))
    ),
    "a folder in the way": Case(
        [*REPORT, "--out", "page.html"], "found the folder page.html", lambda folder: (folder / "page.html").mkdir()
    ),
    "a file for a folder": Case([*REPORT, "--out", "file/page.html"], "file", file("file", b"x")),
    "colours the wrong way round": Case([*REPORT, "--vmin", "1", "--vmax", "0"], "expected vmin below vmax"),
    "a colour of NaN": Case([*REPORT, "--vmin", "nan"], "vm"),
}
