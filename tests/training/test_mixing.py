"""Mixed images against the two papers' definitions by hand, the same in every number of processes, and in a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.runs import assert_same_run, interrupted, tiny

from ccf_plugin import InputError, train
from ccf_plugin.training.batches import TrainingBatches
from ccf_plugin.training.mixing import Mixing, classes_of

KINDS = ["mixup", "cutmix"]


def batches(kind: Any, **options: Any) -> TrainingBatches:
    images = torch.randint(0, 256, (10, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mixing = None if kind is None else Mixing(kind, 1.0, classes=4, seed=5)
    return TrainingBatches(images, torch.arange(10) % 4, batch_size=4, seed=5, mixing=mixing, **options)


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_mixup_is_a_blend_of_neighbours_in_the_batch(augmentation: str) -> None:
    mixed, plain = (list(batches(kind, augmentation=augmentation, padding=2).epoch(3)) for kind in ("mixup", None))
    shares = []
    for both, single in zip(mixed, plain, strict=True):
        labels = F.one_hot(single.labels, 4).double()
        differ = single.labels != single.labels.roll(-1)
        share = float(both.labels.double()[differ].gather(1, single.labels[differ].unsqueeze(1))[0])
        shares.append(share)
        expected = share * single.images.double() + (1 - share) * single.images.double().roll(-1, 0)
        torch.testing.assert_close(both.images.double(), expected, rtol=0, atol=1e-6)
        expected = share * labels + (1 - share) * labels.roll(-1, 0)
        torch.testing.assert_close(both.labels.double(), expected, rtol=0, atol=1e-6)
        assert torch.equal(both.indices, single.indices)
    assert len(set(shares)) == 3


def test_cutmix_pastes_a_rectangle_and_shares_the_label_by_its_pixels() -> None:
    seen = []
    for epoch in range(1, 20):
        for both, single in zip(batches("cutmix").epoch(epoch), batches(None).epoch(epoch), strict=True):
            other = single.images.roll(-1, 0)
            pasted = (both.images == other) & (both.images != single.images)
            kept = both.images == single.images
            assert bool((pasted | kept).all())
            inside = pasted.amax((0, 1)).nonzero()  # where any image shows its partner
            area = 0
            if len(inside):
                (top, left), (bottom, right) = inside.amin(0).tolist(), inside.amax(0).tolist()
                area = (bottom - top + 1) * (right - left + 1)
                torch.testing.assert_close(
                    both.images[:, :, top : bottom + 1, left : right + 1],
                    other[:, :, top : bottom + 1, left : right + 1],
                )
            labels = F.one_hot(single.labels, 4).double()
            expected = (1 - area / 63) * labels + area / 63 * labels.roll(-1, 0)
            torch.testing.assert_close(both.labels.double(), expected, rtol=0, atol=1e-6)
            seen.append(area)
    assert min(seen) < 10
    assert max(seen) > 30


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_the_shares_are_of_a_beta_distribution(alpha: float) -> None:
    """Its mean is 1/2, its variance 1/(4 (2α + 1))."""
    images, labels = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    mixing = Mixing("mixup", alpha, classes=2, seed=0)
    shares = np.array(
        [mixing(images, images, labels, labels.flip(0), epoch=1, batch=n)[1][0, 0].item() for n in range(2000)]
    )
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * (variance / 2000) ** 0.5
    assert shares.var() == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_and_a_skipped_start_see_the_same_mixtures(kind: str) -> None:
    whole = list(batches(kind, augmentation="crop-flip", padding=2).epoch(2))
    halves = [
        replace(batches(kind, augmentation="crop-flip", padding=2), rank=rank, processes=2).epoch(2) for rank in (0, 1)
    ]
    for both, *parts in zip(whole, *halves, strict=True):
        for place in range(3):
            assert torch.equal(both[place], torch.cat([part[place] for part in parts]))
    (last,) = batches(kind, augmentation="crop-flip", padding=2).epoch(2, skip=2)
    assert torch.equal(last.images, whole[2].images)


def test_a_mixed_image_counts_for_the_class_that_has_most_of_it() -> None:
    labels = torch.tensor([3, 0])
    assert classes_of(labels) is labels
    assert classes_of(torch.tensor([[0.3, 0.0, 0.7], [0.6, 0.4, 0.0]])).tolist() == [2, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_on_mixed_images_and_goes_on_with_them(kind: str, tmp_path: Path) -> None:
    recipe = tiny(f"data.mix={kind}", "optim.epochs=2", "objective.loss=trades")
    resumed = train(recipe, interrupted(recipe, tmp_path / "resumed"), resume=True)
    assert_same_run(resumed, train(recipe, tmp_path / "whole"))
    assert all(0 < (row.train_robust_accuracy or 0) < 1 for row in resumed.rows)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["objective.loss=mart"], "data.mix: expected 'none' with loss 'mart'"),
        (["ensembling={}"], r"data.mix: expected 'none' with \[ensembling\]"),
        (["crossclass={weight=1.0}"], r"data.mix: expected 'none' with \[crossclass\]"),
        (["data.mix=blend"], "data.mix: expected 'none', 'mixup' or 'cutmix'"),
    ],
)
def test_what_needs_one_class_of_each_image_is_refused(settings: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        tiny("data.mix=cutmix", *settings)


def test_an_attack_that_needs_one_class_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"attack: expected a model that attack CWPGD can attack") as caught:
        train(tiny("data.mix=mixup", "attack.name=CWPGD"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
