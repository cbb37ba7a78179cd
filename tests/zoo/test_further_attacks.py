"""Our attacks against plain float64 steps whose gradients are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.attacks import build_attack
from ccf_plugin.zoo.further_attacks import CWPGD, CWPGDL2, TPGDL2

Array = NDArray[np.float64]


class Linear(nn.Module):
    """Logits W x + b, so that the gradient of KL(p ‖ q) by x is Wᵀ(q − p)."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(classes, pixels, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(classes, generator=generator, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


def softmax(logits: Array) -> Array:
    exponentials = [math.exp(value - max(logits)) for value in logits]
    return np.array([value / math.fsum(exponentials) for value in exponentials])


def oracle(x: Array, noise: Array, weight: Array, bias: Array, eps: float, step_size: float, steps: int) -> Array:
    """One image, flat."""

    def project(candidate: Array) -> Array:
        length = math.sqrt(math.fsum((candidate - x) ** 2))
        inside = candidate if length <= eps else x + (candidate - x) * eps / length
        return np.array([min(max(pixel, 0.0), 1.0) for pixel in inside])

    p = softmax(weight @ x + bias)
    attacked = project(x + 0.001 * noise)
    for _ in range(steps):
        gradient = weight.T @ (softmax(weight @ attacked + bias) - p)
        attacked = project(attacked + step_size * gradient / math.sqrt(math.fsum(gradient**2)))
    return attacked


@pytest.mark.parametrize(("eps", "step_size"), [(0.4, 0.15), (0.05, 0.2), (2.0, 0.3)])
def test_equals_float64_steps_by_hand(eps: float, step_size: float) -> None:
    model = Linear(12, 4)
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.manual_seed(3)
    noise = torch.randn_like(images)
    torch.manual_seed(3)
    found = TPGDL2(model, eps=eps, alpha=step_size, steps=4)(images, torch.zeros(5, dtype=torch.long))
    weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    for image, its_noise, attacked in zip(images, noise, found, strict=True):
        x, z = image.flatten().numpy(), its_noise.flatten().numpy()
        expected = oracle(x, z, weight, bias, eps, step_size, 4)
        np.testing.assert_allclose(attacked.detach().flatten().numpy(), expected, atol=1e-9)


def test_it_is_what_tpgd_means_in_l2(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    threat = threat_model(norm="L2", eps=0.5, steps=3)
    torch.manual_seed(0)
    twin = build_attack("TPGD", network, threat)
    adversarial = twin(*batch)
    assert twin.describe() == {"attack": "TPGDL2", **threat.as_dict()}
    torch.manual_seed(0)
    assert torch.equal(build_attack("tpgdl2", network, threat)(*batch), adversarial)
    assert build_attack("TPGD", network, threat_model(norm="Linf")).name == "TPGD"


def divergence(network: nn.Module, images: Tensor, adversarial: Tensor) -> float:
    with torch.no_grad():
        p, q = network(images).log_softmax(1), network(adversarial).log_softmax(1)
    return float((p.exp() * (p - q)).sum())


def test_it_maximises_the_divergence_better_than_noise(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    network.eval()
    images = batch[0]
    torch.manual_seed(0)
    found = [
        divergence(network, images, build_attack("TPGDL2", network, threat_model(norm="L2", steps=steps))(*batch))
        for steps in (1, 10)
    ]
    noise = torch.randn_like(images)
    noise *= 128 / 255 / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert found[1] > found[0]
    assert found[1] > 2 * divergence(network, images, (images + noise).clamp(0, 1))


def test_nothing_is_left_of_it_at_eps_0(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    attack = build_attack("TPGDL2", network, threat_model(norm="L2", eps=0.0, step_size=0.1, steps=3))
    assert torch.equal(attack(*batch), batch[0])


def test_a_model_that_does_not_look_at_its_images() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 0 * images.flatten(1)[:, :3]

    images = torch.rand(2, 3, 4, 4)
    adversarial = build_attack("TPGDL2", Constant(), threat_model(norm="L2", steps=2))(images, torch.zeros(2).long())
    assert torch.isfinite(adversarial).all()


def climb(
    x: Array, start: Array, label: int, weight: Array, bias: Array, *, norm: str, eps: float, step: float
) -> Array:
    """Five steps up the margin of one image, flat."""
    attacked = start
    for _ in range(5):
        logits = weight @ attacked + bias
        rival = max((k for k in range(len(logits)) if k != label), key=lambda k: logits[k])
        slope = weight[rival] - weight[label]
        direction = np.sign(slope) if norm == "Linf" else slope / math.sqrt(math.fsum(slope**2))
        moved = attacked + step * direction - x
        length = math.sqrt(math.fsum(moved**2))
        moved = np.clip(moved, -eps, eps) if norm == "Linf" else moved * min(1.0, eps / length)
        attacked = np.clip(x + moved, 0, 1)
    return attacked


@pytest.mark.parametrize(("norm", "attack", "eps"), [("Linf", CWPGD, 0.1), ("L2", CWPGDL2, 0.4)])
@pytest.mark.parametrize("certainty", [1, 1e4])
def test_pgd_along_the_margin_equals_steps_by_hand(norm: str, attack: type, eps: float, certainty: float) -> None:
    """With logits of 1e4 the cross-entropy of an image that is classified right has no slope left."""
    model = Linear(12, 4)
    model.weight.data *= certainty
    model.bias.data *= certainty
    images = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = model(images).argmax(1)
    labels[3:] = torch.tensor([0, 1, 2])
    torch.manual_seed(3)
    found = attack(model, eps=eps, alpha=eps / 3, steps=5)(images, labels)
    torch.manual_seed(3)
    starts = attack(model, eps=eps, alpha=eps / 3, steps=0)(images, labels)
    weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    for image, start, label, attacked in zip(images, starts, labels.tolist(), found, strict=True):
        x, begun = image.flatten().numpy(), start.detach().flatten().numpy()
        expected = climb(x, begun, label, weight, bias, norm=norm, eps=eps, step=eps / 3)
        np.testing.assert_allclose(attacked.detach().flatten().numpy(), expected, atol=1e-9)


def test_it_does_what_the_cross_entropy_cannot() -> None:
    model = Linear(12, 4).float()
    model.weight.data *= 1e3
    images = torch.rand(40, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    labels = model(images).argmax(1)
    threat = threat_model(norm="Linf", eps=0.2, steps=10)
    withstand = {
        name: int((model(build_attack(name, model, threat, seed=0)(images, labels)).argmax(1) == labels).sum())
        for name in ("PGD", "CWPGD")
    }
    assert withstand["CWPGD"] < withstand["PGD"]
    assert build_attack("CWPGD", model, threat_model(norm="L2")).name == "CWPGDL2"
