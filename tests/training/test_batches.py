"""Batches: every image once, reproducible, and augmented as an image-by-image oracle does it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccf_plugin.training.batches import TrainingBatches, cut_out, shift_and_flip
from ccf_plugin.zoo.streaming import StreamedImages


def _images(count: int, height: int = 6, width: int = 5) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize(("border", "mode"), [("reflect", "reflect"), ("zero", "constant")])
def test_shift_and_flip_equals_pad_crop_flip_of_each_image(border: Any, mode: Any) -> None:
    images, padding = _images(40), 3
    generator = torch.Generator().manual_seed(2)
    shifts = torch.randint(-padding, padding + 1, (40, 2), generator=generator)
    flips = torch.randint(0, 2, (40,), generator=generator) > 0
    moved = shift_and_flip(images, shifts, flips, border)
    for image, (down, right), flip, result in zip(
        images.numpy(), shifts.tolist(), flips.tolist(), moved.numpy(), strict=True
    ):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode=mode)
        top, left = padding + down, padding + right
        expected = padded[:, top : top + 6, left : left + 5]
        np.testing.assert_array_equal(result, expected[:, :, ::-1] if flip else expected)


def test_an_epoch_holds_each_image_once_and_the_last_batch_what_remains() -> None:
    labels = torch.arange(10)
    batches = TrainingBatches(_images(10), labels, batch_size=4, seed=0)
    seen = list(batches.epoch(1))
    assert [len(y) for _, y, _, _ in seen] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(torch.cat([y for _, y, _, _ in seen]).tolist()) == list(range(10))
    for images, y, _, _ in seen:
        torch.testing.assert_close(images, batches.images[y].float() / 255, rtol=0, atol=0)


@pytest.mark.parametrize(("extra", "share", "shares"), [(7, 0.25, [2, 2, 2, 2]), (3, 0.9, [7, 7, 7, 5])])
def test_each_batch_has_its_share_of_extra_images(extra: int, share: float, shares: list[int]) -> None:
    count = 30
    images, labels = _images(count + extra), torch.arange(count + extra)
    batches = TrainingBatches(images, labels, batch_size=8, seed=0, extra=extra, extra_share=share)
    drawn = [y for _, y, _, _ in batches.epoch(1)]
    assert (len(batches), [len(y) for y in drawn]) == (4, [8, 8, 8, 6])
    assert [int((y >= count).sum()) for y in drawn] == shares
    of_extra, of_data = torch.cat(drawn)[torch.cat(drawn) >= count], torch.cat(drawn)[torch.cat(drawn) < count]
    assert len(of_data.unique()) == len(of_data)
    counts = of_extra.bincount(minlength=count + extra)[count:]
    assert int(counts.max() - counts.min()) <= 1  # none a second time before all have come once
    halves = [replace(batches, rank=rank, processes=2).epoch(1) for rank in (0, 1)]
    for whole, *parts in zip(drawn, *halves, strict=True):
        assert torch.equal(whole, torch.cat([part.labels for part in parts]))
    assert [y.tolist() for _, y, _, _ in batches.epoch(1, skip=2)] == [y.tolist() for y in drawn[2:]]


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop-flip"])
def test_an_epoch_is_determined_by_seed_and_number(augmentation: str) -> None:
    def epoch(seed: int, number: int) -> torch.Tensor:
        batches = TrainingBatches(
            _images(16),
            torch.arange(16),
            batch_size=5,
            seed=seed,
            augmentation=augmentation,
            padding=2,  # type: ignore[arg-type]
        )
        torch.rand(3)  # the global random state has no part in it
        return torch.cat([batch.images for batch in batches.epoch(number)])

    assert torch.equal(epoch(0, 1), epoch(0, 1))
    assert not torch.equal(epoch(0, 1), epoch(0, 2))
    assert not torch.equal(epoch(0, 1), epoch(1, 1))


def test_crop_moves_and_does_not_flip() -> None:
    ramp = torch.arange(8, dtype=torch.uint8).expand(200, 1, 8, 8).contiguous()
    batches = TrainingBatches(ramp, torch.zeros(200).long(), batch_size=200, seed=0, augmentation="crop", padding=1)
    ((images, *_),) = batches.epoch(1)
    inner = (images * 255).round()[:, 0, :, 1:-1]
    assert (inner.diff(dim=2) == 1).all()  # a flip would make it fall
    assert {float(value) for value in inner[:, 0, 0]} == {0.0, 1.0, 2.0}


def test_cut_out_blackens_a_square_around_each_centre_cut_off_at_the_borders() -> None:
    images = torch.ones(3, 2, 6, 5)
    centres = torch.tensor([[2, 2], [0, 0], [5, 4]])
    cut = cut_out(images, centres, 3)
    expected = images.clone()
    expected[0, :, 1:4, 1:4] = 0
    expected[1, :, 0:2, 0:2] = 0
    expected[2, :, 4:6, 3:5] = 0
    assert torch.equal(cut, expected)
    expected = images.clone()
    expected[0, :, 1:3, 1:3] = 0  # an even side has its centre right of the middle
    assert torch.equal(cut_out(images, centres, 2)[0], expected[0])


def test_cutout_changes_nothing_but_the_squares_and_not_the_random_numbers() -> None:
    images = torch.full((200, 1, 8, 8), 255, dtype=torch.uint8)
    images[:, :, :, 0] = 128
    options = {"batch_size": 50, "seed": 0, "augmentation": "crop-flip", "padding": 2}
    plain = TrainingBatches(images, torch.arange(200), **options)
    cut = TrainingBatches(images, torch.arange(200), cutout=4, **options)
    sizes = set()
    for one, other in zip(plain.epoch(3), cut.epoch(3), strict=True):
        assert torch.equal(one.labels, other.labels)
        kept = other.images > 0
        assert torch.equal(one.images[kept], other.images[kept])
        sizes |= set((~kept).sum((1, 2, 3)).tolist())
    assert max(sizes) == 16  # a whole square
    assert min(sizes) == 4  # around a corner's pixel


def test_the_indices_say_which_images_they_are() -> None:
    batches = TrainingBatches(_images(10), torch.arange(10) * 7, batch_size=4, seed=0)
    for batch in batches.epoch(1):
        assert torch.equal(batch.labels, batch.indices * 7)


def test_skipping_gives_the_rest_of_the_epoch() -> None:
    batches = TrainingBatches(_images(10), torch.arange(10), batch_size=4, seed=0, augmentation="crop-flip", padding=2)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, skip=1))
    assert len(rest) == 2
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(("count", "processes"), [(10, 2), (9, 2), (9, 4), (13, 3)])
def test_the_processes_parts_are_together_the_batches_of_one(count: int, processes: int) -> None:
    options = {"batch_size": 4, "seed": 5, "augmentation": "crop-flip", "padding": 2, "cutout": 2}
    one = TrainingBatches(_images(count), torch.arange(count), **options)
    parts = [
        TrainingBatches(_images(count), torch.arange(count), rank=rank, processes=processes, **options)
        for rank in range(processes)
    ]
    for batch, *own in zip(one.epoch(1), *(part.epoch(1) for part in parts), strict=True):
        counted = [part for part in own if part.share]
        assert torch.equal(torch.cat([part.images for part in counted]), batch.images)
        assert torch.equal(torch.cat([part.indices for part in counted]), batch.indices)
        # The mean over processes of their weighted means is the mean over the batch.
        mean = sum(float(part.images.mean()) * part.share for part in own) / processes
        assert mean == pytest.approx(float(batch.images.mean()), rel=1e-5)
        assert all(len(part.labels) for part in own)


def test_images_that_are_not_on_the_device_give_the_same_batches(tmp_path: Path) -> None:
    images = _images(11)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number:02}.png")
    resident = TrainingBatches(
        images, torch.arange(11), batch_size=4, seed=5, augmentation="crop-flip", padding=2, processes=2, rank=1
    )
    streamed = replace(resident, images=StreamedImages.of(sorted(tmp_path.iterdir()), None))
    for skip in (0, 1):
        for batch, same in zip(resident.epoch(3, skip), streamed.epoch(3, skip), strict=True):
            torch.testing.assert_close(tuple(batch), tuple(same), rtol=0, atol=0)
