"""The figure of ``ccf theory``: w₂, C and CAS along ε, and Theorem 2 along w₂/w₁."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ccf_plugin.drawing import new_figure
from ccf_plugin.theory.closed_forms import PAIRS, correlation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ccf_plugin.theory.study import Study

_COLOURS = ("C0", "C1")  # without and with label smoothing; in the last panel ε below and above ε₀


def draw(study: Study) -> Figure:
    """Lines are closed forms, dots are trained weights and the CAS that the probe measured."""
    figure = new_figure(14, 4.4)
    weights_ax, cas_ax, theorem_2_ax = figure.subplots(1, 3)
    _draw_along_eps(study, weights_ax, cas_ax)
    _draw_theorem_2(study, theorem_2_ax)
    model = study.model
    figure.suptitle(
        f"Synthetic data model, μ = {model.mu:g}, σ = {model.sigma:g}, λ = {model.lam:g}, K = {model.features}; "
        f"lines: closed form, dots: trained and probed on {study.samples} samples",
        fontsize=10,
    )
    return figure


def _draw_along_eps(study: Study, weights_ax: Axes, cas_ax: Axes) -> None:
    end = study.model.mu / 2
    along = np.linspace(0, end, 402)[1:-1]
    models = {"adversarial training": study.plain, f"label smoothing β = {study.model.beta:g}": study.model}
    for colour, threshold, (name, model) in zip(_COLOURS, ("ε₀", "ε₁"), models.items(), strict=True):
        optima = [model.optimal_weights(float(eps)) for eps in along]
        rows = [row for row in study.rows if row.beta == model.beta]
        suffix = f", β = {model.beta:g}" if model.beta else ""
        eps = [row.eps for row in rows]
        weights_ax.plot(along, [float(w[1, 0]) for w in optima], color=colour, label=f"w₂{suffix}")
        weights_ax.plot(along, [float(w[0, 0]) for w in optima], color=colour, ls=":", label=f"w₁{suffix}")
        weights_ax.plot(eps, [row.trained_w2 for row in rows], "o", ms=4, color=colour)
        weights_ax.plot(eps, [row.trained_w1 for row in rows], "o", ms=4, mfc="white", color=colour)
        cas_ax.plot(along, [correlation(w) for w in optima], color=colour, label=name)
        cas_ax.plot(eps, [row.probe_cas / PAIRS for row in rows], "o", ms=4, color=colour)
        if model.threshold < end:
            for ax in (weights_ax, cas_ax):
                ax.axvline(model.threshold, color=colour, ls="--", lw=1)
                ax.annotate(
                    f"{threshold} = {model.threshold:.3g}",
                    (model.threshold, 0.98),
                    xycoords=("data", "axes fraction"),
                    rotation=90,
                    ha="right",
                    va="top",
                    color=colour,
                )
    weights_ax.set(xlabel="ε", ylabel="weight", title="Weights that training reaches", xlim=(0, end))
    cas_ax.set(xlabel="ε", ylabel="C[i, j]", title="Cross-class correlation", xlim=(0, end), ylim=(-0.01, None))
    right = cas_ax.secondary_yaxis(
        "right", functions=(lambda c: np.multiply(c, PAIRS), lambda cas: np.divide(cas, PAIRS))
    )
    right.set_ylabel(f"CAS = {PAIRS} C")
    weights_ax.legend(fontsize=8, loc="lower left")
    cas_ax.legend(fontsize=8, loc="lower left")


def _draw_theorem_2(study: Study, ax: Axes) -> None:
    model = study.plain
    ratios = np.linspace(0, 1, 101)
    middle = model.threshold + (model.mu / 2 - model.threshold) / 2
    for colour, where, eps in zip(_COLOURS, ("< ε₀", "> ε₀"), (model.threshold / 2, middle), strict=True):
        rows = (torch.tensor([[1.0], [t]], dtype=torch.float64, device="cpu") for t in ratios)
        weights = [row.repeat(1, model.features) for row in rows]
        ax.plot(
            ratios,
            [model.pairwise_probability(w, eps) for w in weights],
            color=colour,
            ls=":",
            label=f"ε = {eps:.3g} {where}, one other class",
        )
        joint = [model.joint_probability(w, eps) for w in weights]
        ax.plot(ratios, joint, color=colour, label=f"ε = {eps:.3g} {where}, both other classes")
        ax.plot(ratios[np.argmax(joint)], max(joint), "v", color=colour, clip_on=False)
    ax.set(xlabel="w₂ / w₁", ylabel="robust probability", title="Theorem 2: pairwise and joint (▼ its maximum)")
    ax.set_xlim(0, 1)
    ax.legend(fontsize=8)
