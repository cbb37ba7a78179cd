"""What CAS is made of, and on what it depends beside the classifier."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, CrossClassResult
from ccf_plugin.probe.decomposition import mean_row_share

from .conftest import ROUNDING, small_batch, small_network

Batch = tuple[Tensor, Tensor]


def probed(model: nn.Module, *batches: Batch, **options: Any) -> CrossClassResult:
    with CrossClassProbe(model, **options) as probe:
        return probe.run(batches)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return nn.Sequential(layer)


def behind_a_body(head: nn.Module, features: int) -> nn.Module:
    """With parameters before the head, so that its input has a gradient; positive images are its features."""
    body = nn.Linear(features, features, bias=False).double()
    nn.init.eye_(body.weight)
    return nn.Sequential(body, nn.ReLU(), head)


def test_three_classes_by_hand() -> None:
    """A = (3, 4), (0, 2), (-5, 0): products 8, -15 and 0, lengths 5, 2, 5, cosines 0.8, -0.6 and 0."""
    vectors = np.array([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]])
    matrix = np.array([[1.0, 0.8, -0.6], [0.8, 1.0, 0.0], [-0.6, 0.0, 1.0]])
    result = CrossClassResult(matrix, vectors, np.ones(3, dtype=np.int64), logit_variance=4.0)
    assert result.lengths.tolist() == [5.0, 2.0, 5.0]
    assert result.shared_part == pytest.approx(16.0)
    assert result.negative_part == pytest.approx(-1.2)
    assert result.in_logit_units is not None
    assert result.in_logit_units["shared_part"] == pytest.approx(4.0)
    assert result.in_logit_units["negative_part"] == pytest.approx(-7.5)
    assert result.in_logit_units["lengths"].tolist() == [2.5, 1.0, 2.5]
    described = result.to_json()
    assert described["lengths"] == [5.0, 2.0, 5.0]
    assert described["in_logit_units"]["lengths"] == [2.5, 1.0, 2.5]
    assert CrossClassResult(matrix, vectors, np.ones(3, dtype=np.int64)).in_logit_units is None


def test_a_class_without_samples_adds_nothing() -> None:
    vectors = np.array([[1.0, 1.0], [np.nan, np.nan], [1.0, 0.0]])
    half = math.sqrt(0.5)
    matrix = np.array([[1.0, np.nan, half], [np.nan, np.nan, np.nan], [half, np.nan, 1.0]])
    result = CrossClassResult(matrix, vectors, np.array([1, 0, 1]), logit_variance=1.0)
    assert result.shared_part == pytest.approx(2.0)
    assert result.negative_part == 0.0
    assert result.to_json()["lengths"] == [pytest.approx(math.sqrt(2)), None, 1.0]


def test_the_logits_variance_is_over_samples_and_classes_without_the_samples_means() -> None:
    model = small_network().eval()
    batches = [small_batch(12), small_batch(7, seed=1)]
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _ in batches]).double()
    expected = (logits - logits.mean(1, keepdim=True)).square().mean()
    assert probed(model, *batches).logit_variance == pytest.approx(float(expected), rel=ROUNDING)


def test_units_of_the_logits_are_those_of_a_head_times_a_constant() -> None:
    weight, bias = torch.randn(4, 9), torch.randn(4)
    batch = torch.randn(40, 9).relu(), torch.arange(40) % 4
    once, thrice = probed(linear(weight, bias), batch), probed(linear(3 * weight, 3 * bias), batch)
    assert thrice.shared_part == pytest.approx(9 * once.shared_part, rel=1e-5)
    assert thrice.in_logit_units is not None
    assert once.in_logit_units is not None
    for name, value in once.in_logit_units.items():
        np.testing.assert_allclose(thrice.in_logit_units[name], value, rtol=1e-5, err_msg=name)


def test_the_share_of_the_mean_row() -> None:
    weight = torch.tensor([[3.0, 0.0], [1.0, 2.0]])  # mean (2, 1): 2 · 5 of 14
    assert float(mean_row_share(weight)) == pytest.approx(10 / 14)
    assert float(mean_row_share(weight - weight.mean(0))) == 0.0
    assert float(mean_row_share(torch.ones(5, 3))) == pytest.approx(1.0)


@pytest.mark.parametrize("head", [None, "gradient"])
def test_a_centred_probe_does_not_see_what_the_softmax_does_not(head: str | None) -> None:
    torch.manual_seed(1)
    weight, added = torch.randn(4, 9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    batch = torch.rand(40, 9, dtype=torch.float64), torch.arange(40) % 4
    plain, gauged = (behind_a_body(linear(weight - weight.mean(0) + shift), 9) for shift in (0.0, added))
    found = {
        (name, centre): probed(model, batch, centre=centre, head=head)
        for name, model in (("plain", plain), ("gauged", gauged))
        for centre in (False, True)
    }
    reference = found["plain", False].matrix
    for key in (("plain", True), ("gauged", True)):
        np.testing.assert_allclose(found[key].matrix, reference, atol=1e-12)
        assert found[key].centred
        assert found[key].gauge_note == ""
    assert np.abs(found["gauged", False].matrix - reference).max() > 0.1
    np.testing.assert_array_equal(found["gauged", False].confusion, found["plain", False].confusion)
    assert found["gauged", False].logit_variance == pytest.approx(found["plain", False].logit_variance)


def test_the_note_says_that_cas_depends_on_the_mean_row() -> None:
    torch.manual_seed(1)
    weight = torch.randn(4, 9)
    weight -= weight.mean(0)
    batch = torch.rand(40, 9), torch.arange(40) % 4
    silent, told = probed(linear(weight), batch), probed(linear(weight + 0.5), batch)
    assert silent.gauge_note == ""
    assert silent.mean_row_share == pytest.approx(0.0, abs=1e-6)
    share = float(mean_row_share(weight + 0.5))
    assert told.mean_row_share == pytest.approx(share, rel=1e-5)
    assert told.gauge_note.startswith(f"{share:.2%} of |W|²")
    assert told.to_json()["gauge_note"] == told.gauge_note
    assert told.to_json()["centred"] is False
    model = behind_a_body(linear(weight.double() + 0.5), 9)
    by_gradient = probed(model, (batch[0].double(), batch[1]), head="gradient")
    assert (by_gradient.mean_row_share, by_gradient.gauge_note) == (None, "")


def test_a_centred_probe_still_checks_each_pass() -> None:
    from ccf_plugin import InputError

    class Twisted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(9, 4)
            self.twist = False

        def forward(self, x: Tensor) -> Tensor:
            logits = self.fc(x)
            return logits.square() if self.twist else logits

    model = Twisted()
    with CrossClassProbe(model, centre=True) as probe:
        model(torch.rand(20, 9))
        probe.update(torch.arange(20) % 4)
        model.twist = True
        model(torch.rand(20, 9))
        with pytest.raises(InputError):
            probe.update(torch.arange(20) % 4)
            probe.compute()


class Golden:
    """The golden features under heads that are changed."""

    def __init__(self, golden: dict[str, np.ndarray]) -> None:
        self.features, self.weight, self.bias = (
            torch.from_numpy(golden[name]).double() for name in ("features", "weight", "bias")
        )
        self.labels = torch.from_numpy(golden["labels"])

    def probed(self, weight: Tensor, features: Tensor | None = None, **options: Any) -> CrossClassResult:
        features = self.features if features is None else features
        return probed(linear(weight, self.bias), (features, self.labels), **options)


@pytest.fixture
def network(golden: dict[str, np.ndarray]) -> Golden:
    return Golden(golden)


def test_golden_decomposition(network: Golden) -> None:
    result = network.probed(network.weight)
    assert result.cas == pytest.approx(13.479, abs=1e-3)
    assert result.shared_part == pytest.approx(31.10, abs=0.01)
    assert result.negative_part == 0.0  # the paper: they "do not affect our analysis"
    assert result.logit_variance == pytest.approx(26.69, abs=0.01)
    assert result.in_logit_units is not None
    assert result.in_logit_units["shared_part"] == pytest.approx(1.165, abs=1e-3)
    assert result.lengths.min() == pytest.approx(1.300, abs=1e-3)
    assert result.lengths.max() == pytest.approx(1.780, abs=1e-3)
    assert result.mean_row_share == pytest.approx(5.7e-7, rel=0.01)
    assert result.gauge_note == ""


def test_golden_cas_and_what_changes_it(network: Golden) -> None:
    """The figures of docs/results/resnet18.md: these are one classifier, each with the same predictions."""
    weight, features = network.weight, network.features
    cas = network.probed(weight).cas
    confusion = network.probed(weight).confusion
    shift = weight.norm() / math.sqrt(5_120) * torch.ones(512, dtype=torch.float64)
    scale = torch.rand(512, dtype=torch.float64) + 0.1
    turn = torch.linalg.qr(torch.randn(512, 512, dtype=torch.float64))[0]
    unchanged = {
        "features scaled one by one": network.probed(weight * scale, features / scale),
        "centred": network.probed(weight, centre=True),
        "mean row, centred": network.probed(weight + shift, centre=True),
    }
    for name, result in unchanged.items():
        assert result.cas == pytest.approx(cas, abs=1e-3), name
        np.testing.assert_array_equal(result.confusion, confusion, err_msg=name)
    gauged, rotated = network.probed(weight + shift), network.probed(weight @ turn, features @ turn)
    assert gauged.cas == pytest.approx(22.29, abs=0.01)
    assert gauged.mean_row_share == pytest.approx(0.5, abs=1e-3)
    assert gauged.gauge_note.startswith("50.00%")
    assert rotated.cas == pytest.approx(19.5, abs=1.5)
    for result in (gauged, rotated):
        np.testing.assert_array_equal(result.confusion, confusion)


def test_golden_threshold_of_the_note(network: Golden) -> None:
    """At the threshold the worst direction tried moves CAS by 3 %, less than its null's standard deviation."""
    weight = network.weight - network.weight.mean(0)
    shift = weight.norm() / math.sqrt(5_120) * math.sqrt(1e-3 / (1 - 1e-3)) * torch.ones(512, dtype=torch.float64)
    moved = [network.probed(weight + sign * shift).cas - network.probed(weight).cas for sign in (1, -1)]
    assert np.abs(moved).max() == pytest.approx(0.39, abs=0.01)
