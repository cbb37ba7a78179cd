"""What a model or its host changes where no layer's output shows it: measured right, or told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ccf_plugin import CrossClassProbe, InputError

from . import oracle
from .test_heads import Body, K, N, images, n

LABELS = torch.arange(N) % K
SHIFT = torch.randn(n, generator=torch.Generator().manual_seed(5))


def expected(features: Tensor, weight: Tensor) -> np.ndarray:
    rows = features.detach().double().tolist(), weight.detach().double().tolist()
    return np.array(oracle.correlation_matrix(*rows, LABELS.tolist()))


def linear(outputs: int = K) -> Body:
    torch.manual_seed(0)
    return Body(nn.Linear(n, outputs))


HOOKS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor]]] = {
    "classes in another order": (lambda z: z[:, [1, 2, 3, 0]], lambda w: w[[1, 2, 3, 0]]),
    "some classes": (lambda z: z[:, 2 : 2 + K], lambda w: w[2 : 2 + K]),
    "a temperature": (lambda z: z[:, :K] / 0.07, lambda w: w[:K]),
}


@pytest.mark.parametrize("first", [True, False], ids=["before the first pass", "between passes"])
@pytest.mark.parametrize(("change", "rows"), HOOKS.values(), ids=HOOKS)
def test_a_hook_of_the_host_that_comes_after_the_probe(
    change: Callable[[Tensor], Any], rows: Callable[[Tensor], Tensor], first: bool
) -> None:
    model = linear(K + 3)
    with CrossClassProbe(model) as probe, CrossClassProbe(model) as other:
        if not first:
            model(images())
            for one in (probe, other):
                one.update(LABELS)
                one.reset()
        model.register_forward_hook(lambda _, args, output: change(output))
        logits = model(images())
        for one in (probe, other):
            one.update(LABELS)
            result = one.compute()
            assert result.accuracy == float((logits.argmax(1) == LABELS).double().mean())
            weight = rows(model.head.weight)
            np.testing.assert_allclose(result.matrix, expected(model.features(images()), weight), atol=2e-5)


def test_a_hook_of_the_host_that_makes_probabilities() -> None:
    model = linear()
    with CrossClassProbe(model) as probe:
        model.register_forward_hook(lambda _, args, output: output.softmax(1))
        model(images())
        with pytest.raises(InputError, match="looks like probabilities"):
            probe.update(LABELS)


def test_a_hook_that_compiled_code_calls_after_the_probes() -> None:
    model = linear()
    model.compile(backend="eager")
    with CrossClassProbe(model) as probe:
        model.register_forward_hook(lambda _, args, output: output.flip(1))
        model(images())
        with pytest.raises(InputError, match="attach the probe after that hook"):
            probe.update(LABELS)


class Shifting(Body):
    """What the head has read is shifted afterwards, by what a constant row of logits would explain."""

    def __init__(self, data: bool = False) -> None:
        super().__init__(nn.Linear(n, K))
        self.data = data

    def forward(self, x: Tensor) -> Tensor:
        g = self.features(x)
        logits: Tensor = self.head(g)
        (g.data if self.data else g).sub_(SHIFT)
        return logits


class ShiftingTokens(Shifting):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(1, 2), nn.Linear(4, n), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("data", [False, True], ids=["in place", "in .data"])
def test_features_that_are_shifted_after_the_head(data: bool, mode: type, compiled: bool) -> None:
    torch.manual_seed(0)
    model = Shifting(data)
    with CrossClassProbe(model) as probe, mode():
        (torch.compile(model, backend="eager") if compiled else model)(images())
        probe.update(LABELS)
        right = expected(model.features(images()), model.head.weight)
        np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)


def test_tokens_that_are_shifted_after_the_head_are_named_and_copied_in_the_next_pass() -> None:
    torch.manual_seed(0)
    model = ShiftingTokens()
    with CrossClassProbe(model) as probe, torch.no_grad():
        model(images())
        with pytest.raises(InputError, match=r"changed in place what 'head' had read.*run another pass"):
            probe.update(LABELS)
        model(images())
        probe.update(LABELS)
        right = expected(model.features(images()).mean(1), model.head.weight)
        np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)


def test_weights_that_the_pass_changes_and_restores_are_named_and_copied_in_the_next_pass() -> None:
    """BinaryConnect: the signs of the weights while the layer runs."""

    class Signs(Body):
        def forward(self, x: Tensor) -> Tensor:
            kept = self.head.weight.data.clone()
            self.head.weight.data.sign_()
            logits = super().forward(x)
            self.head.weight.data.copy_(kept)
            return logits

    torch.manual_seed(0)
    model = Signs(nn.Linear(n, K))
    with CrossClassProbe(model) as probe:
        model(images())
        with pytest.raises(InputError, match=r"changed the weights of 'head' in the pass.*run another pass"):
            probe.update(LABELS)
        model(images())
        probe.update(LABELS)
        right = expected(model.features(images()), model.head.weight.sign())
        np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)


class LogitNorm(Body):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x))


class Gated(Body):
    """A soft mixture of two heads."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__(head)
        self.other, self.gate = nn.Linear(n, 2 * K), nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = self.features(x)
        share = self.gate(g).sigmoid()
        return share * self.head(g) + (1 - share) * self.other(g)


@pytest.mark.parametrize("build", [LogitNorm, Gated])
def test_a_scale_or_gate_of_each_sample_is_refused_in_batches_of_one_too(build: Callable[[nn.Module], Body]) -> None:
    """Any such factor explains the logits of one sample."""
    torch.manual_seed(0)
    model = build(nn.Linear(n, 2 * K))
    with CrossClassProbe(model) as probe:
        for sample in images().split(1)[:3]:
            model(sample)
            with pytest.raises(InputError, match="run a pass of more"):
                probe.update(LABELS[:1])
        model(images())
        with pytest.raises(InputError, match="from sample to sample"):
            probe.update(LABELS)


def test_a_temperature_is_known_to_single_samples_after_a_pass_of_more() -> None:
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), lambda z: z / 0.07)
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(LABELS)
        probe.reset()
        for sample, label in zip(images().split(1), LABELS.split(1), strict=True):
            model(sample)
            probe.update(label)
        right = expected(model.features(images()), model.head.weight)
        np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)


@pytest.mark.parametrize(
    "call", [lambda m, x: m.forward(x), lambda m, x: m.head(m.features(x))], ids=["forward", "parts"]
)
def test_a_head_that_runs_in_no_pass_of_the_model_is_told_once(call: Callable[[Any, Tensor], Tensor]) -> None:
    """No hook of the model sees ``model.forward(x)``: an earlier pass would count in its place."""
    model = linear()
    with CrossClassProbe(model) as probe:
        model(images())
        call(model, images() + 1)
        with pytest.warns(UserWarning, match=r"'head' has run after the pass that counts.*call the model: model\(x\)"):
            probe.update(LABELS)
        with warnings.catch_warnings(action="error"):
            call(model, images())
            model(images())
            probe.update(LABELS)
            with probe.capture():
                model(images())
            call(model, images())
            probe.update(LABELS)


def test_a_function_head_that_runs_in_no_pass_of_the_model_is_told_by_a_layer_before_it() -> None:
    class Cosine(Body):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.normalize(self.features(x)), F.normalize(self.head.weight))

    model = Cosine(nn.Linear(n, K))
    with CrossClassProbe(model) as probe:
        with warnings.catch_warnings(action="error"):
            for _ in range(3):
                model(images())
                probe.update(LABELS)
        model(images())
        model.forward(images() + 1)
        with pytest.warns(
            UserWarning, match=r"'features.1' before the head 'F.linear' has run after the pass that counts"
        ):
            probe.update(LABELS)
        right = expected(F.normalize(model.features(images())), F.normalize(model.head.weight))
        np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)


def test_a_checkpoint_that_runs_the_head_again_is_no_run_of_its_own() -> None:
    model = linear()
    with CrossClassProbe(model) as probe, warnings.catch_warnings(action="error"):
        logits = checkpoint(model, images(), use_reentrant=False)
        logits.sum().backward()
        probe.update(LABELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_that_are_returned_less_precisely_than_they_were_made(dtype: torch.dtype) -> None:
    """As of models in half precision whose head is computed in float32."""
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), lambda z: z.to(dtype))
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            model(images())
            probe.update(LABELS)
            right = expected(model.features(images()), model.head.weight)
            np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)
            probe.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pictures", [lambda x: x[:1].expand(N, 1, 4, 4), torch.zeros_like], ids=["one image", "black"])
@pytest.mark.parametrize("members", [1, 2])
def test_a_batch_of_one_image_over_and_over_gives_no_other_factors(
    members: int, pictures: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    """As a network that has collapsed sees all images: rounding of the mean logits is no evidence of a factor."""

    class Two(Body):
        def __init__(self, head: nn.Module) -> None:
            super().__init__(head)
            self.other = nn.Sequential(nn.Flatten(), nn.Linear(16, K))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.other(x) if members == 2 else super().forward(x)

    for seed in range(5):
        torch.manual_seed(seed)
        model = Two(nn.Linear(n, K)).to(dtype)
        with CrossClassProbe(model) as probe:
            passes = [x.to(dtype) for x in (images(), pictures(images()))]
            for x in passes:
                model(x)
                probe.update(LABELS)
            rows, labels = [], LABELS.tolist() * 2
            weight = [model.head.weight, model.other[1].weight][:members]
            for x in passes:
                g = torch.cat([model.features(x), x.flatten(1)][:members], 1).double().tolist()
                matrix = torch.cat(weight, 1).double().tolist()
                rows += [oracle.attribution(one, matrix, y) for one, y in zip(g, LABELS.tolist(), strict=True)]
            right = np.array(oracle.correlation_matrix(rows, [[1.0] * len(rows[0])] * K, labels))
            np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_that_are_lost_in_the_rounding_of_large_biases_are_measured(dtype: torch.dtype, scale: float) -> None:
    """The logits are the same for all images, or nearly: that is no evidence of another factor, such as 0."""
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K))
    with torch.no_grad():
        model.head.weight *= scale
        model.head.bias.copy_(torch.tensor([3.0, -1.5, 2.0, 5.0]))
    model.to(dtype)
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            x = images().to(dtype)
            model(x)
            probe.update(LABELS)
            found, g, weight = probe.compute(), model.features(x), model.head.weight
            np.testing.assert_allclose(found.matrix, expected(g, weight), atol=2e-5)
            vectors = oracle.class_attribution(g.double().tolist(), weight.double().tolist(), LABELS.tolist())
            np.testing.assert_allclose(found.lengths, np.linalg.norm(vectors, axis=1), rtol=2e-5)
            probe.reset()


def test_logits_below_the_rounding_of_their_head_show_no_order_of_classes() -> None:
    """In bfloat16, logits less their batch's mean: rounding would explain them by any row of W."""
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 2))
        nn.init.normal_(model[0].weight, std=0.125)
        nn.init.normal_(model[0].bias)
        model.bfloat16()
        model.register_forward_hook(lambda _, args, output: output - output.mean(0))
        with CrossClassProbe(model) as probe, torch.no_grad():
            model((torch.randn(16, 64) * 0.01 + 3).bfloat16())
            with pytest.raises(InputError, match="expected a layer whose"):
                probe.update(torch.arange(16) % 2)


@pytest.mark.parametrize("seed", range(8))
def test_a_collapsed_network_whose_classes_are_in_another_order(seed: int) -> None:
    """Its logits are the same for all images: that they are computed from the head's output shows no order."""
    torch.manual_seed(seed)
    model = Body(nn.Linear(n, K), lambda z: z[:, [1, 2, 3, 0]])
    with CrossClassProbe(model) as probe:
        model(torch.zeros_like(images()))
        probe.update(LABELS)  # the biases tell
        right = expected(model.features(torch.zeros_like(images())), model.head.weight[[1, 2, 3, 0]])
        np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)


class Unseen(Body):
    """The head is no product that shows; the layers beside it give ``K`` outputs, or ``classes``, that nobody reads."""

    def __init__(self, others: int, classes: int = K, factors: Tensor | None = None) -> None:
        super().__init__(nn.Identity())
        self.factors = factors  # (K, others): what the logits are of the other layers' outputs; None: the head's
        self.weight = nn.Parameter(torch.randn(K, n))
        self.others = nn.ModuleList(nn.Linear(n, classes) for _ in range(others))

    def forward(self, x: Tensor) -> Tensor:
        g = self.features(x)
        outputs = [other(g) for other in self.others]
        if self.factors is not None:
            return (torch.stack(outputs, 2) * self.factors).sum(2)
        return (g.unsqueeze(1) * self.weight).sum(2)


def few(different: int) -> Tensor:
    return images()[:different].repeat(-(-N // different), 1, 1, 1)[:N]


@pytest.mark.parametrize(("others", "classes"), [(1, K), (2, K), (8, K), (1, 5 * K)])
@pytest.mark.parametrize("different", [2, 3, 4])
def test_few_different_images_do_not_make_another_layer_the_head(different: int, others: int, classes: int) -> None:
    """Features that vary in one way are explained by a factor for each class; in r ways, by r K layers."""
    torch.manual_seed(0)
    with CrossClassProbe(Unseen(others, classes)) as probe:
        probe.model(few(different))
        with pytest.raises(InputError, match="expected a layer whose"):
            probe.update(LABELS)


class Mixed(nn.Module):
    """The logarithm of two heads' mean softmax, on wide layers: of their outputs some are near any logits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(512, 2) for _ in range(2))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        g = self.body(x)
        return torch.stack([head(g).softmax(1) for head in self.heads]).mean(0).log()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("different", "count"), [(1, 1), (2, 2), (1, 16), (2, 16), (3, 12), (5, 12)])
def test_half_precision_makes_no_head_of_outputs_that_are_near_the_logits_of_few_images(
    different: int, count: int, dtype: torch.dtype
) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        with CrossClassProbe(Mixed(dtype)) as probe, torch.no_grad():
            probe.model(torch.randn(different, 16).repeat(-(-count // different), 1)[:count].to(dtype))
            with pytest.raises(InputError, match="expected a layer whose"):
                probe.update(torch.arange(count) % 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_single_images_show_no_rows_of_a_large_head_that_others_round_to_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 1000)).to(dtype)
    chosen = torch.randperm(1000)[:200]
    model.register_forward_hook(lambda _, args, output: output[:, chosen])
    x, labels = torch.randn(200, 16).to(dtype), torch.arange(200)
    with CrossClassProbe(model) as probe, torch.no_grad():
        model(x[:1])
        with pytest.raises(InputError, match="run a pass of more"):
            probe.update(labels[:1])
        for rows in (slice(0, 200), slice(0, 1), slice(1, 2)):  # of more images they are known, and remembered
            model(x[rows])
            probe.update(labels[rows])
        attributions = x.double() * model[0].weight.double()[chosen[labels]]
        cosines = F.normalize(attributions) @ F.normalize(attributions).T
        np.testing.assert_allclose(probe.compute().matrix, cosines, atol=2e-5)


@pytest.mark.parametrize("factors", [torch.arange(1.0, K + 1).unsqueeze(1), torch.arange(1.0, 2 * K + 1).expand(K, -1)])
def test_few_different_images_do_not_change_the_factors(factors: Tensor) -> None:
    """Of each class, or of many layers: in a later pass that is another head's."""
    torch.manual_seed(0)
    model = Unseen(factors.shape[1], factors=factors)
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(LABELS)
        model.factors = None
        model(few(2))
        probe.update(LABELS)
        with pytest.raises(InputError, match="to be the logits in every counted pass"):
            probe.compute()


def test_factors_are_found_once_the_images_differ() -> None:
    class PerClass(Body):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x)) * torch.tensor([1.0, 2.0, 0.5, 3.0])

    torch.manual_seed(0)
    model = PerClass(nn.Linear(n, K))
    with CrossClassProbe(model) as probe:
        model(few(2))
        with pytest.raises(InputError, match=r"vary in so few ways.*run a pass of more images"):
            probe.update(LABELS)
        model(few(3))
        probe.update(LABELS)
        right = expected(model.features(few(3)), model.head.weight * torch.tensor([[1.0], [2.0], [0.5], [3.0]]))
        np.testing.assert_allclose(probe.compute().matrix, right, atol=2e-5)


def test_a_call_of_the_class_s_own_is_told() -> None:
    """Hooks end before it."""

    class Reordered(Body):
        def __call__(self, *args: Any) -> Tensor:
            return super().__call__(*args)[:, [1, 2, 3, 0]]

    with pytest.warns(UserWarning, match=r"Reordered has a __call__ of its own.*move it into forward"):
        CrossClassProbe(Reordered(nn.Linear(n, K)))
    with warnings.catch_warnings(action="error"):
        for model in (linear(), torch.fx.symbolic_trace(linear()), torch.compile(linear(), backend="eager")):
            CrossClassProbe(model)
