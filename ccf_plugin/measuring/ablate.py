"""Does a model use the features that two classes share? They are replaced by their means, and margins are measured.

If it does, a pair loses its margin against the other classes when its shared features go, and keeps the margin between
the two; features of one class alone do the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccf_plugin.engine.memory import batch_size_errors
from ccf_plugin.engine.modes import evaluation_mode, seeded
from ccf_plugin.errors import Fault, InputError, check_at_least
from ccf_plugin.measuring.ablation_result import (
    KINDS,
    MARGINS,
    MATCHED,
    RANDOM,
    SHARED,
    SPECIFIC,
    Ablation,
    Dose,
    Figures,
    Pair,
    PairAblation,
    Removal,
    holm,
    wilcoxon,
)
from ccf_plugin.measuring.evaluate import Progress, find_head
from ccf_plugin.measuring.subject import Subject
from ccf_plugin.probe import CrossClassProbe, CrossClassResult
from ccf_plugin.probe.ablation import AblationLayer, ablated_logits
from ccf_plugin.probe.classes import class_index, top_pairs

_DOSES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times m
_DRAWS = 10  # of random features, whose effect is averaged
_DRAWS_OF_DOSES = 3
_MOST_PAIRS = 5_000  # ImageNet has half a million
_MOST_PAIRS_OF_DOSES = 500


def ablate(
    subject: Subject,
    *,
    count: int | None = None,
    pairs: Sequence[tuple[str | int, str | int]] = (),
    strongest: int = 3,
    seed: int = 0,
    progress: Callable[[str], Progress] = lambda _: lambda batches, _: batches,
) -> Ablation:
    """Remove the features that each pair of classes shares, and others to compare with, and measure what is lost.

    A removed feature has its mean over the clean images instead, in a layer before the head, which an attack sees. All
    is chosen on the clean images. For a pair i, j with class attributions A and  = A / |A|, m features each:

    - shared: those that carry most of C[i, j], Â_i[k] Â_j[k] (``CrossClassResult.shared_features``);
    - specific: of the others those with the largest max(Â_i[k], Â_j[k]);
    - matched: for each shared one, largest share first, the free other one of the nearest mass |A_i[k]| + |A_j[k]|;
    - random: others, the mean of ten draws (under attack: the first).

    Clean images are measured once, for all pairs; under attack the model runs again, for a few.

    Args:
        count: m; None: a twentieth of the features.
        pairs: those to attack too, by names or indices.
        strongest: where ``pairs`` is empty, the number of pairs with the largest C[i, j] to attack.
        seed: of the random features.
        progress: told what is done, gives what wraps the batches.

    Raises:
        InputError: fewer than three classes, ``count`` outside 1 to n // 2, an unknown class, a pair without images;
            a head that is not one layer on one feature vector (`AblationLayer`); as ``Subject.measure``.
    """
    classes = subject.data.classes
    check_at_least(0, strongest=strongest)
    check_at_least(1, count=count)
    if len(classes) < 3:
        raise InputError(Fault("", "three classes or more", str(len(classes)), "a pair needs others to stand against"))
    chosen = [_pair(classes, pair) for pair in pairs]
    clean = _measure_clean(subject, progress("measuring clean images"))
    size = len(clean.by_feature)
    count = max(1, size // 20) if count is None else count
    if not count <= size // 2:
        raise InputError(Fault("count", f"at most half of the head's {size} features", str(count)))
    ranked = top_pairs(clean.result.matrix, len(classes) ** 2, above=-np.inf)
    if not ranked:
        raise InputError(Fault("", "two classes with images or more", "fewer", "raise {limit}"))
    for pair in set(chosen) - set(ranked):
        named = " or ".join(classes[index] for index in pair)
        raise InputError(Fault("pairs", "classes with an attribution", f"that {named} has none", "take others"))
    measured = [ranked[place] for place in _spread(len(ranked), _MOST_PAIRS)]
    outcomes = [clean.remove(pair, count, seed) for pair in progress("removing features")(measured, len(measured))]
    doses = _doses(clean, [measured[place] for place in _spread(len(measured), _MOST_PAIRS_OF_DOSES)], count, seed)
    to_attack = [] if subject.attack is None else chosen or ranked[:strongest]
    attacked = [_remove_under_attack(subject, clean, pair, count, seed, progress) for pair in to_attack]
    threat = subject.describe_attack() if attacked else None
    return Ablation(
        model=subject.loaded.spec,
        data=subject.data.describe(),
        classes=classes,
        head=clean.layer.name,
        features=size,
        count=count,
        pairs=tuple(_tested(outcomes, clean.result)),
        doses=doses,
        left_out=len(ranked) - len(measured),
        attacked=tuple(_tested(attacked, clean.result)),
        threat=None if threat is None or subject.attack is None else {**threat, "seed": subject.attack.seed},
        versions=dict(clean.result.versions),
    )


class Margins(NamedTuple):
    """The two margins of each image of a pair, (N,) float64 each; see `Figures`."""

    rest: NDArray[np.float64]
    between: NDArray[np.float64]

    def figures(self) -> Figures:
        rest, between = self.rest > 0, self.between > 0
        means = (self.rest, self.between, rest, between, rest & between)
        return Figures(*(float(np.mean(values)) for values in means))


class _Outcome(NamedTuple):
    """A pair before the tests: the margins of the intact model, and of each kind what is removed and left.

    Several draws of random features have the mean of their margins and figures.
    """

    pair: Pair
    intact: Margins
    removed: dict[str, tuple[list[list[int]], list[Margins]]]


def margins(logits: Tensor, labels: Tensor, pair: Pair) -> Margins:
    """The margins of images of a pair's classes: logits (N, K), K ≥ 3, and labels (N,)."""
    i, j = pair
    others = torch.ones(logits.shape[1], dtype=torch.bool, device="cpu")
    others[[i, j]] = False
    pair_logits, is_first = logits[:, [i, j]], labels == i
    between = torch.where(is_first, pair_logits[:, 0] - pair_logits[:, 1], pair_logits[:, 1] - pair_logits[:, 0])
    rest = pair_logits.amax(1) - logits[:, others].amax(1)
    return Margins(rest.double().numpy(), between.double().numpy())


def choose(result: CrossClassResult, pair: Pair, count: int, seed: int) -> dict[str, list[list[int]]]:
    """The features to remove, by kind (see ``ablate``): one list of ``count``, or several draws of random ones."""
    vectors = result.class_attribution[list(pair)]
    units = vectors / result.lengths[list(pair), None]
    shared = [feature for feature, _ in result.shared_features(*pair, count=count)]
    free = np.ones(vectors.shape[1], dtype=bool)
    free[shared] = False
    others = np.flatnonzero(free)
    specific = others[np.argsort(-units.max(0)[others], kind="stable")[:count]]
    mass, matched = _mass(vectors), []
    for feature in shared:
        distance = np.where(free, np.abs(mass - mass[feature]), np.inf)
        matched.append(int(distance.argmin()))
        free[matched[-1]] = False
    generator = np.random.default_rng([seed, *pair])
    draws = [generator.choice(others, count, replace=False).tolist() for _ in range(_DRAWS)]
    return {SHARED: [shared], SPECIFIC: [specific.tolist()], MATCHED: [matched], RANDOM: draws}


class _Clean(NamedTuple):
    """The clean images as the head sees them, on the host, float64."""

    layer: AblationLayer
    result: CrossClassResult
    by_feature: Tensor  # g of all images, (n, N): so that those of one feature lie together
    logits: Tensor  # (N, K)
    weight: Tensor  # (K, n)
    means: Tensor  # (n,)
    labels: Tensor  # (N,)

    def rows(self, pair: Pair) -> Tensor:
        """The images of a pair's classes."""
        return torch.nonzero((self.labels == pair[0]) | (self.labels == pair[1])).squeeze(1)

    def remove(self, pair: Pair, count: int, seed: int, *, draws: int = _DRAWS) -> _Outcome:
        """A pair's margins without ``count`` features of each kind; random features in ``draws`` draws."""
        rows = self.rows(pair)
        logits, features, labels = self.logits[rows], self.by_feature[:, rows].T, self.labels[rows]

        def without(columns: list[int]) -> Margins:
            return margins(ablated_logits(logits, features, self.weight, columns, self.means), labels, pair)

        chosen = choose(self.result, pair, count, seed)
        sets = {kind: columns[:draws] for kind, columns in chosen.items()}
        removed = {kind: (columns, [without(draw) for draw in columns]) for kind, columns in sets.items()}
        return _Outcome(pair, margins(logits, labels, pair), removed)


def _measure_clean(subject: Subject, progress: Progress) -> _Clean:
    """One pass over the clean images: C, and what the head reads."""
    model, options, split = subject.loaded.model, subject.probe, subject.data.split
    first = next(iter(split.subset(slice(0, 16)).batches(16, subject.device)))[0]
    features, logits = [], []
    with CrossClassProbe(model, head=options.head, output=options.output) as probe:
        find_head(probe, tuple(split.images.shape[1:]), subject.loaded.spec, len(subject.data.classes))
    layer = AblationLayer(model, first, head=options.head, output=options.output)
    with CrossClassProbe(
        model, head=options.head, output=options.output, inputs="clean", class_names=subject.data.classes
    ) as probe:
        with batch_size_errors("batch_size", subject.batch_size), evaluation_mode(model), torch.no_grad():
            batches = split.batches(subject.batch_size, subject.device)
            for images, labels in subject.with_warning(progress(batches, split.count_batches(subject.batch_size))):
                logits.append(_logits(subject, images))
                features.append(probe.features().cpu())
                probe.update(labels)
        result = probe.compute()
    by_feature = torch.cat(features).T.double().contiguous()
    weight, means = layer.weight.cpu().double(), by_feature.mean(1)
    return _Clean(layer, result, by_feature, torch.cat(logits), weight, means, split.labels)


def _remove_under_attack(
    subject: Subject, clean: _Clean, pair: Pair, count: int, seed: int, progress: Callable[[str], Progress]
) -> _Outcome:
    """The pair's margins under attack; the attack sees the model without the features."""
    part = subject.data.split.subset(clean.rows(pair))
    names = " – ".join(subject.data.classes[index] for index in pair)

    def without(columns: list[int], label: str) -> Margins:
        with clean.layer.replacing(columns, clean.means):
            attack, logits = subject.build_attack(), []
            assert attack is not None and subject.attack is not None  # noqa: PT018, S101  (asked for by ``ablate``)
            batches = part.batches(subject.batch_size, subject.device)
            shown = progress(f"attacking {names}, {label}")(batches, part.count_batches(subject.batch_size))
            with (
                batch_size_errors("batch_size", subject.batch_size),
                evaluation_mode(subject.loaded.model),
                seeded(subject.attack.seed, subject.device),
            ):
                for images, labels in shown:
                    adversarial = attack(images, labels)
                    with torch.no_grad():
                        logits.append(_logits(subject, adversarial))
        return margins(torch.cat(logits), part.labels, pair)

    intact = without([], "intact")
    chosen = {kind: draws[:1] for kind, draws in choose(clean.result, pair, count, seed).items()}
    removed = {kind: (draws, [without(draws[0], f"without {kind} features")]) for kind, draws in chosen.items()}
    return _Outcome(pair, intact, removed)


def _tested(outcomes: list[_Outcome], result: CrossClassResult) -> list[PairAblation]:
    """The outcomes with their tests, corrected together."""
    tests: dict[tuple[Pair, str, str], float] = {}
    for pair, _, removed in outcomes:
        left = {kind: _mean_margins(draws) for kind, (_, draws) in removed.items()}
        for kind in KINDS[1:]:
            for name in MARGINS:
                tests[pair, kind, name] = wilcoxon(getattr(left[SHARED], name) - getattr(left[kind], name))
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
    ablations = []
    for pair, intact, removed in outcomes:
        mass, before = _mass(result.class_attribution[list(pair)]), intact.figures()
        removals = {
            kind: Removal(
                features=tuple(draws[0]) if kind != RANDOM else (),
                mass=float(np.mean([mass[columns].sum() for columns in draws])),
                change=_mean_figures(left).minus(before),
                p={name: corrected[pair, kind, name] for name in MARGINS if kind != SHARED},
            )
            for kind, (draws, left) in removed.items()
        }
        ablations.append(PairAblation(pair, float(result.matrix[pair]), len(intact.rest), before, removals))
    return ablations


def _doses(clean: _Clean, pairs: list[Pair], count: int, seed: int) -> tuple[Dose, ...]:
    doses = sorted({min(max(1, round(count * times)), len(clean.by_feature) // 2) for times in _DOSES})
    results = []
    for dose in doses:
        changes: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
        for pair in pairs:
            outcome = clean.remove(pair, dose, seed, draws=_DRAWS_OF_DOSES)
            for kind, (_, left) in outcome.removed.items():
                changes[kind].append(_mean_figures(left).minus(outcome.intact.figures()))
        means = [{k: float(np.mean([getattr(c, name) for c in changes[k]])) for k in KINDS} for name in MARGINS]
        results.append(Dose(dose, *means))
    return tuple(results)


def _mean_margins(draws: list[Margins]) -> Margins:
    return Margins(*(np.mean([getattr(draw, name) for draw in draws], axis=0) for name in MARGINS))


def _mean_figures(draws: list[Margins]) -> Figures:
    return Figures(*np.mean([list(vars(draw.figures()).values()) for draw in draws], axis=0).tolist())


def _mass(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.abs(vectors).sum(0))


def _pair(classes: Sequence[str], names: tuple[str | int, str | int]) -> Pair:
    first, second = sorted(class_index(classes, name, key="pairs") for name in names)
    if first == second:
        raise InputError(Fault("pairs", "two classes", f"{classes[first]} twice"))
    return first, second


def _spread(total: int, most: int) -> list[int]:
    """At most ``most`` places of 0..total-1, evenly spaced."""
    return sorted({round(place) for place in np.linspace(0, total - 1, min(total, most))})


def _logits(subject: Subject, images: Tensor) -> Tensor:
    logits: Tensor = subject.forward()(images)
    return logits.double().cpu()
