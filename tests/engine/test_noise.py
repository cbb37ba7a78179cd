"""Each image's random numbers: against NumPy's integers, by their distribution, and in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from support.noise import integers, keys
from torch import Tensor

from ccf_plugin.engine.noise import PerImageNoise, image_keys

IMAGES = torch.randint(0, 256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(2)).float() / 255


def _drawn(images: Tensor, seed: int = 0) -> list[Tensor]:
    with PerImageNoise(image_keys(images, seed)):
        rows = torch.zeros(len(images), 1, 1, 1)
        return [
            torch.empty_like(images).uniform_(-2, 3),
            torch.randn_like(images),
            torch.rand_like(images),
            torch.empty_like(images).normal_(1, 0.5),
            rows.uniform_(0, 1),
            torch.randn_like(torch.zeros(len(images), 10)),
            torch.rand_like(images.double()),
        ]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_keys_and_numbers_are_numpys(seed: int) -> None:
    assert image_keys(IMAGES, seed).numpy().view(np.uint64).tolist() == keys(IMAGES, seed).tolist()
    drawn = _drawn(IMAGES, seed)
    expected = [integers(IMAGES, seed, draw, tensor[0].numel()) for draw, tensor in enumerate(drawn, 1)]
    uniform = [(numbers / 2**24).astype(np.float32) for numbers in expected]
    normal = [stats.norm.ppf((numbers + 0.5) / 2**24) for numbers in expected]
    for place, value in ((0, -2 + 5 * uniform[0]), (2, uniform[2]), (4, uniform[4]), (6, uniform[6])):
        np.testing.assert_allclose(drawn[place].flatten(1), value, atol=1e-6)
    for place, value in ((1, normal[1]), (3, 1 + 0.5 * normal[3]), (5, normal[5])):
        np.testing.assert_allclose(drawn[place].flatten(1), value, atol=2e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_they_are_the_same_in_any_batch_and_order(size: int) -> None:
    whole = _drawn(IMAGES)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(size))
    parts = [_drawn(IMAGES[order[start : start + size]]) for start in range(0, 12, size)]
    for tensor, *of_parts in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(of_parts), tensor[order])


def test_rows_in_succession_belong_to_one_image() -> None:
    with PerImageNoise(image_keys(IMAGES, 0)):
        many = torch.randn_like(IMAGES.repeat_interleave(3, 0))
    with PerImageNoise(image_keys(IMAGES[4:5], 0)):
        of_one = torch.randn_like(IMAGES[4:5].repeat_interleave(3, 0))
    assert torch.equal(many[12:15], of_one)


def test_memory_order_changes_nothing() -> None:
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(one, other) for one, other in zip(_drawn(IMAGES), _drawn(last), strict=True))


def test_distributions_and_independence() -> None:
    images = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(3)).float() / 255
    images[1] = images[0]
    images[1, 0, 0, 0] = (images[0, 0, 0, 0] + 1 / 255) % 1  # the least that images differ by
    with PerImageNoise(image_keys(images, 5)):
        uniform, normal = torch.rand_like(images), torch.randn_like(images)
    with PerImageNoise(image_keys(images, 6)):
        other_seed = torch.rand_like(images)
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    rows = torch.cat([uniform, normal, other_seed]).flatten(1).double()
    correlations = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlations.abs().max() < 6 / 3072**0.5
    shifted = uniform.flatten(1).double()
    assert abs(float(torch.corrcoef(torch.stack([shifted[:, 1:].flatten(), shifted[:, :-1].flatten()]))[0, 1])) < 0.02
    assert normal.isfinite().all()


def test_what_is_of_no_image_is_torchs_own() -> None:
    torch.manual_seed(4)
    expected = [torch.rand(1), torch.randn(7, 3), torch.rand_like(torch.zeros(7, 2)), torch.zeros(36).uniform_()]
    generator = torch.Generator().manual_seed(5)
    expected.append(torch.zeros(12, 3).uniform_(generator=generator))
    torch.manual_seed(4)
    with PerImageNoise(image_keys(IMAGES, 0)) as noise:
        found = [torch.rand(1), torch.randn(7, 3), torch.rand_like(torch.zeros(7, 2)), torch.zeros(36).uniform_()]
        found.append(torch.zeros(12, 3).uniform_(generator=generator.manual_seed(5)))
        with noise.suspended():
            state = torch.get_rng_state()
            inside = torch.rand_like(IMAGES)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    torch.set_rng_state(state)
    assert torch.equal(torch.rand_like(IMAGES), inside)
