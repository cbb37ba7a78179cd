"""Batches: every image once, reproducible, and augmented as an image-by-image oracle does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ccf_plugin.training.batches import TrainingBatches, shift_and_flip


def _images(count: int, height: int = 6, width: int = 5) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def test_shift_and_flip_equals_pad_crop_flip_of_each_image() -> None:
    images, padding = _images(40), 3
    generator = torch.Generator().manual_seed(2)
    shifts = torch.randint(-padding, padding + 1, (40, 2), generator=generator)
    flips = torch.randint(0, 2, (40,), generator=generator) > 0
    moved = shift_and_flip(images, shifts, flips)
    for image, (down, right), flip, result in zip(
        images.numpy(), shifts.tolist(), flips.tolist(), moved.numpy(), strict=True
    ):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        top, left = padding + down, padding + right
        expected = padded[:, top : top + 6, left : left + 5]
        np.testing.assert_array_equal(result, expected[:, :, ::-1] if flip else expected)


def test_an_epoch_holds_each_image_once_and_the_last_batch_what_remains() -> None:
    labels = torch.arange(10)
    batches = TrainingBatches(_images(10), labels, batch_size=4, seed=0)
    seen = list(batches.epoch(1))
    assert [len(y) for _, y in seen] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(torch.cat([y for _, y in seen]).tolist()) == list(range(10))
    for images, y in seen:
        torch.testing.assert_close(images, batches.images[y].float() / 255, rtol=0, atol=0)


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
        return torch.cat([images for images, _ in batches.epoch(number)])

    assert torch.equal(epoch(0, 1), epoch(0, 1))
    assert not torch.equal(epoch(0, 1), epoch(0, 2))
    assert not torch.equal(epoch(0, 1), epoch(1, 1))


def test_crop_moves_and_does_not_flip() -> None:
    ramp = torch.arange(8, dtype=torch.uint8).expand(200, 1, 8, 8).contiguous()
    batches = TrainingBatches(ramp, torch.zeros(200).long(), batch_size=200, seed=0, augmentation="crop", padding=1)
    ((images, _),) = batches.epoch(1)
    inner = (images * 255).round()[:, 0, :, 1:-1]
    assert (inner.diff(dim=2) == 1).all()  # a flip would make it fall
    assert {float(value) for value in inner[:, 0, 0]} == {0.0, 1.0, 2.0}
