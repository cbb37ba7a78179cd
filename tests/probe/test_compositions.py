"""One function, one figure: however a linear map is written, C is that of the one `nn.Linear` it amounts to.

Random compositions (layers added on one feature, scaled, low-rank, sliced, biased, run several times, over positions,
in outputs of several entries) and named pairs of two ways to write the same logits; float64 models, figures to 1e-6.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from ccf_plugin import CrossClassProbe, CrossClassResult, InputError

from . import oracle

N, n, K = 30, 12, 4
TOKENS = 4
SPARE = 3  # classes of a larger head that nobody asks for
Truth = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True, scope="module")
def _double_precision() -> Iterator[None]:
    """Models are built in float64: one that copies a product of weights has it to the last bit."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def images(seed: int = 0) -> Tensor:
    return torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def true_classes(classes: int, seed: int = 0) -> Tensor:
    return (torch.arange(N) + torch.arange(N) // 7 + seed) % classes


# branches: modules from g (…, n) to (…, k), each with the matrix (k, n) it amounts to
class Branch(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer: Any = nn.Linear(n, classes)

    def forward(self, g: Tensor) -> Tensor:
        return self.layer(g)

    def amounts_to(self, g: Tensor) -> Tensor:
        return self.layer.weight


class NoBias(Branch):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.layer = nn.Linear(n, classes, bias=False)


class LowRank(Branch):
    """B(A(g)), A with a bias of its own."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.layer = nn.Sequential(nn.Linear(n, 2), nn.Linear(2, classes, bias=False))

    def amounts_to(self, g: Tensor) -> Tensor:
        return self.layer[1].weight @ self.layer[0].weight


class Chain(Branch):
    """Three layers with nothing between, the middle ones wider than g."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.layer = nn.Sequential(nn.Linear(n, n + 3), nn.Linear(n + 3, n + 2, bias=False), nn.Linear(n + 2, classes))

    def amounts_to(self, g: Tensor) -> Tensor:
        return self.layer[2].weight @ self.layer[1].weight @ self.layer[0].weight


class WeightNorm(Branch):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.layer = parametrizations.weight_norm(nn.Linear(n, classes))


class NormBefore(Branch):
    """A BatchNorm1d before the layer, in eval mode."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.norm = nn.BatchNorm1d(n)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, g: Tensor) -> Tensor:
        rows = self.norm(g.flatten(0, -2)).view(g.shape)
        return self.layer(rows)

    def amounts_to(self, g: Tensor) -> Tensor:
        return self.layer.weight * self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()


class Sliced(Branch):
    """Some rows of a larger layer."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.layer = nn.Linear(n, classes + SPARE)
        self.rows = torch.randperm(classes + SPARE)[:classes].tolist()

    def forward(self, g: Tensor) -> Tensor:
        return self.layer(g)[..., self.rows]

    def amounts_to(self, g: Tensor) -> Tensor:
        return self.layer.weight[self.rows]


class Convolved(Branch):
    """A 1×1 convolution over the positions."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.layer = nn.Conv1d(n, classes, 1)

    def forward(self, g: Tensor) -> Tensor:
        return self.layer(g.unsqueeze(2)).squeeze(2) if g.ndim == 2 else self.layer(g.mT).mT

    def amounts_to(self, g: Tensor) -> Tensor:
        return self.layer.weight.squeeze(2)


class Functional(Branch):
    def forward(self, g: Tensor) -> Tensor:
        return F.linear(g, self.layer.weight, self.layer.bias)


class Product(Branch):
    def forward(self, g: Tensor) -> Tensor:
        return g @ self.layer.weight.T + self.layer.bias


class UnitRows(Branch):
    """The weights of a cosine head."""

    def forward(self, g: Tensor) -> Tensor:
        return F.linear(g, F.normalize(self.layer.weight))

    def amounts_to(self, g: Tensor) -> Tensor:
        return F.normalize(self.layer.weight)


class Twice(Branch):
    """One layer that runs twice on the same tensor."""

    def forward(self, g: Tensor) -> Tensor:
        return 0.25 * self.layer(g) + 0.5 * self.layer(g)

    def amounts_to(self, g: Tensor) -> Tensor:
        return 0.75 * self.layer.weight


class Nested(Branch):
    """A scaled layer with a low-rank branch of its own: LoRA."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.down, self.up = nn.Linear(n, 2, bias=False), nn.Linear(2, classes, bias=False)

    def forward(self, g: Tensor) -> Tensor:
        return self.layer(g) + 1.5 * self.up(self.down(g))

    def amounts_to(self, g: Tensor) -> Tensor:
        return self.layer.weight + 1.5 * self.up.weight @ self.down.weight


class BiasLayer(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(shape))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.offset


BRANCHES: tuple[type[Branch], ...] = (
    Branch, NoBias, LowRank, Chain, WeightNorm, NormBefore, Sliced, Convolved, Functional, Product, UnitRows, Twice,
    Nested,
)  # fmt: skip
BIASES: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda classes: nn.Identity(),
    "(K,)": lambda classes: BiasLayer(classes),
    "(1, K)": lambda classes: BiasLayer(1, classes),
    "scalar": lambda classes: BiasLayer(),
    "log-priors": lambda classes: LogPriors(classes),
}


class LogPriors(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("priors", torch.rand(classes) + 0.1)

    def forward(self, z: Tensor) -> Tensor:
        return z - self.priors.log()


# output entries: (what is made of logits and another linear layer's rows, the probe's options, how to get the logits)
OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], dict[str, Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda z, other: z, {}, lambda o: o),
    "(N, K, 1, 1)": (lambda z, other: z[:, :, None, None], {}, lambda o: o.flatten(1)),
    "copy": (lambda z, other: z.clone(), {}, lambda o: o),
    "tuple with None": (lambda z, other: (z, None), {}, lambda o: o[0]),
    "key 'logits'": (lambda z, other: {"embedding": other, "logits": z}, {}, lambda o: o["logits"]),
    ".logits": (lambda z, other: SimpleNamespace(hidden=other, logits=z), {}, lambda o: o.logits),
    "output=1": (lambda z, other: (other, z), {"output": 1}, lambda o: o[1]),
    "output='out'": (lambda z, other: {"other": other, "out": z}, {"output": "out"}, lambda o: o["out"]),
}


@dataclass(frozen=True)
class Spec:
    """A composition; ``seed`` draws its weights."""

    branches: tuple[type[Branch], ...]
    factors: tuple[float, ...]
    later_factors: tuple[float, ...]
    views: tuple[float, ...]  # runs on so many views, added with these factors
    positions: str  # "none", "mean", "picked"
    temperature: float
    inside: bool  # whether the temperature divides g or the logits
    scaled: bool  # a constant scale for each class
    rows: bool  # a subset of the classes, in another order
    bias: str
    output: str
    classes: int
    gradients: bool
    seed: int


class Composed(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(spec.seed)
        made = spec.classes + SPARE if spec.rows else spec.classes
        self.spec, self.temperature = spec, spec.temperature
        self.body = nn.Sequential(nn.Linear(TOKENS if spec.positions != "none" else 16, n), nn.Tanh())
        self.branches = nn.ModuleList(kind(made) for kind in spec.branches)
        self.factors, self.views = list(spec.factors), list(spec.views)
        self.rows = torch.randperm(made)[: spec.classes].tolist() if spec.rows else list(range(made))
        self.scale = nn.Parameter(torch.rand(made) + 0.5)
        self.bias = BIASES[spec.bias](spec.classes)
        self.other = nn.Linear(n, 5)
        self.eval()

    def change(self) -> None:
        """All that decides the map is drawn anew."""
        generator = torch.Generator().manual_seed(self.spec.seed + 1)
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                # also the running variances and the priors, which stay positive
                positive = tensor.ndim == 1
                drawn = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
                tensor.copy_(drawn.abs() + 0.3 if positive else drawn)
        self.factors, self.temperature = list(self.spec.later_factors), 1.7 / self.temperature
        self.views = [0.9 - 0.2 * i for i, _ in enumerate(self.views)]
        self.rows = self.rows[::-1] if self.spec.rows else self.rows

    def read(self, x: Tensor) -> Tensor:
        """What the branches read: (N, n), or (N, T, n)."""
        return self.body(x.flatten(1) if self.spec.positions == "none" else x.squeeze(1))

    def pool(self, rows: Tensor) -> Tensor:
        return {"none": lambda: rows, "mean": lambda: rows.mean(1), "picked": lambda: rows[:, 2]}[self.spec.positions]()

    def forward(self, x: Tensor) -> Any:
        total: Any = 0
        for number, share in enumerate(self.views):
            g = self.read(x * (1 - 0.4 * number) + 0.1 * number)
            if self.spec.inside:
                g = g / self.temperature
            z: Any = 0
            for factor, branch in zip(self.factors, self.branches, strict=True):
                z = z + factor * branch(g)
            total = total + share * self.pool(z)
        if not self.spec.inside:
            total = total / self.temperature
        if self.spec.scaled:
            total = total * self.scale
        if self.spec.rows:
            total = total[:, self.rows]
        return OUTPUTS[self.spec.output][0](self.bias(total), self.other(self.pool(self.read(x))))

    def truth(self, x: Tensor) -> Truth:
        g = 0
        for number, share in enumerate(self.views):
            g = g + share * self.pool(self.read(x * (1 - 0.4 * number) + 0.1 * number))
        weight = sum(f * branch.amounts_to(g) for f, branch in zip(self.factors, self.branches, strict=True))
        if self.spec.scaled:
            weight = weight * self.scale[:, None]
        return g, (weight / self.temperature)[self.rows]


SOME_FACTORS = (1.0, 0.5, -0.7, 2.0, 0.3)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    # which rows of two larger layers belong together cannot be told: these are refused
    several = st.lists(st.sampled_from(BRANCHES), min_size=1, max_size=3).filter(lambda some: some.count(Sliced) < 2)
    branches = tuple(draw(several))
    factor = st.sampled_from(SOME_FACTORS)
    later = [draw(factor) for _ in branches]
    if len(branches) > 1 and draw(st.booleans()):
        later[draw(st.integers(0, len(branches) - 1))] = 0.0
    positions = draw(st.sampled_from(["none", "none", "mean", "picked"]))
    if NormBefore in branches:  # which sees all positions as rows of one tensor, another than its neighbours read
        positions = "none"
    views = draw(st.sampled_from([(1.0,), (1.0,), (0.5, 0.5), (0.6, 0.3, 0.1)])) if positions == "none" else (1.0,)
    return Spec(
        branches=branches,
        factors=tuple(draw(factor) for _ in branches),
        later_factors=tuple(later),
        views=views,
        positions=positions,
        temperature=draw(st.sampled_from([1.0, 0.07, 3.0])),
        inside=draw(st.booleans()),
        scaled=draw(st.booleans()),
        rows=draw(st.booleans()),
        bias=draw(st.sampled_from(sorted(BIASES))),
        output=draw(st.sampled_from(sorted(OUTPUTS))),
        classes=draw(st.integers(2, 5)),
        gradients=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def expected(passes: list[tuple[Tensor, Tensor, Tensor]]) -> np.ndarray:
    """C over passes of (g, W, y), by the oracle."""
    rows, labels = [], []
    for g, weight, y in passes:
        matrix = weight.tolist()
        rows += [oracle.attribution(row, matrix, label) for row, label in zip(g.tolist(), y.tolist(), strict=True)]
        labels += y.tolist()
    return np.array(oracle.correlation_matrix(rows, [[1.0] * len(rows[0])] * len(passes[0][1]), labels))


def true_map(model: Any, x: Tensor, logits: Tensor) -> Truth:
    """The model's own account of its map, itself checked against the logits."""
    with torch.no_grad():
        g, weight = (part.clone() for part in model.truth(x))
        rest = logits - g @ weight.T
    scale = max(1.0, float(logits.abs().max()))
    assert float((rest - rest[:1]).abs().max()) < 1e-9 * scale, "the example is wrong"
    return g, weight


@given(specs())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_composition_has_the_figure_of_the_one_linear_layer(spec: Spec) -> None:
    model = Composed(spec)
    _, options, unwrap = OUTPUTS[spec.output]
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    with CrossClassProbe(model, **options) as together, CrossClassProbe(model, **options) as alone:
        for number in range(2):
            if number:
                model.change()
            x, y = images(number), true_classes(spec.classes, number)
            with torch.set_grad_enabled(spec.gradients):
                logits = unwrap(model(x)).detach()
            seen.append((*true_map(model, x, logits), y))
            for probe, passes in ((together, seen), (alone, seen[-1:])):
                probe.update(y)
                result = probe.compute()
                np.testing.assert_allclose(result.matrix, expected(passes), atol=1e-6)
                assert result.head.features == n
            alone.reset()


# named pairs: one function in two ways
class Pair(nn.Module):
    """``second`` switches to the other way to write the same function."""

    second = False

    def __init__(self) -> None:
        super().__init__()
        self.body, self.layer = nn.Sequential(nn.Flatten(), nn.Linear(16, n), nn.Tanh()), nn.Linear(n, K)

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return self.written_again(g) if self.second else self.written(g)

    def written(self, g: Tensor) -> Tensor:
        return self.layer(g)

    def written_again(self, g: Tensor) -> Tensor:
        raise NotImplementedError

    def switch(self) -> None:
        self.second = True

    def map(self) -> Tensor:
        return self.layer.weight

    def truth(self, x: Tensor) -> Truth:
        return self.body(x), self.map()


PAIRS: dict[str, Callable[[], nn.Module]] = {}


def pair(name: str) -> Callable[[Any], Any]:
    def add(made: Any) -> Any:
        PAIRS[name] = made
        return made

    return add


@pair("LoRA: a branch, and merged")
class Merging(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(n, 2, bias=False), nn.Linear(2, K, bias=False)
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return self.layer(g) if self.merged else self.layer(g) + 2.0 * self.up(self.down(g))

    @torch.no_grad()
    def switch(self) -> None:
        self.layer.weight += 2.0 * self.up.weight @ self.down.weight
        self.merged = True

    def map(self) -> Tensor:
        return self.layer.weight if self.merged else self.layer.weight + 2.0 * self.up.weight @ self.down.weight


@pair("LoRA merged, and unmerged")
class Unmerging(Merging):
    def __init__(self) -> None:
        super().__init__()
        super().switch()

    @torch.no_grad()
    def switch(self) -> None:
        self.layer.weight -= 2.0 * self.up.weight @ self.down.weight
        self.merged = False


@pair("two heads on one feature, averaged, and one head of the mean weight")
class MeanOfHeads(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.other, self.mean = nn.Linear(n, K), nn.Linear(n, K)
        with torch.no_grad():
            self.mean.weight.copy_(self.map())
            self.mean.bias.copy_((self.layer.bias + self.other.bias) / 2)

    def written(self, g: Tensor) -> Tensor:
        return (self.layer(g) + self.other(g)) / 2

    def written_again(self, g: Tensor) -> Tensor:
        return self.mean(g)

    def map(self) -> Tensor:
        return (self.layer.weight + self.other.weight) / 2


@pair("LeViT's heads, and fused")
class Fusing(Pair):
    """A BatchNorm1d before each of two layers on one feature."""

    def __init__(self) -> None:
        super().__init__()
        from timm.models.levit import NormLinear

        self.heads = nn.ModuleList(NormLinear(n, K, std=1.0) for _ in range(2))
        for head in self.heads:
            head.bn.running_mean.normal_()
            head.bn.running_var.uniform_(0.5, 2)
            nn.init.uniform_(head.bn.weight, 0.5, 2)
            nn.init.normal_(head.bn.bias)
        self.slopes = [head.bn.weight / (head.bn.running_var + head.bn.eps).sqrt() for head in self.heads]
        self.rows = [head.linear.weight.detach() for head in self.heads]

    def written(self, g: Tensor) -> Tensor:
        return (self.heads[0](g) + self.heads[1](g)) / 2

    written_again = written

    def switch(self) -> None:
        self.heads = nn.ModuleList(head.fuse() for head in self.heads)

    def map(self) -> Tensor:
        return sum(row * slope for row, slope in zip(self.rows, self.slopes, strict=True)) / 2


@pair("weight norm, and plain")
class Plainly(Pair):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.layer)

    written_again = Pair.written

    def switch(self) -> None:
        parametrize.remove_parametrizations(self.layer, "weight")


@pair("a temperature after the head, and before it")
class Temperature(Pair):
    def written(self, g: Tensor) -> Tensor:
        return self.layer(g) / 0.07

    def written_again(self, g: Tensor) -> Tensor:
        return self.layer(g / 0.07)

    def map(self) -> Tensor:
        return self.layer.weight / 0.07


@pair("a temperature after the head, and in its weight")
class Folded(Temperature):
    def __init__(self) -> None:
        super().__init__()
        self.sharp = nn.Linear(n, K)

    def written_again(self, g: Tensor) -> Tensor:
        return self.sharp(g)

    @torch.no_grad()
    def switch(self) -> None:
        self.sharp.weight.copy_(self.map())
        self.second = True


@pair("a head over positions, averaged, and on their mean")
class Positions(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(1, 2), nn.Linear(4, n), nn.Tanh())  # (N, 4, n)

    def written(self, g: Tensor) -> Tensor:
        return self.layer(g).mean(1)

    def written_again(self, g: Tensor) -> Tensor:
        return self.layer(g.mean(1))

    def truth(self, x: Tensor) -> Truth:
        return self.body(x).mean(1), self.layer.weight


@pair("a head over positions, and called once for each and averaged")
class Called(Positions):
    def written_again(self, g: Tensor) -> Tensor:
        return sum(self.layer(g[:, position]) for position in range(4)) / 4


@pair("a head over positions of which one is picked, and on that one alone")
class Picked(Positions):
    def written(self, g: Tensor) -> Tensor:
        return self.layer(g)[:, 2]

    def written_again(self, g: Tensor) -> Tensor:
        return self.layer(g[:, 2])

    def truth(self, x: Tensor) -> Truth:
        return self.body(x)[:, 2], self.layer.weight


@pair("the logits of an image and its mirror image averaged, and their features")
class Mirrored(Pair):
    def forward(self, x: Tensor) -> Tensor:
        g, mirrored = self.body(x), self.body(x.flip(3))
        return self.layer((g + mirrored) / 2) if self.second else (self.layer(g) + self.layer(mirrored)) / 2

    def truth(self, x: Tensor) -> Truth:
        return (self.body(x) + self.body(x.flip(3))) / 2, self.layer.weight


@pair("two heads on an image and its mirror image, and on the features' mean")
class MirroredHeads(Mirrored):
    """Parts on the same tensors are added, and runs on different tensors too."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(n, K)

    def forward(self, x: Tensor) -> Tensor:
        g, mirrored = self.body(x), self.body(x.flip(3))
        if self.second:
            mean = (g + mirrored) / 2
            return self.layer(mean) + 0.5 * self.other(mean)
        return (self.layer(g) + self.layer(mirrored)) / 2 + (self.other(g) + self.other(mirrored)) / 4

    def map(self) -> Tensor:
        return self.layer.weight + 0.5 * self.other.weight

    def truth(self, x: Tensor) -> Truth:
        return (self.body(x) + self.body(x.flip(3))) / 2, self.map()


@pair("a 1x1 convolution, and a linear layer")
class Convolution(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(n, K, 1)
        self.kernel.weight.data.copy_(self.layer.weight[:, :, None, None])

    def written_again(self, g: Tensor) -> Tensor:
        return self.kernel(g[:, :, None, None]).flatten(1)


@pair("rows of a larger head, and a head of those rows")
class Rows(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(n, 9)
        self.large.weight.data[[7, 0, 3, 4]] = self.layer.weight.data

    def written_again(self, g: Tensor) -> Tensor:
        return self.large(g)[:, [7, 0, 3, 4]]


@pair("two layers in a row, and their product")
class InARow(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(n, 9), nn.Linear(9, K)
        self.layer.weight.data.copy_(self.last.weight @ self.first.weight)

    def written_again(self, g: Tensor) -> Tensor:
        return self.last(self.first(g))


@pair("a scale for each class, and rows scaled by it")
class PerClass(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.scaled = nn.Parameter(torch.rand(K) + 0.5), nn.Linear(n, K)
        self.scaled.weight.data.copy_(self.scale[:, None] * self.layer.weight)

    def written(self, g: Tensor) -> Tensor:
        return self.layer(g) * self.scale

    def written_again(self, g: Tensor) -> Tensor:
        return self.scaled(g)

    def map(self) -> Tensor:
        return self.scale[:, None] * self.layer.weight


@pair("a layer, and F.linear with its weight")
class Unlayered(Pair):
    def written_again(self, g: Tensor) -> Tensor:
        return F.linear(g, self.layer.weight)


@pair("a cosine head's computed weight, and a layer that has it")
class Cosine(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Linear(n, K)
        self.unit.weight.data.copy_(self.map())

    def written(self, g: Tensor) -> Tensor:
        return F.linear(g, F.normalize(self.layer.weight))

    def written_again(self, g: Tensor) -> Tensor:
        return self.unit(g)

    def map(self) -> Tensor:
        return F.normalize(self.layer.weight)


@pair("two members on their own features, and one layer on these side by side")
class Members(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.body2, self.other = copy.deepcopy(self.body), nn.Linear(n, K)
        nn.init.normal_(self.body2[1].weight)
        self.wide = nn.Linear(2 * n, K)
        self.wide.weight.data.copy_(self.map())

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.body(x), self.body2(x)
        return self.wide(torch.cat([a, b], 1)) if self.second else 0.75 * self.layer(a) + 0.25 * self.other(b)

    def map(self) -> Tensor:
        return torch.cat([0.75 * self.layer.weight, 0.25 * self.other.weight], 1)

    def truth(self, x: Tensor) -> Truth:
        return torch.cat([self.body(x), self.body2(x)], 1), self.map()


@pair("a bias of the layer, and log-priors and a bias layer after one without")
class Biases(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.free, self.offset = nn.Linear(n, K, bias=False), BiasLayer(1, K)
        self.free.weight.data.copy_(self.layer.weight)

    def written_again(self, g: Tensor) -> Tensor:
        return self.offset(self.free(g)) + torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


@pair("a convolution whose kernel covers the map, and a linear layer on it")
class Covering(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(3, K, (1, n // 3))
        self.kernel.weight.data.copy_(self.layer.weight.view(K, 3, 1, n // 3))

    def written(self, g: Tensor) -> Tensor:
        return self.kernel(g.view(-1, 3, 1, n // 3)).flatten(1)

    def written_again(self, g: Tensor) -> Tensor:
        return self.layer(g)


@pair("logits of all classes but one of reference, and a row of zeros")
class Reference(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.others = nn.Linear(n, K - 1)
        self.layer.weight.data[:-1], self.layer.weight.data[-1] = self.others.weight.data, 0

    def written(self, g: Tensor) -> Tensor:
        z = self.others(g)
        return torch.cat([z, torch.zeros_like(z[:, :1])], 1)

    def written_again(self, g: Tensor) -> Tensor:
        return self.layer(g)


@pair("one output for all classes with a factor and a bias for each, and its multiples as rows")
class OneOutput(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.scale, self.offset = nn.Linear(n, 1), torch.tensor([-1.0, 1.0, 2.0, 0.5]), BiasLayer(1, K)
        self.layer.weight.data.copy_(self.scale[:, None] * self.one.weight)

    def written(self, g: Tensor) -> Tensor:
        return self.offset(self.one(g) * self.scale)

    def written_again(self, g: Tensor) -> Tensor:
        return self.layer(g)


@pair("a share of all classes beside those of each, and added to the rows")
class Shared(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.one = nn.Linear(n, K), nn.Linear(n, 1)
        self.layer.weight.data.copy_(self.own.weight + self.one.weight)

    def written(self, g: Tensor) -> Tensor:
        return self.own(g) + self.one(g)

    def written_again(self, g: Tensor) -> Tensor:
        return self.layer(g)


def updated(probe: CrossClassProbe, labels: Tensor) -> bool:
    """Whether the pass was counted; if not, the probe asks for another."""
    try:
        probe.update(labels)
    except InputError as error:
        message = str(error)
    else:
        return True
    assert "run another" in message, message
    return False


@pytest.mark.parametrize("build", PAIRS.values(), ids=PAIRS)
def test_two_ways_to_write_one_function(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    x, y = images(), true_classes(K)
    results: list[CrossClassResult] = []
    with CrossClassProbe(model) as probe, CrossClassProbe(model) as together, torch.no_grad():
        for number in range(2):
            if number:
                model.switch()
            g, weight = true_map(model, x, model(x))
            for one in (probe, together):
                model(x)
                is_counted = updated(one, y)
                assert is_counted or number == 1
                if not is_counted:  # other modules than before: the probe asks for another pass, once
                    model(x)
                    one.update(y)
                results.append(one.compute())
                np.testing.assert_allclose(results[-1].matrix, expected([(g, weight, y)]), atol=1e-6)
                assert results[-1].head.features == g.shape[1]
            probe.reset()
    first, _, again, both = results
    np.testing.assert_allclose(again.matrix, first.matrix, atol=1e-6)
    assert both.counts.sum() == 2 * N  # the second way was counted with the first


def test_the_figure_is_that_of_a_linear_layer_under_the_same_probe() -> None:
    torch.manual_seed(1)
    model = Merging()
    x, y = images(), true_classes(K)
    one = nn.Sequential(copy.deepcopy(model.body), nn.Linear(n, K))
    one[1].weight.data.copy_(model.map())
    found = []
    for probed in (model, one):
        with CrossClassProbe(probed) as probe:
            probed(x)
            probe.update(y)
            found.append(probe.compute().matrix)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_peft_merged_and_unmerged() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(Pair(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["layer"]))
    layer = model.base_model.model.layer
    x, y = images(), true_classes(K)
    found = []
    with CrossClassProbe(model) as probe:
        for step in ("B is zero", "trained", "merged", "unmerged"):
            if step == "trained":
                nn.init.normal_(layer.lora_B["default"].weight)
            elif step == "merged":
                model.merge_adapter()
            elif step == "unmerged":
                model.unmerge_adapter()
            with torch.no_grad():
                g = model.base_model.model.body(x)
                branch = layer.get_delta_weight("default")
                weight = layer.base_layer.weight + (0 if step == "merged" else branch)
            model(x)
            probe.update(y)
            found.append(probe.compute().matrix)
            np.testing.assert_allclose(found[-1], expected([(g, weight, y)]), atol=1e-6)
            probe.reset()
    np.testing.assert_allclose(found[2], found[1], atol=1e-6)
    np.testing.assert_allclose(found[3], found[1], atol=1e-6)
    assert not np.allclose(found[1], found[0], atol=1e-2)
