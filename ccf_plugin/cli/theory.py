"""theory. Heavy imports happen inside the command, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccf_plugin.cli import options
from ccf_plugin.cli.console import open_console, print_json, print_written, progress_on, quiet_libraries
from ccf_plugin.cli.places import Place, endings_of
from ccf_plugin.errors import CCFError

if TYPE_CHECKING:
    from rich.console import Console

    from ccf_plugin.theory import Study


def theory(
    mu: Annotated[float, typer.Option(help="μ, the mean of a feature that the class has.")] = 1.0,
    sigma: Annotated[float, typer.Option(help="σ, its standard deviation; below sqrt(pi K) μ.")] = 0.6,
    lam: Annotated[float, typer.Option(help="λ, the weight decay.")] = 1.0,
    beta: Annotated[float, typer.Option(help="β, the label smoothing to compare with none; below 1/3.")] = 0.1,
    features: Annotated[int, typer.Option(help="K, features per class and per pair of classes (Appendix E.5).")] = 1,
    points: Annotated[int, typer.Option(help="Values of ε, evenly within (0, μ/2).")] = 12,
    samples: Annotated[int, typer.Option(help="Of the data, for each estimate and each training.")] = 60_000,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[
        Path | None, options.out_option("Where <out>.csv, .json and the picture go. Default: results/theory")
    ] = None,
    formats: options.Formats = None,
    force: options.Force = False,
    as_json: Annotated[bool, options.json_option("Print the JSON and nothing else.")] = False,
) -> None:
    """Run the paper's synthetic data model (Section 4): closed forms, Monte Carlo, adversarial training, the probe.

    Exit code 1 where they do not agree.
    """
    quiet_libraries()

    from ccf_plugin.measuring.provenance import with_command
    from ccf_plugin.theory import SyntheticModel, run_study
    from ccf_plugin.theory.study import parameters_of
    from ccf_plugin.theory.study_files import study_bytes

    endings = endings_of(formats, out)
    console = open_console(stderr=as_json)
    model = SyntheticModel(mu=mu, sigma=sigma, lam=lam, beta=beta, features=features)
    provenance = with_command(parameters_of(model, points=points, samples=samples, seed=seed))
    suffixes = (".json", ".csv", *endings)
    place = None if as_json and out is None else Place(out, "theory", provenance, suffixes, force=force)
    training = progress_on(console, "training", unit="setting")
    study = run_study(
        model,
        points=points,
        samples=samples,
        seed=seed,
        progress=lambda settings: training(settings, len(settings)),
    )
    written: list[Path] = []
    if place is not None:
        written = place.write(study_bytes(study, endings, {"provenance": provenance}))
    if as_json:
        print_json({**study.to_json(), "provenance": provenance})
    else:
        _print_study(console, study)
        print_written(console, written)
    if not study.agreement["agrees"]:
        raise CCFError(
            f"expected closed forms, sampling and training to agree, found that they do not: {_worst(study)}"
        )


def _worst(study: Study) -> str:
    """How far they are apart, in words."""
    agreement = study.agreement
    return (
        f"losses and robust probabilities within {agreement['standard_errors']:.1f} standard errors (at most 5 by "
        f"chance), trained weights within {agreement['weight_error']:.2g} (tolerance "
        f"{agreement['weight_tolerance']:.2g})"
    )


def _print_study(console: Console, study: Study) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("β", "ε", "w₁*", "w₂*", "w₂", "C*", "CAS*", "probed", "one", "both", box=SIMPLE)
    for row in study.rows:
        figures = (row.w1, row.w2, row.trained_w2, row.correlation, row.cas, row.probe_cas)
        table.add_row(
            f"{row.beta:g}",
            *(f"{value:.3f}" for value in (row.eps, *figures)),
            *(f"{value:.1%}" for value in (row.pairwise, row.joint)),
            end_section=row is study.rows[len(study.rows) // 2 - 1],
        )
    console.print(table)
    console.print("*: closed form; w₂ and probed (CAS): the trained model; one, both: robust against so many classes")
    model, agreement = study.model, study.agreement
    beyond = "" if model.threshold < model.mu / 2 else f", not below μ/2 = {model.mu / 2:g}: w₂ > 0 at every ε"
    console.print(
        f"ε₀ = {study.plain.threshold:.4f}, ε₁ = {model.threshold:.4f} (β = {model.beta:g}){beyond}", highlight=False
    )
    verdict = "agree" if agreement["agrees"] else "DO NOT AGREE"
    console.print(
        f"Closed forms, sampling and training {verdict}: losses and robust probabilities within "
        f"{agreement['standard_errors']:.1f} standard errors (each at most {agreement['largest_standard_error']:.1g}; "
        f"{study.samples} samples); trained weights within {agreement['weight_error']:.2g} "
        f"(tolerance {agreement['weight_tolerance']:.2g}); the probe's CAS within {agreement['cas_error']:.1g}.",
        highlight=False,
    )
