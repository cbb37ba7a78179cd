"""Each image's random numbers are the CPU's on a GPU too."""

from __future__ import annotations

import torch

from ccf_plugin.engine.noise import PerImageNoise, image_keys


def test_numbers_are_the_cpus() -> None:
    images = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
    drawn = []
    for device in ("cpu", "cuda"):
        there = images.to(device)
        keys = image_keys(there, 2**32 - 1)
        with PerImageNoise(keys):
            drawn.append([keys, torch.rand_like(there), torch.randn_like(there)])
    on_cpu, on_gpu = drawn
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0])
    assert torch.equal(on_gpu[1].cpu(), on_cpu[1])
    torch.testing.assert_close(on_gpu[2].cpu(), on_cpu[2], rtol=1e-5, atol=1e-6)
