"""Where a check could overlook something: masks, single samples, entries beside the logits, copies, own outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccf_plugin import CrossClassProbe, InputError

from . import oracle
from .test_heads import Body, K, N, images, n

LABELS = torch.arange(N) % K


def figure(features: Tensor, weight: Tensor) -> np.ndarray:
    rows = features.detach().double().tolist(), weight.detach().double().tolist()
    return np.array(oracle.correlation_matrix(*rows, LABELS.tolist()))


class Switching(Body):
    """A head, and another after ``then``; what ``after`` makes of the logits."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__(nn.Linear(n, K), after)
        self.other = nn.Linear(n, K)
        self.then = False

    def forward(self, x: Tensor) -> Any:
        g = self.features(x)
        z, other = self.head(g), self.other(g)
        return self.after(other) if self.then else z


def masking(value: float) -> Callable[[Tensor], Tensor]:
    def mask(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, 1] = value
        return z

    return mask


MASKS = [
    *((torch.float64, value) for value in (-10.0, -1e6, -1e9)),
    *((torch.float32, value) for value in (-10.0, -1e6, -1e9)),
    *((torch.bfloat16, value) for value in (-30.0, -100.0, -1e3, -1e9)),
    *((torch.float16, value) for value in (-100.0, -1e3, -1e4)),
]


@pytest.mark.parametrize(("dtype", "value"), MASKS)
@pytest.mark.filterwarnings("ignore:attribution is zero for 1")
def test_a_mask_is_a_row_of_zeros(dtype: torch.dtype, value: float) -> None:
    """Though half precision would leave little of g Wᵀ beside it, and rounding little of a factor of 0."""
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), masking(value)).to(dtype)
    x = images().to(dtype)
    with CrossClassProbe(model) as probe, torch.no_grad():
        model(x)
        probe.update(LABELS)
        expected = figure(model.features(x), model.head.weight)
        expected[1] = expected[:, 1] = np.nan
        np.testing.assert_allclose(probe.compute().matrix, expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_constant_row_that_half_precision_shows_the_logits_beside_is_no_mask(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), lambda z: z + torch.tensor([0.0, -10.0, 5.0, 1.0]).to(z)).to(dtype)
    x = images().to(dtype)
    with CrossClassProbe(model) as probe, torch.no_grad():
        model(x)
        probe.update(LABELS)
        np.testing.assert_allclose(probe.compute().matrix, figure(model.features(x), model.head.weight), atol=2e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_positions_beside_the_one_that_counts_may_hold_anything(value: float) -> None:
    """As attention leaves it at padding, all of which is masked."""

    class Padded(Body):
        def forward(self, x: Tensor) -> Tensor:
            g = self.features(x)
            return self.head(torch.stack([torch.full_like(g, value), g], 1))[:, 1]

    torch.manual_seed(0)
    model = Padded(nn.Linear(n, K))
    with CrossClassProbe(model) as probe, torch.no_grad():
        for _ in range(2):
            model(images())
            probe.update(LABELS)
        expected = figure(model.features(images()), model.head.weight)
        np.testing.assert_allclose(probe.compute().matrix, expected, atol=2e-5)


@pytest.mark.parametrize("value", [-1e6, -1e9])
@pytest.mark.filterwarnings("ignore:attribution is zero for 1")
def test_a_mask_hides_no_other_head_of_a_later_pass(value: float) -> None:
    """A class whose logits are the same for all samples has a row of zeros in W: that is the linear map."""
    torch.manual_seed(0)
    model = Switching(masking(value))
    with CrossClassProbe(model) as probe, torch.no_grad():
        model(images())
        probe.update(LABELS)
        expected = figure(model.features(images()), model.head.weight)
        np.testing.assert_allclose(probe.compute().matrix, expected, atol=2e-5)
        probe.reset()
        model.then = True
        model(images())
        probe.update(LABELS)
        expected = figure(model.features(images()), model.other.weight)
        expected[1] = expected[:, 1] = np.nan
        np.testing.assert_allclose(probe.compute().matrix, expected, atol=2e-5)


def test_a_mask_of_minus_infinity_on_a_later_pass_is_called_one() -> None:
    torch.manual_seed(0)
    model = Switching(masking(-torch.inf))
    with CrossClassProbe(model) as probe, torch.no_grad():
        model(images())
        probe.update(LABELS)
        model.then = True
        model(images())
        with pytest.raises(InputError, match="a mask"):
            probe.update(LABELS)
            probe.compute()


@pytest.mark.parametrize("bend", [torch.tanh, lambda z: z * z.sigmoid(), lambda z: z.log_softmax(1)])
@pytest.mark.parametrize("value", [-1e6, -1e9])
@pytest.mark.parametrize("grad", [True, False])
def test_a_mask_on_the_first_pass_lets_nothing_through(bend: Any, value: float, grad: bool) -> None:
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), lambda z: masking(value)(bend(z)))
    with CrossClassProbe(model) as probe, torch.set_grad_enabled(grad):
        model(images())
        with pytest.raises(InputError, match="a mask"):
            probe.update(LABELS)


@pytest.mark.parametrize("bend", [torch.sin, torch.tanh])
def test_a_mask_that_leaves_single_steps_of_rounding_is_one(bend: Any) -> None:
    """Beside 1.2e7 float32 has steps of 1: these show neither g Wᵀ nor what another layer makes of it."""
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), lambda z: torch.where(torch.arange(K) == 1, bend(3 * z) * 2 - 1.2e7, z))
    with CrossClassProbe(model) as probe:
        model(images())
        with pytest.raises(InputError):
            probe.update(LABELS)


def test_a_constant_row_of_any_size_below_a_masks_is_one() -> None:
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), lambda z: z + torch.tensor([0.0, 300.0, -50.0, 1.0]))
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(LABELS)
        np.testing.assert_allclose(
            probe.compute().matrix, figure(model.features(images()), model.head.weight), atol=2e-5
        )


def test_one_sample_is_checked_against_the_constant_row_of_the_last_batch() -> None:
    torch.manual_seed(0)
    priors = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    model = Body(nn.Linear(n, K), lambda z: z + priors).eval()
    model.other = nn.Linear(n, K)
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(LABELS)
        model(images()[:1])  # the last, smaller batch
        probe.update(LABELS[:1])
        assert probe.compute().counts.sum() == N + 1
        probe.reset()
        model.after = lambda z: torch.tanh(z) + priors
        model(images()[:1])
        probe.update(LABELS[:1])
        with pytest.raises(InputError, match="in batch 0"):
            probe.compute()


def test_a_constant_row_that_changes_between_batches_is_known_to_a_single_sample() -> None:
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K)).eval()
    with CrossClassProbe(model) as probe:
        for priors in (torch.zeros(K), torch.tensor([0.1, 0.2, 0.3, 0.4]).log(), torch.zeros(K)):
            model.after = lambda z, row=priors: z + row
            for count in (N, 1):
                model(images()[:count])
                probe.update(LABELS[:count])
        assert probe.compute().counts.sum() == 3 * (N + 1)


class TwoAnswers(Body):
    """An embedding that a linear layer makes, and an answer that none does."""

    def __init__(self, answer: Callable[[Tensor], Any], container: Callable[[Tensor, Any], Any]) -> None:
        super().__init__(nn.Linear(n, 6))
        self.head2, self.answer, self.container = nn.Linear(6, K), answer, container

    def forward(self, x: Tensor) -> Any:
        made = self.head(self.features(x))
        return self.container(made, self.answer(self.head2(made.relu())))


@pytest.mark.parametrize(
    "answer",
    [lambda z: z.softmax(1), lambda z: z.log_softmax(1), lambda z: z * z.sigmoid()],
    ids=["p", "log p", "gated"],
)
@pytest.mark.parametrize(
    ("container", "choices"),
    [
        (lambda e, z: (e, z), "output=0 or output=1"),
        (lambda e, z: {"features": e, "probs": z}, "output='features' or output='probs'"),
        (lambda e, z: {"out": {"e": e, "z": z}}, re.escape("output=('out', 'e') or output=('out', 'z')")),
    ],
)
def test_an_embedding_is_not_taken_for_an_answer_that_is_not_linear(answer: Any, container: Any, choices: str) -> None:
    torch.manual_seed(0)
    model = TwoAnswers(answer, container)
    with CrossClassProbe(model) as probe:
        model(images())
        with pytest.raises(InputError, match=choices):
            probe.update(LABELS)


def test_an_entry_inside_an_entry_can_be_chosen() -> None:
    torch.manual_seed(0)
    model = TwoAnswers(lambda z: z, lambda e, z: {"out": {"e": e, "z": z}})
    with CrossClassProbe(model, output=("out", "z")) as probe:
        model(images())
        probe.update(LABELS)
        assert probe.compute().head.name == "head2"


class Copied(Body):
    """Two heads on one tensor and on a copy or a cast of it."""

    def __init__(self, copy: Callable[[Tensor], Tensor]) -> None:
        super().__init__(nn.Linear(n, K))
        self.other, self.copy = nn.Linear(n, K), copy

    def forward(self, x: Tensor) -> Tensor:
        g = self.features(x)
        return self.head(g) + 0.5 * self.other(self.copy(g))


@pytest.mark.parametrize(
    "copy", [lambda g: g.clone(), lambda g: g.double().float(), lambda g: g.to(torch.float32, copy=True)]
)
def test_a_copy_of_the_features_is_no_second_tensor(copy: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Copied(copy)
    expected = figure(model.features(images()), model.head.weight + 0.5 * model.other.weight)
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            model(images())
            probe.update(LABELS)
            np.testing.assert_allclose(probe.compute().matrix, expected, atol=2e-5)
            probe.reset()
        model.copy = lambda g: g + 0.1 * g.flip(0)  # no copy any more
        model(images())
        probe.update(LABELS)
        found = probe.compute()
    assert found.head.features == 2 * n


def test_a_named_layer_that_is_not_the_models_answer_says_so() -> None:
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), lambda z: z.softmax(1))
    with CrossClassProbe(model, head="head") as probe:
        model(images())
        probe.update(LABELS)
        assert "own output" in probe.compute().head.history[0]
    plain = Body(nn.Linear(n, K))
    with CrossClassProbe(plain, head="head") as probe:
        plain(images())
        probe.update(LABELS)
        assert probe.compute().head.history == ()


class Gated(Body):
    """A soft mixture of two heads whose shares the sample decides."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))
        self.other, self.gate = nn.Linear(n, K), nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = self.features(x)
        share = self.gate(g).sigmoid()
        return share * self.head(g) + (1 - share) * self.other(g)


def prototypes(z: Tensor) -> Tensor:
    return -torch.cdist(z, torch.eye(K))


NAMED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a gate": (Gated, "shares change from sample to sample"),
    "a scale by sample": (
        lambda: Body(nn.Linear(n, K), lambda z: z * z.abs().sum(1, True)),
        "scale after the layer changes",
    ),
    "prototypes": (lambda: Body(nn.Linear(n, K), prototypes), r"torch\.cdist compares with prototypes"),
    "cosine_similarity": (
        lambda: Body(nn.Linear(n, n), lambda z: F.cosine_similarity(z[:, None], torch.ones(K, n)[None], dim=2)),
        r"F\.linear\(F\.normalize\(g\), F\.normalize\(W\)\)",
    ),
}


@pytest.mark.parametrize(("build", "message"), NAMED.values(), ids=NAMED)
def test_what_is_refused_is_called_by_its_name(build: Callable[[], nn.Module], message: str) -> None:
    torch.manual_seed(0)
    model = build()
    with CrossClassProbe(model) as probe:
        model(images())
        with pytest.raises(InputError, match=message):
            probe.update(LABELS)


def test_vmap_is_named() -> None:
    model = Body(nn.Linear(n, K))
    with CrossClassProbe(model) as probe:
        torch.vmap(lambda x: model(x[None])[0])(images())
        with pytest.raises(InputError, match=r"under torch\.vmap.*batch itself"):
            probe.update(LABELS)


def test_a_module_as_head_is_answered_with_its_name() -> None:
    model = Body(nn.Linear(n, K))
    with pytest.raises(InputError, match="use head='head'"):
        CrossClassProbe(model, head=model.head)
    with pytest.raises(InputError, match=r"output to be an index or a key.*1\.5"):
        CrossClassProbe(model, output=1.5)


class Columns(nn.Module):
    """bmm of one expanded matrix and the features as columns."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.matrix = (
            nn.Sequential(nn.Flatten(), nn.Linear(16, n), nn.Tanh()),
            nn.Parameter(torch.randn(K, n)),
        )

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return torch.bmm(self.matrix.expand(len(g), K, n), g[:, :, None]).squeeze(2)


def test_features_as_columns_of_a_bmm() -> None:
    torch.manual_seed(0)
    model = Columns()
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(LABELS)
        np.testing.assert_allclose(probe.compute().matrix, figure(model.body(images()), model.matrix), atol=2e-5)
