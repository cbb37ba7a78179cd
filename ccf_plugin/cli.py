"""The command line: parse, call, print. Heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ccf_plugin.errors import CCFError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ccf_plugin.probe.result import CrossClassResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Cross-class features of classifiers: train adversarially, probe any model.",
)


def main() -> NoReturn:
    """Run ``ccf``. What goes wrong becomes one line on standard error and an exit code: 2 for input, 1 for the rest."""
    try:
        sys.exit(app(standalone_mode=False))
    except CCFError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        resumable = "; continue after the last finished epoch with --resume" if sys.argv[1:2] == ["train"] else ""
        _fail(f"interrupted{resumable}", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `ccf … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}", 1)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # of click's errors, wherever this typer keeps its click
        if usage is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "ccf")
        _fail(f"{usage().rstrip('.')}; see {command} --help", 2)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (see `ccf recipes`).")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe: optim.epochs=20."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<recipe's name>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in the folder.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set where it is missing.")] = False,
) -> None:
    """Train by RECIPE, measuring RA and CAS as it goes."""
    _quiet_libraries()
    from rich.console import Console

    from ccf_plugin.training.loop import train as run_training
    from ccf_plugin.training.progress import ProgressReporter, closing_table
    from ccf_plugin.training.recipe_files import load_recipe

    if resume and force:
        raise InputError("expected --resume or --force, found both; --force starts anew")
    console = Console()
    loaded = load_recipe(recipe, overrides or [])
    with ProgressReporter(console) as reporter:
        run = run_training(
            loaded,
            out or Path("runs") / Path(recipe).stem,
            reporter,
            resume=resume,
            force=force,
            download=download,
        )
    console.print(closing_table(run))
    console.print(
        f"Log {run.folder / 'log.csv'}, matrices {run.folder / 'probe'}, weights {run.folder / 'best.safetensors'}",
        soft_wrap=True,
    )


@app.command()
def probe(
    model: Annotated[
        str,
        typer.Argument(
            help="robustbench:[dataset/threat/]Name, timm:name, a run folder, a checkpoint of one, "
            "or python:package.module:factory with --checkpoint."
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="digits, cifar10, cifar100, folder:PATH or npz:PATH. Default: the model's own.")
    ] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Measure clean images; no attack.")] = False,
    attack: Annotated[
        str | None, typer.Option(help="A torchattacks class. Default: PGD or PGDL2, by the norm.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Linf or L2. Default: the benchmark's or run's, else Linf.")] = None,
    eps: Annotated[
        str | None,
        typer.Option(help="Radius in [0, 1] pixel units, as in 8/255. Default: as for the norm."),
    ] = None,
    step_size: Annotated[str | None, typer.Option(help="Default: eps/4 (Linf), eps/8 (L2).")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the attack. Default: 20, or the run's own.")] = None,
    instances: Annotated[bool, typer.Option("--instances", help="Measure I-CAS too.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only so many test images, evenly over the classes.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per pass.")] = 250,
    head: Annotated[str | None, typer.Option(help="The layer to measure, where it cannot be found.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights for a python: model.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Published weights, or random ones.")] = True,
    precision: Annotated[str, typer.Option(help="Of the attack's passes: float32, bf16 or auto.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the attack's random start.")] = 0,
    model_dir: Annotated[Path, typer.Option(help="Where RobustBench's weights lie.")] = Path("models"),
    data_root: Annotated[Path, typer.Option(help="Where torchvision's data sets lie.")] = Path("data"),
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set where it is missing.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write <out>.npz, .json and .png. Default: results/<model>-<attack or clean>."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result's JSON and nothing else.")] = False,
) -> None:
    """Measure the cross-class features of MODEL on adversarial examples of the data's test split."""
    _quiet_libraries()
    from rich.console import Console
    from rich.progress import track

    from ccf_plugin.measure.evaluate import measure
    from ccf_plugin.zoo.attacks import attack_class
    from ccf_plugin.zoo.datasets import check_spec, load_data
    from ccf_plugin.zoo.models import load_model
    from ccf_plugin.zoo.precision import resolve_device, resolve_precision
    from ccf_plugin.zoo.threat import threat_model

    if limit is not None and limit < 1:
        raise InputError(f"--limit: expected at least 1, found {limit}")
    if clean and (attack or norm or eps or step_size or steps):
        raise InputError("expected --clean, or an attack's options, found both; leave one out")
    on = resolve_device(device)
    chosen_precision = resolve_precision(precision, on)  # type: ignore[arg-type]
    if data is not None:
        check_spec(data)
    if attack is not None:
        attack_class(attack)
    threat_model(norm=norm or "Linf", eps=eps, step_size=step_size, steps=steps or 20)  # before anything is downloaded
    loaded = load_model(model, pretrained=pretrained, checkpoint=checkpoint, model_dir=model_dir)
    own = loaded.threat if norm in (None, loaded.threat["norm"]) and not clean else {}
    options = {"norm": norm, "eps": eps, "step_size": step_size, "steps": steps}
    given = {key: value for key, value in options.items() if value is not None}
    if eps is not None:  # a step size belongs to its radius
        own = {key: value for key, value in own.items() if key != "step_size"}
    threat = None if clean else threat_model(**(own | given))
    if data is None and loaded.data is None:
        raise InputError(f"expected --data for {model}, found none that it belongs to; see ccf probe --help")
    images = load_data(
        data or loaded.data or "",
        splits=("test",),
        root=data_root,
        download=download,
        preprocess=loaded.preprocess,
        test_limit=loaded.test_limit if limit is None and data is None else limit,
    )
    if images.test is None:
        raise InputError(f"expected a test split in {images.name}, found none")
    if loaded.num_classes is not None and loaded.num_classes != len(images.classes):
        raise InputError(
            f"expected data of {loaded.num_classes} classes for {model}, found {len(images.classes)} in {images.name}; "
            "choose --data to match"
        )
    if loaded.class_names is not None and images.classes != loaded.class_names and not images.classes[0].isdigit():
        raise InputError(
            f"expected data of the classes {', '.join(loaded.class_names[:3])}, …, found "
            f"{', '.join(images.classes[:3])}, …: their order must be the model's"
        )
    described = "clean" if threat is None else f"{attack or 'PGD'}{threat.steps}-{threat.norm}-{threat.eps:.4g}"
    stem = out or Path("results") / f"{loaded.name}-{described}"
    if stem.suffix in (".npz", ".json", ".png"):
        stem = stem.with_suffix("")
    console = Console(stderr=as_json)
    result = measure(
        loaded.model.to(on),
        images.test,
        threat,
        classes=loaded.class_names or images.classes,
        model_name=loaded.spec,
        data_name=images.name,
        attack_name=attack,
        batch_size=batch_size,
        instances=instances,
        head=head,
        seed=seed,
        precision=chosen_precision,
        progress=lambda batches, total: track(
            batches, "measuring", total=total, console=console, transient=True, disable=not console.is_terminal
        ),
    )
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [*result.save(stem), result.save_picture(stem.with_name(stem.name + ".png"))]
    if as_json:
        print(json.dumps(result.to_json(), allow_nan=False))  # noqa: T201
        return
    _print_result(console, result)
    console.print("Wrote " + ", ".join(str(path) for path in written), highlight=False, soft_wrap=True)


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE,VALUE…", help="As in attack.eps=2/255,4/255.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key in all runs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the runs' folders go. Default: runs/<recipe's name>.")] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the runs' commands instead, one a line.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set where it is missing.")] = False,
) -> None:
    """Train by RECIPE once for each combination of values; what is finished is skipped, what is begun is resumed."""
    _quiet_libraries()
    from rich.console import Console

    from ccf_plugin.training.sweep import command_of, plan_sweep

    common = overrides or []
    points = plan_sweep(recipe, settings, common, out or Path("runs") / Path(recipe).stem)
    if print_only:
        for point in points:
            print(command_of(point, recipe, common))  # noqa: T201
        return
    from ccf_plugin.training.loop import train as run_training
    from ccf_plugin.training.progress import ProgressReporter, sweep_table

    console = Console()
    for point in points:
        if point.is_finished:
            console.print(f"{point.name}: finished already in {point.folder}", highlight=False, soft_wrap=True)
            continue
        with ProgressReporter(console) as reporter:
            run_training(point.recipe, point.folder, reporter, resume=point.epochs_done > 0, download=download)
    console.print(sweep_table({point.name: point.run for point in points}))


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from rich.console import Console
    from rich.table import Table

    from ccf_plugin.training.recipe_files import describe_recipe, shipped_recipes

    table = Table("recipe", "what it is", box=None)
    for name, path in shipped_recipes().items():
        table.add_row(name, describe_recipe(path))
    Console().print(table)


def _print_result(console: Console, result: CrossClassResult) -> None:
    from rich.table import Table

    head = result.head
    threat = result.threat
    table = Table(show_header=False)
    table.add_row("model", result.model)
    if result.data is not None:
        table.add_row("data", f"{result.data['count']} {result.data['split']} images of {result.data['name']}")
    if head is not None:
        table.add_row("head", f"{head.name} ({head.kind}), {head.classes} classes × {head.features} features")
    if threat is None:
        table.add_row("attack", "none (clean images)")
    else:
        table.add_row(
            "attack",
            f"{threat['attack']}-{threat['steps']}, {threat['norm']}, eps {_pixels(threat['eps'])}, "
            f"step {_pixels(threat['step_size'])}, seed {threat['seed']}, {threat['precision']}",
        )
    if result.clean_accuracy is not None:
        table.add_row("clean accuracy", f"{result.clean_accuracy:.1%}")
    if result.robust_accuracy is not None and threat is not None:
        table.add_row(f"RA ({threat['attack']}-{threat['steps']})", f"{result.robust_accuracy:.1%}")
    present = len(result.matrix) - len(result.missing_classes)
    table.add_row("CAS", f"{result.cas:.2f} of {present * (present - 1)}")
    if result.instance_cas is not None:
        table.add_row("I-CAS", f"{result.instance_cas:.2f}")
    table.add_row("strongest pairs", "\n".join(f"{a} – {b}  {value:.2f}" for a, b, value in result.top_pairs()))
    if result.missing_classes:
        table.add_row("left out", f"no samples of {', '.join(result.missing_classes)}: NaN in C, not in CAS")
    console.print(table)


def _pixels(value: float | None) -> str:
    return "none" if value is None else f"{value * 255:.4g}/255"


def _quiet_libraries() -> None:
    """Warnings that a user can do nothing about stay out of the way; the package's own are shown in one line."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", module=r"ccf_plugin\..*")
    warnings.showwarning = lambda message, *_, **__: print(f"ccf: note: {message}", file=sys.stderr)  # noqa: T201


def _fail(message: str, exit_code: int) -> NoReturn:
    for line in message.splitlines():  # several only where a recipe has several faults
        print(f"ccf: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_code)
