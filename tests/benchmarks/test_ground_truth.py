"""CAS rises with the parts that classes are known to share: the evidence that it measures what it claims."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from . import ground_truth as truth


@pytest.mark.parametrize("layout", ["pairs", "spread"])
@pytest.mark.parametrize("dial", truth.DIALS)
def test_the_classes_share_what_the_dial_says(layout: truth.Layout, dial: int) -> None:
    parts = [set(row.tolist()) for row in truth.parts_of_classes(layout, dial)]
    assert all(len(own) == truth.PARTS for own in parts)
    shared = [[len(a & b) for b in parts if b is not a] for a in parts]
    expected = {"pairs": [0, 0, 0, 0, dial], "spread": [0] * (truth.PARTS - dial) + [1] * dial}
    assert all(sorted(counts) == expected[layout] for counts in shared)
    assert len(set.union(*parts)) == 30 - 3 * dial


def test_an_image_shows_three_glyphs_of_its_class_in_whole_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes, parts = truth.glyphs(generator), truth.parts_of_classes("pairs", 2)
    images, labels = truth.draw_images(12, parts, shapes, generator)
    assert images.shape == (12, 1, 16, 16)
    assert images.min() >= 0
    assert images.max() <= 1
    for image, label in zip(images, labels, strict=True):
        cells = image.view(4, 4, 4, 4).transpose(1, 2).reshape(16, 4, 4)
        inked = cells[cells.flatten(1).amax(1) > 0.5]
        assert len(inked) == truth.SHOWN
        seen = {int((shapes * (cell > 0.4)).sum((1, 2)).argmax()) for cell in inked}
        assert len(seen) == truth.SHOWN
        assert seen <= set(parts[label].tolist())


def test_cas_rises_with_the_dial() -> None:
    """A short version: a third of the training."""
    outcomes = [truth.run("pairs", "adversarial", dial, 0, images=1200, epochs=4, tested=300) for dial in (0, 3, 5)]
    assert truth.rank_correlation(outcomes) == 1
    assert truth.rank_correlation(outcomes, clean=True) == 1
    assert outcomes[0].robust_accuracy > 0.9  # a network that learned its task
    assert outcomes[0].cas < 1.5  # of at most 6 that sharing alone explains
    assert outcomes[-1].cas > 4


@pytest.mark.parametrize("dial", [0, 2, 5])
def test_parts_are_added_to_three_of_four_of_a_classes_own(dial: int) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = truth.parts_of_classes("added", dial)
    owned, shared = (set(part.flatten().tolist()) for part in (parts[:, :4], parts[:, 4:]))
    assert len(owned) == 24
    assert len(shared) == 3 * dial
    assert not owned & shared
    for first in (0, 2, 4):
        assert parts[first, 4:].tolist() == parts[first + 1, 4:].tolist()
    shapes = truth.glyphs(generator, 39)
    images, labels = truth.draw_images(12, parts, shapes, generator, always=dial)
    for image, label in zip(images, labels, strict=True):
        cells = image.view(4, 4, 4, 4).transpose(1, 2).reshape(16, 4, 4)
        shown = {int((shapes * (cell > 0.4)).sum((1, 2)).argmax()) for cell in cells if cell.max() > 0.5}
        assert len(shown) == 3 + dial
        assert set(parts[label, 4:].tolist()) <= shown <= set(parts[label].tolist())


def _written(name: str) -> list[truth.Outcome]:
    return [truth.Outcome(**one) for one in json.loads((truth.RESULTS / f"{name}.json").read_text(encoding="utf-8"))]


def test_cas_follows_parts_shared_in_pairs_alone() -> None:
    """What the committed networks say: docs/results/ground-truth.md."""
    outcomes = _written("cas_ground_truth")

    def of_arm(layout: str, training: str, seed: int) -> list[truth.Outcome]:
        return [one for one in outcomes if (one.layout, one.training, one.seed) == (layout, training, seed)]

    for seed in (0, 1, 2):
        assert truth.rank_correlation(of_arm("pairs", "adversarial", seed)) > 0.94
        assert truth.rank_correlation(of_arm("pairs", "standard", seed)) > 0.94
        assert truth.rank_correlation(of_arm("spread", "adversarial", seed)) < 0.3
        assert max(one.cas for one in of_arm("spread", "adversarial", seed)) < 1
    cas = [np.mean([of_arm("pairs", "adversarial", seed)[dial].cas for seed in (0, 1, 2)]) for dial in truth.DIALS]
    assert np.round(cas, 1).tolist() == [0.2, 0.2, 1.3, 3.2, 5.0, 5.9]


def test_cas_follows_added_parts_where_accuracy_stays() -> None:
    """What the committed networks say: docs/results/ground-truth.md."""
    outcomes = _written("cas_added_parts")
    for seed in (0, 1, 2):
        adversarial, standard = (
            [one for one in outcomes if (one.seed, one.training) == (seed, training)]
            for training in ("adversarial", "standard")
        )
        assert truth.rank_correlation(adversarial) == 1
        assert truth.rank_correlation(adversarial, figure="cas_excess") == 1
        assert min(one.robust_accuracy for one in adversarial if one.dial < 5) > 0.96
        assert adversarial[-1].cas - adversarial[0].cas > 3
        assert standard[-1].taken_for_partner > 0.2
        assert standard[-1].cas - standard[0].cas < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cas_and_c_follow_the_parts_at_full_training(seed: int) -> None:
    outcomes = [truth.run("pairs", "adversarial", dial, seed) for dial in truth.DIALS]
    assert truth.rank_correlation(outcomes) >= 0.9
    assert truth.rank_correlation(outcomes, clean=True) >= 0.9
    for outcome in outcomes[2:-1]:  # from two of five on, the pairs that share stand out in the matrix
        assert outcome.shared is not None
        assert outcome.unshared is not None
        assert outcome.shared > outcome.unshared + 0.2
