"""Everything that only a CUDA machine tells, in one command: first the tests of ``tests/gpu``, then how fast what is.

    python tests/benchmarks/on_gpu.py --minutes 9 --out DIR [--only step_compiled,evaluation] [--data npz:PATH]

With ``--study NAME`` it does a slot of a study of ``recipes/studies`` instead, from the pieces of an earlier one:

    python tests/benchmarks/on_gpu.py --study soft_labels --minutes 9 --data npz:PATH --out OUT [--pieces EARLIER]

The rows come most valuable first, each in a process of its own with its own time limit, and whatever has finished (of
a row that ran out of time too) is in DIR/on_gpu.json and DIR/on_gpu.md. No network is needed: ``--data`` is a data set
as recipes name it, by default made-up images of CIFAR-10's size, since speed does not depend on what they show.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """``measure`` gives figures piece by piece; each piece is on disk before the next begins."""

    name: str
    what: str
    seconds: float
    measure: Callable[[Setting], Iterator[Figures]]


@dataclass(frozen=True)
class Setting:
    """Where a row runs; small, as on a CPU, it only shows that it works."""

    device: str
    data: str
    folder: Path
    is_small: bool

    def recipe(self, name: str, *more: str) -> Any:
        from ccf_plugin.training.recipe_files import load_recipe

        small = [
            *("model.name=narrow_preact_resnet18", "model.options.width=2", "model.options.blocks=[1,1,1,1]"),
            *("attack.steps=2", "evaluate.steps=2", "optim.batch_size=16"),
        ]
        given = [f"device={self.device}", f"data.name={self.data}", "checkpoints.every=0"]
        one_step = name == "preact_fast"
        kept = [value for value in small if not (one_step and value.startswith("attack.steps"))]
        return load_recipe(name, [*given, *(kept if self.is_small else []), *more])


# Rows


def tests(setting: Setting) -> Iterator[Figures]:
    """``pytest -m gpu``."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    command += ["--durations=8", "--tb=short"]
    if importlib.util.find_spec("xdist") is not None:  # much of their time is Python's and compilers'
        command += ["-n", str(min(4, os.cpu_count() or 1))]
    log = setting.folder / "tests.txt"
    with log.open("w") as file:
        code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    lines = log.read_text().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield {"exit_code": code, "summary": lines[-1] if lines else "", "failed": failed}


def step(compiled: bool, mode: str | None = None, *, replayed: bool = True, recipe: str = "preact_linf") -> Any:
    """A row: one training step, its parts, and the kernels that it consists of."""

    def measure(setting: Setting) -> Iterator[Figures]:
        import torch

        from ccf_plugin.engine import compilation
        from ccf_plugin.engine.precision import matrix_rate
        from ccf_plugin.engine.timing import Stopwatch, now
        from ccf_plugin.training.loop import Loop
        from ccf_plugin.training.processes import Processes
        from ccf_plugin.training.setup import prepare

        if mode is not None:
            compilation.torch.compile = _in_mode(torch.compile, mode)
        if not replayed:
            _without_graphs()
        chosen = setting.recipe(recipe, f"compile={str(compiled).lower()}")
        spent = Stopwatch()
        started = now()
        device = torch.device(setting.device)
        parts = prepare(chosen, device)
        steps = Loop(parts, Processes(chosen.device, folder=setting.folder)).steps(1)
        warm = []
        for _ in range(4):
            start = now()
            next(steps)
            warm.append(now() - start)
        size = chosen.optim.batch_size
        work = parts.work() / chosen.optim.epochs / len(parts.train) * size
        rate = matrix_rate(device, parts.precision, size=256 if setting.is_small else 8192)
        yield {
            "warm_up_seconds": now() - started,
            "first_steps_ms": [1e3 * one for one in warm],
            "precision": parts.precision,
            "matrix_tflops": rate / 1e12,
        }
        rounds = []
        for _ in range(2 if setting.is_small else 5):
            number = 2 if setting.is_small else 30
            start = now()
            for _ in range(number):
                next(steps)
            rounds.append((now() - start) / number)
        typical = median(rounds)
        yield {
            "step_ms": 1e3 * typical,
            "rounds_ms": [1e3 * one for one in rounds],
            "images_per_second": size / typical,
            "share_of_matrix_rate": work / typical / rate,
            "epoch_of_50000_seconds": typical * 50_000 / size,
        }
        spent.start()
        number = 3 if setting.is_small else 20
        start = now()
        for _ in range(number):
            next(steps)
        whole = (now() - start) / number
        spent.stop()
        parts_ms = {name: 1e3 * seconds / number for name, seconds in spent.seconds.items()}
        yield {"waiting_step_ms": 1e3 * whole, "waiting_parts_ms": parts_ms}
        if setting.device != "cpu":
            start = time.perf_counter()
            for _ in range(10):
                next(steps)
            yield {"host_ms_per_step": 1e2 * (time.perf_counter() - start)}
            torch.cuda.synchronize()
            yield {
                "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
                "reserved_gib": torch.cuda.memory_reserved() / 2**30,
            }
        yield {"profile": _profile(lambda: next(steps), 2)}

    return measure


def evaluation(setting: Setting) -> Iterator[Figures]:
    """The whole test split under the recipe's attack, by batch size, replayed and not."""
    import torch

    from ccf_plugin.engine.forward import Forward
    from ccf_plugin.engine.timing import now
    from ccf_plugin.measuring.evaluate import AttackSettings, MeasuredSplit, measure
    from ccf_plugin.training.setup import prepare
    from ccf_plugin.zoo.attacks import build_attack

    recipe = setting.recipe("preact_linf")
    parts = prepare(recipe, torch.device(setting.device))
    torch.backends.cudnn.benchmark = True
    threat = recipe.evaluation_threat()

    data, settings = MeasuredSplit(parts.test, parts.classes), AttackSettings(threat, precision=parts.precision)

    def timed(batch_size: int, forward: Any, attack: Any = None) -> dict[str, Any]:
        """Seconds of two rounds in a row, the second with what the first made."""
        attack = attack or build_attack(None, forward, threat, num_classes=len(parts.classes))
        seconds = []
        for _ in range(2):
            start = now()
            result = measure(parts.model, data, settings, batch_size=batch_size, built=attack)
            seconds.append(now() - start)
        return {"seconds": seconds, "cas": result.cas, "robust_accuracy": result.robust_accuracy}

    sizes = (20, 40) if setting.is_small else (250, 1000, 2000)
    for size in sizes:
        yield {f"replayed_{size}": timed(size, Forward(parts.model, precision=parts.precision))}
    inner = Forward(parts.model, precision=parts.precision)

    class Compiled(Forward):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.compiled(images)
            return logits

    compiled = Compiled(parts.model, precision=parts.precision)
    if not setting.is_small:
        object.__setattr__(compiled, "compiled", torch.compile(inner.forward, dynamic=False))
        yield {"replayed_compiled_1000": timed(1000, compiled)}
    _without_graphs()
    for size in sizes[:1]:
        yield {f"eager_{size}": timed(size, Forward(parts.model, precision=parts.precision))}


def epochs(recipe: str, count: int, *more: str) -> Any:
    """A row: whole epochs of `ccf train`, each evaluated, and what they leave on the disk."""

    def measure(setting: Setting) -> Iterator[Figures]:
        from ccf_plugin.training.loop import train

        chosen = setting.recipe(recipe, *more)
        whole_run = chosen.optim.epochs
        pays, images = _of_the_whole_run(chosen, setting)
        compiles = {"compile": pays}
        chosen = chosen.model_copy(update={"optim": chosen.optim.model_copy(update={"epochs": count}), **compiles})
        timer = _Epochs()
        started = time.perf_counter()
        run = train(chosen, setting.folder / "run", timer)
        total = time.perf_counter() - started
        yield {
            **compiles,
            "seconds_in_all": total,
            "until_the_first_step_ended": timer.first_step - started,
            "epochs": [
                {
                    "seconds": row.seconds,
                    "training_seconds": images / row.images_per_second,
                    "evaluation_seconds": row.seconds - images / row.images_per_second,
                    "writing_seconds": wall - row.seconds,
                    "robust_accuracy": row.test_robust_accuracy,
                    "cas": row.cas,
                }
                for row, wall in zip(run.rows, timer.walls, strict=True)
            ],
            "whole_run_minutes": whole_run * min(timer.walls) / 60,
        }

    return measure


def digits(setting: Setting) -> Iterator[Figures]:
    """The quick start as its user types it."""
    command = [sys.executable, "-m", "ccf_plugin", "train", "digits", "--set", f"device={setting.device}"]
    command += ["--set", "optim.epochs=2"] if setting.is_small else []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        log = Path(folder, "runs", "digits", "log.csv")
        last = log.read_text().splitlines()[-1] if log.is_file() else ""
    yield {"seconds": seconds, "exit_code": done.returncode, "last_row": last, "said": done.stdout[-600:]}


def instance_cas(setting: Setting) -> Iterator[Figures]:
    """I-CAS of 10,000 × 512, in similarity products."""
    import torch
    import torch.nn.functional as F

    from ccf_plugin import instance_matrix

    count = 500 if setting.is_small else 10_000
    generator = torch.Generator(setting.device).manual_seed(0)
    rows = torch.randn(count, 512, device=setting.device, generator=generator)
    for classes in (10, 100):
        labels = torch.randint(classes, (count,), device=setting.device, generator=generator)
        units = F.normalize(rows)
        ours = _seconds(partial(instance_matrix, rows, labels, classes))
        product = _seconds(partial(torch.matmul, units, units.T))
        yield {f"{classes}_classes": {"ms": 1e3 * ours, "product_ms": 1e3 * product, "products": ours / product}}


def probe(setting: Setting) -> Iterator[Figures]:
    """One ``update`` after a pass, on the host and on the device; and quarters of an epoch with and without it."""
    import torch
    import torch.nn.functional as F
    import torchattacks

    from ccf_plugin import CrossClassProbe
    from ccf_plugin.engine.timing import now
    from ccf_plugin.training.setup import prepare

    parts = prepare(setting.recipe("preact_linf"), torch.device(setting.device))
    images, labels = next(iter(parts.train.batches(128, parts.device)))
    with CrossClassProbe(parts.model) as attached, torch.no_grad():
        host, waiting = [], []
        for _ in range(10):
            attached.model(images)
            now()
            start = time.perf_counter()
            attached.update(labels)
            host.append(time.perf_counter() - start)
            waiting.append(now() - start)
    yield {"host_ms": 1e3 * median(host[2:]), "with_waiting_ms": 1e3 * median(waiting[2:])}
    with torch.no_grad():
        bare = _seconds(lambda: parts.model(images))
        with CrossClassProbe(parts.model) as attached:

            def counted() -> None:
                attached.model(images)
                attached.update(labels)

            counted()
            whole = _seconds(counted)
            kernels = _profile(counted, 2)
    yield {"pass_ms": 1e3 * bare, "pass_and_update_ms": 1e3 * whole, "profile": kernels}
    # A loop as users write it, without what `ccf train` does for speed.
    threat, model = parts.recipe.training_threat(), parts.model.train()
    attack = torchattacks.PGD(model, eps=threat.eps, alpha=threat.step_size, steps=threat.steps)
    attack.set_model_training_mode(True, True, True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train(attached: CrossClassProbe | None) -> float:
        start = now()
        for _ in range(2 if setting.is_small else 98):
            loss = F.cross_entropy(model(attack(images, labels)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if attached is not None:
                attached.update(labels)
        return now() - start

    seconds: dict[str, list[float]] = {"without": [], "with": []}
    train(None)
    for _ in range(2):
        seconds["without"].append(train(None))
        with CrossClassProbe(model, inputs="adversarial") as attached:
            seconds["with"].append(train(attached))
    yield {"quarter_epoch_seconds": seconds, "ratio": min(seconds["with"]) / min(seconds["without"])}


ROWS = (
    Row("tests", "pytest -m gpu", 110, tests),
    Row("step_captured", "PGD-10 step, attack as one graph, not compiled", 40, step(False)),
    Row("step_compiled", "PGD-10 step, attack as one graph, compiled", 100, step(True)),
    Row("evaluation", "10,000 images under PGD-20", 75, evaluation),
    Row("epochs", "preact_linf, two epochs", 75, epochs("preact_linf", 2)),
    Row("fast", "preact_fast, three epochs", 60, epochs("preact_fast", 3)),
    Row("digits", "the quick start", 40, digits),
    Row("instance_cas", "I-CAS of 10,000 × 512", 25, instance_cas),
    Row("probe", "one update, and training with and without", 90, probe),
    Row("step_before", "PGD-10 step, each pass a graph", 110, step(True, replayed=False)),
    Row("fast_captured", "one-step attack, not compiled", 30, step(False, recipe="preact_fast")),
    Row("step_autotuned", "PGD-10 step, autotuned", 200, step(True, "max-autotune-no-cudagraphs")),
    Row("step_eager", "PGD-10 step, no graph, not compiled", 40, step(False, replayed=False)),
)


# What the rows share


class _Epochs:
    """A reporter that times epochs, their writing included."""

    def __init__(self) -> None:
        self.walls: list[float] = []
        self.first_step = 0.0

    def started(self, run: Any) -> None:
        self._since = time.perf_counter()

    def step(self, epoch: int, done: int, total: int) -> None:
        self.first_step = self.first_step or time.perf_counter()

    def evaluating(self, batches: Any, total: int) -> Any:
        return batches

    def measured(self, epoch: int, models: Any) -> None: ...

    def epoch_finished(self, row: Any) -> None:
        here = time.perf_counter()
        self.walls.append(here - self._since)
        self._since = here


def _of_the_whole_run(recipe: Any, setting: Setting) -> tuple[bool, int]:
    """Whether it is compiled, and its training images."""
    import torch

    from ccf_plugin.engine.compilation import compiling_pays
    from ccf_plugin.training.setup import prepare

    device = torch.device(setting.device)
    parts = prepare(recipe, device)
    return compiling_pays(device, parts.work()), len(parts.train)


def _in_mode(compile_: Callable[..., Any], mode: str) -> Callable[..., Any]:
    return lambda function, **options: compile_(function, **{**options, "mode": mode})


def _without_graphs() -> None:
    """Attacks launch kernel by kernel, and cast weights in every pass."""
    from ccf_plugin.engine.forward import Forward

    os.environ["CCF_CUDA_GRAPHS"] = "0"
    Forward.weights_cast_once = lambda _: contextlib.nullcontext()  # type: ignore[assignment,method-assign]


def _seconds(call: Callable[[], object]) -> float:
    from ccf_plugin.engine.timing import now

    call()
    found = []
    for _ in range(7):
        start = now()
        call()
        found.append(now() - start)
    return median(found)


def _profile(call: Callable[[], object], repeats: int) -> Figures:
    """The kernels of a call with their share of its time, by name and by kind, and the share in which the GPU rests."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda event: event.time_range.start)
    by_name: dict[str, list[float]] = defaultdict(list)
    busy, end = 0.0, 0.0
    for kernel in kernels:
        start, stop = kernel.time_range.start, kernel.time_range.end
        by_name[kernel.name].append(stop - start)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    if not kernels:
        return {"kernels": 0}
    window = end - kernels[0].time_range.start
    total = sum(sum(times) for times in by_name.values())
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    kinds: dict[str, float] = defaultdict(float)
    for name, times in by_name.items():
        kinds[_kind(name)] += sum(times) / total
    return {
        "window_ms": window / 1e3 / repeats,
        "idle_share": 1 - busy / window,
        "kernels": len(kernels) / repeats,
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "top": [
            {"name": name[:110], "share": sum(times) / total, "calls": len(times) / repeats, "us": median(times)}
            for name, times in ranked[:30]
        ],
    }


_KINDS = {
    "convolution": ("conv", "xmma", "cutlass", "gemm", "wgrad", "dgrad", "implicit", "cudnn", "nvjet"),
    "normalisation": ("batch_norm", "bn_", "welford", "norm"),
    "fused by inductor": ("triton",),
    "copy or cast": ("memcpy", "copy", "memset", "fill"),
    "elementwise": ("elementwise", "vectorized"),
    "reduction": ("reduce",),
    "optimizer": ("multi_tensor", "sgd"),
}


def _kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, parts in _KINDS.items() if any(part in lower for part in parts)), "other")


# The command


def run_row(row: Row, setting: Setting, result: Path) -> None:
    """In the row's own process."""
    figures: Figures = {}
    for piece in row.measure(setting):
        figures |= piece
        part = result.with_suffix(".part")
        part.write_text(json.dumps(figures))
        part.replace(result)


def run_all(chosen: list[Row], arguments: argparse.Namespace, data: str) -> Figures:
    out: Path = arguments.out
    deadline = time.monotonic() + 60 * arguments.minutes
    found: Figures = {**_machine(arguments.device), "data": arguments.data or "made up", "rows": {}}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"CCF_CUDA_GRAPHS": "1", **os.environ, "PYTHONPATH": path}
    for row in chosen:
        left = deadline - time.monotonic()
        entry = found["rows"][row.name] = {"what": row.what, "status": "no time left"}
        try:
            if left >= 10:
                _measure(row, min(left, row.seconds), arguments, data, environment, entry)
                print(f"{row.name}: {entry['status']}, {entry['seconds']:.0f} s", flush=True)
        finally:
            (out / "on_gpu.json").write_text(json.dumps(found, indent=1) + "\n")
            (out / "on_gpu.md").write_text(table(found))
    return found


def _measure(
    row: Row, limit: float, arguments: argparse.Namespace, data: str, environment: dict[str, str], entry: Figures
) -> None:
    """Run a row in its own process and fill in its entry, also where this process is told to end meanwhile."""
    out: Path = arguments.out
    result = out / f"{row.name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--row", row.name, "--out", str(out), "--data", data]
    command += ["--device", arguments.device, *(["--small"] if arguments.small else [])]
    started = time.monotonic()
    entry["status"] = "interrupted"
    with (out / f"{row.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            entry["status"] = "finished" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            entry["status"] = f"ended after its {limit:.0f} s"
        finally:
            if process.poll() is None:
                _end(process)
            entry["seconds"] = time.monotonic() - started
            if result.is_file():
                entry["figures"] = json.loads(result.read_text())
                result.unlink()
            elif entry["status"] == "finished":
                entry["status"] = "finished without a figure"
            if entry["status"] != "finished":
                entry["log"] = (out / f"{row.name}.log").read_text(errors="replace")[-3000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with what it started itself."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def table(found: Figures) -> str:
    """Markdown of what has finished."""
    lines = [
        f"{found['device']}, torch {found['versions']['torch']}, Python {found['python']}: `{found['command']}`",
        "",
    ]
    lines += ["| row | what | status | figures |", "|---|---|---|---|"]
    for name, row in found["rows"].items():
        figures = "; ".join(_flat(row.get("figures", {})))
        lines.append(f"| {name} | {row['what']} | {row['status']} | {figures} |")
    for name, row in found["rows"].items():
        profile = row.get("figures", {}).get("profile") or {}
        if "top" in profile:
            kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in profile["kinds"].items())
            lines += ["", f"{name}: {profile['window_ms']:.2f} ms, idle {profile['idle_share']:.1%}; {kinds}", ""]
            lines += ["| share | calls | median µs | kernel |", "|---|---|---|---|"]
            lines += [
                f"| {one['share']:.1%} | {one['calls']:g} | {one['us']:.1f} | `{one['name'].replace('|', '/')}` |"
                for one in profile["top"]
            ]
    return "\n".join(lines) + "\n"


def _flat(figures: Any, name: str = "") -> Iterator[str]:
    if isinstance(figures, dict):
        for key, value in figures.items():
            if key not in ("profile", "said", "last_row"):
                yield from _flat(value, f"{name}.{key}" if name else key)
    elif isinstance(figures, list):
        if figures and isinstance(figures[0], dict):
            for number, value in enumerate(figures, 1):
                yield from _flat(value, f"{name}[{number}]")
        else:
            yield f"{name} {', '.join(_short(value) for value in figures)}"
    else:
        yield f"{name} {_short(figures)}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def _machine(device: str) -> Figures:
    import torch

    from ccf_plugin.runs.environment import describe_environment

    command = " ".join(["python", "tests/benchmarks/on_gpu.py", *sys.argv[1:]])
    found = describe_environment(torch.device(device), "bf16", [])
    found["command"] = command
    if device != "cpu":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = [
                "nvidia-smi",
                "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit",
                "--format=csv",
            ]
            found["nvidia_smi"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def _made_up(folder: Path, count: int, test: int) -> str:
    """The spec of random images of CIFAR-10's size."""
    import numpy as np

    generator = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", count), ("test", test)):
        arrays[f"x_{split}"] = generator.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(number) % 10
    np.savez(folder / "made_up.npz", **arrays)
    return f"npz:{folder / 'made_up.npz'}"


# Every study in small: that it runs through.
_SMALL_STUDY = [
    'model={name="narrow_preact_resnet18", options={width=2, blocks=[1, 1, 1, 1]}}',
    *("data.train_per_class=2", "data.test_limit=20", "evaluate.steps=1", "optim.epochs=2", "optim.batch_size=10"),
    *("evaluate.every=1", "probe.every=2", "attack.steps=1", "threads=1"),
]
_PACKING = 30  # seconds


def do_study(arguments: argparse.Namespace, data: str, folder: Path) -> int:
    """A slot of a study: join what an earlier one left, go on, and leave pieces in ``--out``; gives the exit code.

    Data and runs have the same names in each slot, which are part of what a run is: ``npz:cifar10.npz`` for
    ``--data npz:/any/where/cifar10.npz``, and ``runs/NAME``. At home ``ccf unpack OUT runs/NAME`` and
    ``ccf study NAME --set data.name=npz:cifar10.npz --set device=cuda --minutes 0 --page docs/results`` make its page.
    """
    kind, colon, place = data.partition(":")
    if colon:
        link = folder / Path(place).name
        if not link.exists():
            link.symlink_to(Path(place).resolve())
        data = f"{kind}:{link.name}"
    runs = f"runs/{Path(arguments.study).stem}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def ccf(*words: object) -> int:
        command = [sys.executable, "-m", "ccf_plugin", *map(str, words)]
        with subprocess.Popen(command, cwd=folder, env=environment) as process:
            signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # it saves its state, which is packed then
            return process.wait()

    if arguments.pieces is not None and (code := ccf("unpack", arguments.pieces.resolve(), runs)):
        return code
    minutes = max(0.1, arguments.minutes - _PACKING / 60)
    sets = [f"data.name={data}", f"device={arguments.device}", *(_SMALL_STUDY if arguments.small else [])]
    options = [word for one in sets for word in ("--set", one)]
    code = ccf("study", arguments.study, "--minutes", f"{minutes:g}", "--out", runs, *options)
    if not (folder / runs / "study.json").is_file():
        return code
    return ccf("pack", runs, arguments.out.resolve(), "--momentum", arguments.momentum) or code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="rows, separated by commas")
    parser.add_argument("--data", default="", help="npz:PATH or folder:PATH")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what is measured")
    parser.add_argument("--small", action="store_true", help="only to see that the rows work; so it is on a CPU")
    parser.add_argument("--study", default="", help="do this study of recipes/studies instead; --out gets its pieces")
    parser.add_argument("--pieces", type=Path, help="with --study: go on from what an earlier slot's --out got")
    parser.add_argument("--momentum", choices=("float32", "bfloat16", "none"), default="float32", help="see ccf pack")
    parser.add_argument("--row", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.small |= arguments.device == "cpu"
    rows = {row.name: row for row in ROWS}
    asked = [name for name in arguments.only.split(",") if name]
    if unknown := set(asked) - set(rows):
        parser.error(f"expected rows among {', '.join(rows)}, found {', '.join(sorted(unknown))}")
    arguments.out = arguments.out.resolve()  # a row's process has another working directory
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.row:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(arguments.device, arguments.data, Path(folder), arguments.small)
            try:
                run_row(rows[arguments.row], setting, arguments.out / f"{arguments.row}.json")
            finally:
                for log in Path(folder).glob("*.txt"):
                    shutil.copy(log, arguments.out)
        return
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("expected a CUDA device, which torch does not see here")
    with tempfile.TemporaryDirectory() as folder:
        count = (400, 40) if arguments.small else (50_000, 10_000)
        kind, colon, place = arguments.data.partition(":")
        data = f"{kind}:{Path(place).resolve()}" if colon and Path(place).exists() else arguments.data
        data = data or _made_up(Path(folder), *count)
        if arguments.study:
            sys.exit(do_study(arguments, data, Path(folder)))
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the row's process is ended too
        found = run_all([rows[name] for name in asked] or list(ROWS), arguments, data)
    print(table(found))


if __name__ == "__main__":
    main()
