"""The layer in front of the head, for each form of head, against logits recomputed by hand with features replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ccf_plugin import CrossClassProbe, InputError, LinearHead
from ccf_plugin.probe.ablation import AblationLayer, ablated_logits
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attacks import build_attack
from probe.test_heads import Body, Convolution, PooledConvolution, SharedHead, Tokens, Transposed, TwoHeads

N, n, K = 12, 6, 4


class LowRank(nn.Module):
    """As LoRA writes it: a layer and a low-rank branch, both on g."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(n, K), nn.Linear(n, 2, bias=False), nn.Linear(2, K, bias=False)

    def forward(self, g: Tensor) -> Tensor:
        return self.base(g) + 0.5 * self.up(self.down(g))


class Ensemble(nn.Module):
    """Two networks, whose logits are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(Body(nn.Linear(n, K)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class AlsoElsewhere(Body):
    """The features are read by a second layer too, which is not the model's answer: it keeps them."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))
        self.auxiliary = nn.Linear(n, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        g = self.features(x)
        return {"logits": self.head(g), "auxiliary": self.auxiliary(g)}


class ZeroShot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, n), nn.Tanh())
        self.register_buffer("text", torch.randn(K, n))

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.encoder(x) @ self.text.T


def body(model: Any, x: Tensor) -> Tensor:
    g: Tensor = model.features(x)
    return g


def batchnorm_before() -> nn.Module:
    model = Body(nn.Sequential(nn.BatchNorm1d(n), nn.Linear(n, K)))
    with torch.no_grad():
        model.train()(images() * 3)  # statistics that are not those of its start
        model.head[0].weight.uniform_(0.5, 2)
        model.head[0].bias.normal_()
    return model


def rest_after_batchnorm(model: Any, g: Tensor) -> Tensor:
    norm, linear = model.head
    scaled = (g - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return scaled @ linear.weight.T + linear.bias


def linear(model: Any, g: Tensor) -> Tensor:
    return g @ model.head.weight.flatten(1).T + model.head.bias


Features, Rest = Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor], Tensor]

# What builds the model, what gives g of it, and by hand the logits of any g.
PLACES: dict[str, tuple[Callable[[], nn.Module], Features, Rest]] = {
    "linear": (lambda: Body(nn.Linear(n, K)), body, linear),
    "a BatchNorm before": (batchnorm_before, body, rest_after_batchnorm),
    "1x1 convolution": (PooledConvolution, body, linear),
    "1x1 convolution on a map, averaged": (
        Convolution,
        lambda model, x: (x.expand(-1, 3, -1, -1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)).mean((2, 3)),
        linear,
    ),
    "parametrised": (lambda: Body(parametrizations.weight_norm(nn.Linear(n, K))), body, linear),
    "custom, (n, K)": (lambda: Body(Transposed()), body, lambda m, g: g @ m.head.matrix + m.head.offset),
    "temperature": (lambda: Body(nn.Linear(n, K), lambda z: z / 0.07), body, lambda m, g: linear(m, g) / 0.07),
    "tokens, averaged": (lambda: Tokens(None), lambda m, x: x.squeeze(1).mean(1), linear),
    "tokens, one picked": (lambda: Tokens(2), lambda m, x: x.squeeze(1)[:, 2], linear),
    "low rank": (
        lambda: Body(LowRank()),
        body,
        lambda m, g: g @ (m.head.base.weight + 0.5 * m.head.up.weight @ m.head.down.weight).T + m.head.base.bias,
    ),
    "features read elsewhere too": (AlsoElsewhere, body, linear),
}


def images() -> Tensor:
    return torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1


def logits_of(output: Any) -> Tensor:
    return (output["logits"] if isinstance(output, dict) else output).flatten(1)


@pytest.fixture(autouse=True)
def _float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("build", "features", "rest"), PLACES.values(), ids=PLACES)
def test_the_head_reads_constants(build: Callable[[], nn.Module], features: Features, rest: Rest) -> None:
    torch.manual_seed(0)
    model, x = build(), images()
    layer = AblationLayer(model, x)
    model.eval()
    with torch.no_grad():
        g, before = features(model, x), logits_of(model(x))
        values, columns = torch.randn(g.shape[1]), [0, g.shape[1] - 1]
        changed = g.clone()
        for column in columns:
            changed[:, column] = values[column]
        expected = rest(model, changed)
        with layer.replacing(columns, values):
            replaced = logits_of(model(x))
            other_rows = logits_of(model(x[:3]))
        torch.testing.assert_close(replaced, expected)
        torch.testing.assert_close(other_rows, expected[:3])
        assert not torch.allclose(before, expected)
        torch.testing.assert_close(ablated_logits(before, g, layer.weight, columns, values), expected)
        assert torch.equal(logits_of(model(x)), before)  # outside the block the model is as it was


def test_a_head_named_by_hand() -> None:
    torch.manual_seed(0)
    model, x = ZeroShot(), images()
    layer = AblationLayer(model, x, head=LinearHead("encoder", lambda model: 10 * model.text))
    values = torch.randn(n)
    with torch.no_grad(), layer.replacing([1, 4], values):
        replaced = model(x)
    g = nn.Sequential.forward(model.encoder, x).detach()
    g[:, [1, 4]] = values[[1, 4]]
    torch.testing.assert_close(replaced, 10 * g @ model.text.T)


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "two heads": (TwoHeads, {}),
    "one head on two views": (SharedHead, {}),
    "an ensemble": (Ensemble, {}),
    "gradients": (TwoHeads, {"head": "gradient"}),
    "a function": (ZeroShot, {}),
}


@pytest.mark.parametrize(("build", "options"), REFUSED.values(), ids=REFUSED)
def test_other_heads_are_refused_in_one_line(build: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build()
    with pytest.raises(InputError, match="expected a head that is one layer on one feature vector") as refusal:
        AblationLayer(model, images(), **options)
    assert "\n" not in str(refusal.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_softmax_is_no_head() -> None:
    with pytest.raises(InputError, match="probabilities"):
        AblationLayer(Body(nn.Linear(n, K), lambda z: z.softmax(1)), images())


def test_nothing_stays_on_the_model() -> None:
    torch.manual_seed(0)
    model = batchnorm_before()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer = AblationLayer(model, images())
    with pytest.raises(ZeroDivisionError), layer.replacing([0], torch.zeros(n)):
        1 / 0  # noqa: B018
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_probe_measures_the_features_that_are_left() -> None:
    torch.manual_seed(0)
    model, values = Body(nn.Linear(n, K)), torch.randn(n)
    layer = AblationLayer(model, images())
    with CrossClassProbe(model) as probe, layer.replacing([2], values):
        model(images())
        assert torch.equal(probe.features()[:, 2], values[2].expand(N))


@pytest.mark.parametrize("given", [False, True])
def test_a_probe_measures_without_the_features_that_its_result_names(given: bool) -> None:
    torch.manual_seed(0)
    model, x, labels = Body(nn.Linear(n, K)), images(), torch.arange(N) % K
    values = torch.randn(n) if given else model.features(x).mean(0).detach()
    with CrossClassProbe(model) as probe:
        whole = probe.run([(x, labels)])
        shared = [column for column, _ in whole.shared_features(0, 1, count=2)]
        with probe.ablate(shared, x, values=values if given else None):
            torch.testing.assert_close(model(x), ByHand(model, shared, values)(x))
            without = probe.run([(x, labels)])
        torch.testing.assert_close(
            torch.from_numpy(without.class_attribution[:, shared]), (values * model.head.weight.detach())[:, shared]
        )
        kept = [column for column in range(n) if column not in shared]
        np.testing.assert_allclose(without.class_attribution[:, kept], whole.class_attribution[:, kept], rtol=1e-12)
        assert probe.run([(x, labels)]) == whole


def test_passes_that_verify_the_place_do_not_count() -> None:
    model, x = Body(nn.Linear(n, K)), images()
    with CrossClassProbe(model) as probe:
        model(x)
        with probe.ablate([0], x):
            pass
        with pytest.raises(InputError, match="new forward pass"):
            probe.update(torch.arange(N) % K)


def test_features_that_are_not_there_are_refused() -> None:
    with CrossClassProbe(Body(nn.Linear(n, K))) as probe:
        with pytest.raises(InputError, match="columns from 0 to 5, found 6"), probe.ablate([0, 6], images()):
            pass
        with (
            pytest.raises(InputError, match=r"values of 6 features, found those of shape \(2,\)"),
            probe.ablate([0], images(), values=torch.zeros(2)),
        ):
            pass


class ByHand(nn.Module):
    """A network whose own pass replaces features."""

    def __init__(self, inner: Body, columns: list[int], values: Tensor) -> None:
        super().__init__()
        self.inner, self.columns, self.values = inner, columns, values

    def forward(self, x: Tensor) -> Tensor:
        g = self.inner.features(x)
        kept = torch.ones(n)
        kept[self.columns] = 0
        logits: Tensor = self.inner.head(g * kept + self.values * (1 - kept))
        return logits


def test_an_attack_meets_the_model_without_the_features() -> None:
    torch.manual_seed(0)
    model, x, labels = Body(nn.Linear(n, K)), images() / 2 + 0.5, torch.arange(N) % K
    layer, columns, values = AblationLayer(model, x), [0, 2, 3], torch.randn(n)
    threat = ThreatModel("Linf", 0.1, 0.025, 10)

    def attacked(against: nn.Module) -> Tensor:
        torch.manual_seed(1)
        return build_attack(None, against, threat)(x, labels)

    expected = attacked(ByHand(model, columns, values))
    with layer.replacing(columns, values):
        torch.testing.assert_close(attacked(model), expected)
    assert not torch.allclose(attacked(model), expected)
