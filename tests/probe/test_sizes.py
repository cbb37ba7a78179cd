"""Samples of very different sizes: what rounding allows one of them hides nothing of the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccf_plugin import CrossClassProbe, InputError

from . import oracle

N, n, K = 48, 24, 6
LABELS = torch.arange(N) % K
SIZES = {
    "equal": torch.ones(N),
    "one of 1e8": torch.cat([torch.full((1,), 1e8), torch.ones(N - 1)]),
    "the last of 1e8": torch.cat([torch.ones(N - 1), torch.full((1,), 1e8)]),
    "one of 1e-20": torch.cat([torch.full((1,), 1e-20), torch.ones(N - 1)]),
    "zeros and others": torch.arange(N).remainder(2).float(),
    "1e-6 to 1e6": torch.logspace(-6, 6, N),
}


class Model(nn.Module):
    """Features of the samples' sizes, and what ``then`` makes of them with layers ``first`` and ``second``."""

    def __init__(self, then: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(16, n), nn.Linear(n, K), nn.Linear(n, K)
        self.tokens, self.norm = nn.Linear(n // 4, K), nn.BatchNorm1d(n)
        self.register_buffer("large", torch.randn(K) * 300)
        self.biased = nn.Linear(n, K)
        self.biased.bias.data += self.large
        self.then = then

    def features(self, x: Tensor) -> Tensor:
        return x[:, :1] * F.relu(self.body(x[:, 1:]))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.features(x))


def images(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.unsqueeze(1), torch.randn(N, 16)], 1)


def tokens(g: Tensor) -> Tensor:
    return g.unflatten(1, (4, n // 4)) - 0.9 * g.unflatten(1, (4, n // 4)).mean(1, keepdim=True)


HEADS: dict[str, tuple[Callable[[Model, Tensor], Tensor], Callable[[Model, Tensor], tuple[Tensor, Tensor]]]] = {
    "linear": (lambda m, g: m.first(g), lambda m, g: (g, m.first.weight)),
    "times a number, and a large constant": (
        lambda m, g: m.first(g) * 0.7 + m.large,
        lambda m, g: (g, 0.7 * m.first.weight),
    ),
    "a constant that the bias cancels": (
        lambda m, g: m.biased(g) - m.biased.bias,
        lambda m, g: (g, m.biased.weight),
    ),
    "two layers": (
        lambda m, g: (m.first(g) + m.second(g.tanh())) / 2,
        lambda m, g: (torch.cat([g, g.tanh()], 1), torch.cat([m.first.weight, m.second.weight], 1) / 2),
    ),
    "a mean of positions that nearly cancel": (
        lambda m, g: m.tokens(tokens(g)).mean(1),
        lambda m, g: (tokens(g).mean(1), m.tokens.weight),
    ),
    "classes of one logit": (
        lambda m, g: m.first(g).masked_fill(m.large < 0, -10.1),
        lambda m, g: (g, m.first.weight.masked_fill((m.large < 0).unsqueeze(1), 0.0)),
    ),
    "after BatchNorm": (
        lambda m, g: m.first(m.norm(g)),
        lambda m, g: (g, m.first.weight * m.norm.weight * (m.norm.running_var + m.norm.eps).rsqrt()),
    ),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
@pytest.mark.filterwarnings("ignore:attribution is zero for")
def test_a_head_is_found_and_read_whatever_the_samples_sizes(
    head: tuple[Callable[[Model, Tensor], Tensor], Callable[[Model, Tensor], tuple[Tensor, Tensor]]],
    dtype: torch.dtype,
    sizes: Tensor,
) -> None:
    torch.manual_seed(0)
    model = Model(head[0]).to(dtype).eval()
    first, later = images(torch.ones(N)).to(dtype), images(sizes).to(dtype)
    with torch.no_grad():
        features, weight = (part.double() for part in head[1](model, model.features(later)))
    expected = oracle.correlation_matrix(features.tolist(), weight.tolist(), LABELS.tolist())
    for before in ([], [first]):  # what finds the head, and what checks it in a later pass
        with CrossClassProbe(model) as probe, torch.no_grad():
            for x in before:
                model(x)
                probe.update(LABELS)
            probe.reset()
            model(later)
            probe.update(LABELS)
            np.testing.assert_allclose(probe.compute().matrix, expected, atol=1e-4)


@pytest.mark.parametrize("after", [lambda z: z, lambda z: 14.0 * z], ids=["as they are", "scaled"])
def test_logits_that_have_few_digits_left_in_half_precision_are_read(after: Callable[[Tensor], Tensor]) -> None:
    """Below a dtype's smallest normal number rounding is absolute."""
    torch.manual_seed(0)
    model = Model(lambda m, g: after(F.linear(g, m.first.weight))).half().eval()
    x = images(torch.logspace(-7, 0, N)).half()
    with CrossClassProbe(model) as probe, torch.no_grad():
        model(x)
        probe.update(LABELS)
        features, weight = model.features(x).double().tolist(), model.first.weight.double().tolist()
        expected = oracle.correlation_matrix(features, weight, LABELS.tolist())
        np.testing.assert_allclose(probe.compute().matrix, expected, atol=1e-4)


def unlike(kind: str) -> Callable[[Model, Tensor], Tensor]:
    """Logits of the first layer for huge samples, and of others for the rest."""

    def then(model: Model, g: Tensor) -> Tensor:
        made, other = model.first(g), (g.unsqueeze(1) * model.second.weight).sum(-1)
        others = (made.abs().amax(1, keepdim=True) < 1e4).to(made)
        match kind:
            case "of another matrix":
                return torch.where(others > 0, other, made)
            case "in one class":
                return torch.where((others > 0) & (torch.arange(K) == 3), other, made)
            case "in one sample":
                return torch.where((others > 0) & (torch.arange(N).unsqueeze(1) == 7), other, made)
            case "in a small part":
                return made + others * 0.01 * other
            case "at another temperature":
                return made * (1 + 0.1 * others)
            case _:  # a mask, beside which nothing is left of the logits
                return made - 1e9 * (torch.arange(K) == 2)

    return then


UNLIKE = [
    *("of another matrix", "in one class", "in one sample", "in a small part", "at another temperature", "masked"),
]


@pytest.mark.parametrize("place", [[0], [N - 1], [4, 9, 20]], ids=["first", "last", "several"])
@pytest.mark.parametrize("size", [1e6, 1e8, 1e12])
@pytest.mark.parametrize("kind", UNLIKE)
def test_a_huge_sample_hides_no_other_head(kind: str, size: float, place: list[int]) -> None:
    torch.manual_seed(0)
    model = Model(lambda m, g: m.first(g)).eval()
    sizes = torch.ones(N)
    sizes[place] = size
    with torch.no_grad():
        with CrossClassProbe(model) as probe:
            model(images(torch.ones(N)))
            probe.update(LABELS)
            model.then = unlike(kind)
            model(images(sizes))
            with pytest.raises(InputError, match="expected"):
                probe.update(LABELS)
                probe.compute()
        with CrossClassProbe(model) as probe:
            model(images(sizes))
            with pytest.raises(InputError, match="expected a layer whose g Wᵀ"):
                probe.update(LABELS)
