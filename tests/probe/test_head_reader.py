"""The head's input and weight with their graph: they are the probe's, and refusals say why there are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, InputError, class_attribution, class_attribution_similarity, correlation_matrix
from ccf_plugin.probe.head_reader import HeadReader
from ccf_plugin.probe.null import expected_cas

from .conftest import small_batch, small_network


class OneByOne(nn.Module):
    """A 1×1 convolution as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 7, 3), nn.Conv2d(7, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).relu().mean((2, 3), keepdim=True)).flatten(1)


class Scaled(nn.Module):
    """Logits that are a multiple of the layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 5), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return 2 * self.head(self.body(images.flatten(1)).relu())


class Rounded(Scaled):
    """Logits that differ from the layer's own by a factor as rounding may look like one."""

    def forward(self, images: Tensor) -> Tensor:
        return (1 + 2e-5) * self.head(self.body(images.flatten(1)).relu())


class Twice(Scaled):
    """A head that runs twice."""

    def forward(self, images: Tensor) -> Tensor:
        g = self.body(images.flatten(1))
        return self.head(g) + self.head(g.flip(1))


@pytest.mark.parametrize("network", [small_network, OneByOne])
def test_cas_of_what_is_read_is_the_probes_and_the_probe_is_not_disturbed(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, (images, labels) = network(), small_batch(24)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with CrossClassProbe(model) as probe:
        reader = HeadReader(model, images[:2])
        with reader.reading(model) as forward:
            logits = forward(images)
            probe.update(labels)
            forward(images.flip(0))  # another pass, such as TRADES' clean one
            features = forward.features(logits)
            cas = class_attribution_similarity(correlation_matrix(class_attribution(features, forward.head, labels)))
        assert float(cas.detach()) == pytest.approx(probe.compute().cas, rel=1e-5)
    assert {name: value.shape for name, value in before.items()} == {n: v.shape for n, v in model.state_dict().items()}
    cas.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters() if p.ndim > 1)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_other_logits_than_the_passes_have_no_features() -> None:
    model, (images, _) = small_network(), small_batch(8)
    with HeadReader(model, images[:2]).reading(model) as forward:
        logits = forward(images)
        with pytest.raises(InputError, match="what forward returned, unchanged"):
            forward.features(logits.clone())


@pytest.mark.parametrize(
    ("network", "head", "found"),
    [
        (Scaled, None, "'head', which is only a part of it"),
        (Twice, None, "one that read .* and .* in a pass"),
        (Scaled, "gradient", "which has no one weight"),
    ],
)
def test_heads_that_are_not_one_layer_are_refused(network: type[nn.Module], head: str | None, found: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match=f"1×1 convolution on one feature vector a sample, found .*{found}"):
        HeadReader(network(), torch.rand(4, 3, 2, 2), head=head)


def test_a_factor_that_rounding_may_look_like_is_no_other_head() -> None:
    torch.manual_seed(0)
    model, images, labels = Rounded(), torch.rand(24, 3, 2, 2), torch.arange(24) % 4
    with CrossClassProbe(model) as probe:
        with HeadReader(model, images).reading(model) as forward:
            features = forward.features(forward(images))
            cas = class_attribution_similarity(correlation_matrix(class_attribution(features, forward.head, labels)))
        probe.update(labels)
        assert float(cas.detach()) == pytest.approx(probe.compute().cas, rel=1e-5)


@pytest.mark.parametrize("with_a_class_missing", [False, True])
def test_gradients_of_cas_and_of_its_excess_are_those_of_finite_differences(with_a_class_missing: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    features, weight = (
        torch.randn(*shape, 6, dtype=torch.float64, generator=generator, requires_grad=True) for shape in ((9,), (4,))
    )
    labels = torch.arange(9) % (3 if with_a_class_missing else 4)

    def figures(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        vectors = class_attribution(features, weight, labels)
        cas = class_attribution_similarity(correlation_matrix(vectors))
        return cas, cas - expected_cas(vectors)

    assert torch.autograd.gradcheck(figures, (features, weight))


def test_no_gradient_of_chance_is_nan_where_attributions_are_missing_zero_or_constant() -> None:
    vectors = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [torch.nan] * 3], requires_grad=True)
    expected_cas(vectors).backward()
    assert vectors.grad is not None
    assert vectors.grad[:3].isfinite().all()
