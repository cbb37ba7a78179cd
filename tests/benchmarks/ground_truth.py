"""Does CAS measure what it claims? Images whose classes share known parts, from none to all, and the CAS found.

    python tests/benchmarks/ground_truth.py --seeds 0 1 2 --out docs/pictures/cas_ground_truth.png
    python tests/benchmarks/ground_truth.py --added --seeds 0 1 2 --out docs/pictures/cas_added_parts.png

Six classes of 16×16 images. A class is five glyphs of 4×4 pixels; an image shows three of them, in three of its 16
cells, with noise. The dial says how many of a class's five glyphs it shares: with one other class (layout "pairs"; at 5
the two classes of a pair are the same), or each glyph with another of the five other classes (layout "spread"). There
classes also become harder to tell apart. With --added (layout "added") a class keeps four glyphs of its own, of which
each image shows three, and the dial says how many glyphs that a pair shares are shown beside them, in each image.

The network sees each cell by itself (a 4×4 convolution of stride 4, ReLU, the maximum over the cells, a linear head),
so that a feature can stand for a glyph and not for a whole class: what a head can share is what the images share.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe
from ccf_plugin.probe.attribution import (
    attribution,
    class_attribution_similarity,
    class_means,
    correlation_matrix,
)
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attacks import build_attack

RESULTS = Path(__file__).parent / "results"  # where the figures of each network go, by the picture's name
Layout = Literal["pairs", "spread", "added"]
Training = Literal["adversarial", "standard"]
CLASSES, PARTS, SHOWN, CELLS, SIDE = 6, 5, 3, 4, 4  # CELLS a side of the image, SIDE pixels a side of the cell
OWN = 4  # glyphs of a class's own in layout "added"
DIALS = tuple(range(PARTS + 1))
EPS, STEPS = 0.1, 3
ARMS: tuple[tuple[Layout, Training], ...] = (("pairs", "adversarial"), ("pairs", "standard"), ("spread", "adversarial"))
ADDED: tuple[tuple[Layout, Training], ...] = (("added", "adversarial"), ("added", "standard"))


@dataclass(frozen=True)
class Outcome:
    """One trained network. C is averaged over the pairs of classes that share parts and over those that do not.

    ``positive_cas`` is what CAS under attack would be if an attribution kept only what speaks for the class. Under
    attack ``taken_for_partner`` of the images are taken for the other class of their pair, ``taken_for_others`` for
    one of the other four.
    """

    layout: Layout
    training: Training
    seed: int
    dial: int
    clean_accuracy: float
    robust_accuracy: float
    cas: float
    clean_cas: float
    positive_cas: float
    shared: float | None
    unshared: float | None
    cas_null: float
    cas_excess: float
    taken_for_partner: float
    taken_for_others: float


def partners(layout: Layout) -> list[list[tuple[int, int]]]:
    """For each of the five parts, who shares it with whom once the dial has passed it: three pairs of classes."""
    if layout != "spread":
        return [[(0, 1), (2, 3), (4, 5)]] * PARTS
    rounds = []  # a round-robin tournament: each class meets each other class once
    for turn in range(CLASSES - 1):
        order = [0] + [1 + (turn + place) % (CLASSES - 1) for place in range(CLASSES - 1)]
        rounds.append([(order[place], order[-1 - place]) for place in range(CLASSES // 2)])
    return rounds


def parts_of_classes(layout: Layout, dial: int) -> Tensor:
    """Which glyphs make up each class, int64 (6, 5); in layout "added" its own four and then those that it shares."""
    if layout == "added":
        own = torch.arange(CLASSES * OWN).view(CLASSES, OWN)
        shared = CLASSES * OWN + torch.arange(CLASSES // 2 * dial).view(CLASSES // 2, dial)
        return torch.cat([own, shared.repeat_interleave(2, 0)], 1)
    parts: list[list[int]] = [[] for _ in range(CLASSES)]
    new = 0
    for number, pairs in enumerate(partners(layout)):
        for first, second in pairs:
            parts[first].append(new)
            new += number >= dial
            parts[second].append(new)
            new += 1
    return torch.tensor(parts)


def glyphs(generator: torch.Generator, number: int = CLASSES * PARTS) -> Tensor:
    """Glyphs of six bright pixels, no two with more than three in common, (number, 4, 4)."""
    found: list[Tensor] = []
    while len(found) < number:
        glyph = torch.zeros(SIDE * SIDE)
        glyph[torch.randperm(SIDE * SIDE, generator=generator)[:6]] = 1
        if all((glyph * other).sum() <= 3 for other in found):
            found.append(glyph)
    return torch.stack(found).view(-1, SIDE, SIDE)


def draw_images(
    count: int, parts: Tensor, shapes: Tensor, generator: torch.Generator, *, always: int = 0
) -> tuple[Tensor, Tensor]:
    """Images float (N, 1, 16, 16) in [0, 1] of the classes in turn, and labels.

    Three of a class's glyphs are shown, and beside them the last ``always`` of them, which are not among the three.
    """
    labels = torch.arange(count) % CLASSES
    some, all_of = parts[labels].split([parts.shape[1] - always, always], 1)
    chosen = some.gather(1, torch.rand(some.shape, generator=generator).argsort(1)[:, :SHOWN])
    chosen, shown = torch.cat([chosen, all_of], 1), SHOWN + always
    places = torch.rand(count, CELLS * CELLS, generator=generator).argsort(1)[:, :shown]
    contrast = 0.6 + 0.4 * torch.rand(count, shown, 1, 1, generator=generator)
    cells = torch.zeros(count, CELLS * CELLS, SIDE, SIDE)
    cells[torch.arange(count).unsqueeze(1), places] = shapes[chosen] * contrast
    images = cells.view(count, CELLS, CELLS, SIDE, SIDE).transpose(2, 3).reshape(count, 1, CELLS * SIDE, CELLS * SIDE)
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    return (0.1 + 0.8 * images + noise).clamp(0, 1), labels


def run(
    layout: Layout, training: Training, dial: int, seed: int, *, images: int = 1800, epochs: int = 8, tested: int = 600
) -> Outcome:
    """Train one network on one setting of the dial and measure it on new images, clean and under PGD-10."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    parts = parts_of_classes(layout, dial)
    shapes = glyphs(generator, CLASSES * OWN + CLASSES // 2 * PARTS) if layout == "added" else glyphs(generator)
    always = dial if layout == "added" else 0
    x, y = draw_images(images, parts, shapes, generator, always=always)
    network = nn.Sequential(
        nn.Conv2d(1, 64, SIDE, SIDE), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)
    )
    attack = build_attack(None, network, ThreatModel("Linf", EPS, 2 * EPS / STEPS, STEPS), num_classes=CLASSES)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    total = epochs * -(-images // 64)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(epochs):
        for rows in torch.randperm(images).split(64):
            batch = attack(x[rows], y[rows]) if training == "adversarial" else x[rows]
            optimizer.zero_grad()
            F.cross_entropy(network(batch), y[rows]).backward()
            optimizer.step()
            schedule.step()
    test = [draw_images(tested, parts, shapes, generator, always=always)]
    pgd_10 = build_attack(None, network, ThreatModel("Linf", EPS, EPS / 4, 10), num_classes=CLASSES)
    with CrossClassProbe(network) as probe:
        clean, attacked = probe.run(test), probe.run(test, pgd_10, seed=0)
    assert attacked.clean_accuracy is not None
    assert attacked.robust_accuracy is not None
    sharing = np.zeros((CLASSES, CLASSES), dtype=bool)
    for pairs in partners(layout)[:dial]:
        for first, second in pairs:
            sharing[first, second] = sharing[second, first] = True
    other = ~(sharing | np.eye(CLASSES, dtype=bool))
    confusion = attacked.confusion_adversarial
    assert confusion is not None
    partner = np.arange(CLASSES) ^ 1
    taken = confusion[range(CLASSES), partner].sum() / confusion.sum()
    return Outcome(
        layout=layout,
        training=training,
        seed=seed,
        dial=dial,
        clean_accuracy=attacked.clean_accuracy,
        robust_accuracy=attacked.robust_accuracy,
        cas=attacked.cas,
        clean_cas=clean.cas,
        positive_cas=positive_cas(network, pgd_10(*test[0]), test[0][1]),
        shared=float(attacked.matrix[sharing].mean()) if sharing.any() else None,
        unshared=float(attacked.matrix[other].mean()) if other.any() else None,
        cas_null=attacked.null.cas_mean,
        cas_excess=attacked.cas_excess,
        taken_for_partner=float(taken),
        taken_for_others=1 - attacked.robust_accuracy - float(taken),
    )


@torch.no_grad()
def positive_cas(network: nn.Sequential, images: Tensor, labels: Tensor) -> float:
    """CAS of max(A(x), 0) in place of A(x)."""
    weight = network[-1].weight
    for_class = attribution(network[:-1](images), weight, labels).clamp(min=0)
    sums = torch.zeros_like(weight).index_add(0, labels, for_class)
    means = class_means(sums, torch.bincount(labels, minlength=CLASSES))
    return float(class_attribution_similarity(correlation_matrix(means)))


def rank_correlation(outcomes: list[Outcome], *, clean: bool = False, figure: str = "cas") -> float:
    """Spearman's, between dial and CAS (under attack, or clean) or another figure, over the networks given."""
    found = [getattr(outcome, "clean_cas" if clean else figure) for outcome in outcomes]
    return float(spearmanr([outcome.dial for outcome in outcomes], found).statistic)


def table(outcomes: list[Outcome]) -> str:
    """Means (and ranges) over the seeds in Markdown, one row a dial, and each seed's rank correlation."""
    lines = []
    for layout, training in ARMS:
        own = [one for one in outcomes if (one.layout, one.training) == (layout, training)]
        lines += [
            f"\n{layout}, {training} training",
            "",
            "| shared parts | clean | RA | CAS | clean CAS | CAS of max(A, 0) | C shared | C not |",
        ]
        lines.append(f"|{'---|' * 8}")
        for dial in DIALS:
            here = [one for one in own if one.dial == dial]
            cells = [f"{statistics.mean(one.clean_accuracy for one in here):.1%}"]
            cells.append(f"{statistics.mean(one.robust_accuracy for one in here):.1%}")
            for field in ("cas", "clean_cas", "positive_cas"):
                values = [getattr(one, field) for one in here]
                cells.append(f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
            for means in ([one.shared for one in here], [one.unshared for one in here]):
                cells.append(f"{statistics.mean(v for v in means if v is not None):.2f}" if None not in means else "")
            lines.append(f"| {dial} of {PARTS} | {' | '.join(cells)} |")
        for name, clean in (("under attack", False), ("clean", True)):
            ranks = [
                rank_correlation([one for one in own if one.seed == s], clean=clean) for s in {o.seed for o in own}
            ]
            lines.append(f"rank correlation of dial and CAS {name}, each seed: {', '.join(f'{r:.2f}' for r in ranks)}")
    return "\n".join(lines)


def draw(outcomes: list[Outcome], path: Path) -> None:
    """The figure: what the images look like, and CAS against the dial, under attack and clean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    images_ax, attacked_ax, clean_ax = figure.subplots(1, 3)
    generator = torch.Generator().manual_seed(0)
    shapes = glyphs(generator)
    rows = []
    for dial in (0, 3, 5):
        images, _ = draw_images(CLASSES, parts_of_classes("pairs", dial), shapes, generator)
        rows.append(F.pad(images.squeeze(1), (1, 1, 1, 1), value=1.0).permute(1, 0, 2).flatten(1))
    images_ax.imshow(torch.cat(rows), cmap="gray", vmin=0, vmax=1)
    height = CELLS * SIDE + 2
    images_ax.set_xticks([(number + 0.5) * height for number in range(CLASSES)], [f"class {i}" for i in range(CLASSES)])
    images_ax.set_yticks([(number + 0.5) * height for number in range(3)], ["0", "3", "5 of 5\nshared"])
    images_ax.set_title("Training images (pairs 0-1, 2-3, 4-5 share)")
    for ax, field, name in ((attacked_ax, "cas", f"under PGD-10, eps {EPS}"), (clean_ax, "clean_cas", "clean images")):
        for number, (layout, training) in enumerate(ARMS):
            own = [one for one in outcomes if (one.layout, one.training) == (layout, training)]
            means = [statistics.mean(getattr(one, field) for one in own if one.dial == dial) for dial in DIALS]
            label = f"{training} training, " + ("shared in pairs" if layout == "pairs" else "each with another class")
            ax.plot([dial / PARTS for dial in DIALS], means, color=f"C{number}", label=label)
            places = [one.dial / PARTS for one in own]
            ax.plot(places, [getattr(one, field) for one in own], "o", ms=4, alpha=0.6, color=f"C{number}")
        ax.plot([0, 1], [0, CLASSES], ":", color="0.5", label="if all parts counted alike")
        ax.set(xlabel="share of a class's parts that is shared", ylabel="CAS", title=f"CAS, {name}", ylim=(-0.2, 6.3))
    figure.legend(*clean_ax.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=len(ARMS) + 1)
    figure.savefig(path, dpi=110)


FOLLOWED = ("cas", "cas_null", "cas_excess", "shared", "robust_accuracy", "taken_for_partner", "taken_for_others")


def table_of_added(outcomes: list[Outcome]) -> str:
    """Means (and ranges) over the seeds in Markdown, one row a dial, and each figure's rank correlations with it."""
    lines = []
    for _, training in ADDED:
        own = [one for one in outcomes if one.training == training]
        lines += [f"\n{training} training", "", f"| parts added | {' | '.join(FOLLOWED)} |", f"|{'---|' * 8}"]
        for dial in DIALS:
            cells = []
            for name in FOLLOWED:
                values = [getattr(one, name) for one in own if one.dial == dial]
                known = [value for value in values if value is not None]
                if known:
                    low, high = min(known), max(known)
                    cells.append(f"{statistics.mean(known):.3f} ({low:.3f} to {high:.3f})")
                else:
                    cells.append("")
            lines.append(f"| {dial} | {' | '.join(cells)} |")
        for name in ("cas", "cas_excess", "taken_for_partner", "robust_accuracy"):
            seeds = sorted({one.seed for one in own})
            ranks = [rank_correlation([one for one in own if one.seed == seed], figure=name) for seed in seeds]
            lines.append(f"rank correlation of the dial and {name}, each seed: {', '.join(f'{r:.2f}' for r in ranks)}")
    return "\n".join(lines)


def draw_added(outcomes: list[Outcome], path: Path) -> None:
    """CAS, CAS beyond chance, and what is taken for what against the number of parts that were added."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {"cas": "CAS", "cas_excess": "CAS beyond chance", "robust_accuracy": "RA", "taken_for_partner": ""}
    axes = dict(zip(panels, figure.subplots(1, 4), strict=True))
    for name, ax in axes.items():
        for number, (_, training) in enumerate(ADDED):
            own = [one for one in outcomes if one.training == training]
            means = [statistics.mean(getattr(one, name) for one in own if one.dial == dial) for dial in DIALS]
            ax.plot(DIALS, means, color=f"C{number}", label=f"{training} training")
            ax.plot([one.dial for one in own], [getattr(one, name) for one in own], "o", ms=4, color=f"C{number}")
        ax.set(xlabel="glyphs that a pair of classes shares", title=panels[name] or "taken for the partner")
    axes["robust_accuracy"].set_ylim(0, 1)
    axes["taken_for_partner"].set_ylim(bottom=0)
    axes["cas"].legend(fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--added", action="store_true", help='layout "added" alone')
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("cas_ground_truth.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = []
    for layout, training in ADDED if arguments.added else ARMS:
        for seed in arguments.seeds:
            outcomes += [run(layout, training, dial, seed) for dial in DIALS]
    (RESULTS / f"{arguments.out.stem}.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    (draw_added if arguments.added else draw)(outcomes, arguments.out)
    print((table_of_added if arguments.added else table)(outcomes))


if __name__ == "__main__":
    main()
