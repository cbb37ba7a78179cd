"""Every form of head is found, with features g and weight W that give the logits; the rest is refused with reasons."""

from __future__ import annotations

import contextlib
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.defaults import other_defaults
from support.tolerances import rounding
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from ccf_plugin import CrossClassProbe, InputError
from ccf_plugin.engine.outputs import output_entries

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")

N, n, K = 12, 6, 4
TERMS = 16 + n + K + N  # of the sums one behind another, from the pixels to C


class Body(nn.Module):
    """g, (N, n), from images; a table of heads is put after it."""

    def __init__(self, head: nn.Module | None = None, after: Callable[[Any], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, n), nn.Tanh())
        self.head = head
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.head(self.features(x)))


class Transposed(nn.Module):
    """A custom layer whose matrix is (n, K)."""

    def __init__(self, rows: int = n, bias: bool = True) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(rows, K))
        self.offset = nn.Parameter(torch.randn(K)) if bias else None

    def forward(self, g: Tensor) -> Tensor:
        return g @ self.matrix if self.offset is None else g @ self.matrix + self.offset


class Rows(nn.Module):
    """A custom layer whose matrix is (K, n), kept in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.randn(K, n))

    def forward(self, g: Tensor) -> Tensor:
        return torch.einsum("ni,ki->nk", g, self.prototypes)


class Computed(nn.Linear):
    """A custom layer that computes its weight, here by a mask."""

    def forward(self, g: Tensor) -> Tensor:
        return nn.functional.linear(g, self.weight * (self.weight > -0.2), self.bias)


class ByKeyword(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.features(x))


class Convolution(Body):
    """A 1×1 convolution on a map, then its mean, as in squeezenet."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, K, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.expand(-1, 3, -1, -1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)).mean((2, 3))


class PooledConvolution(Body):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(n, K, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[:, :, None, None])  # (N, K, 1, 1)


class Tokens(Body):
    """The head runs at every token; one is picked, or all are averaged."""

    def __init__(self, pick: int | None) -> None:
        super().__init__(nn.Linear(4, K))
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x.squeeze(1))  # (N, 4, K)
        return logits.mean(1) if self.pick is None else logits[:, self.pick]


class TwoHeads(Body):
    """Like deit's distilled models: two heads on different features, averaged."""

    def __init__(self, first: float = 0.5, second: float = 0.5) -> None:
        super().__init__(nn.Linear(n, K))
        self.other = nn.Linear(16, K)
        self.factors = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.factors[0] * self.head(self.features(x)) + self.factors[1] * self.other(x.flatten(1))


class Ensemble(nn.Module):
    """The mean of deep members' logits: between their heads lie many layers that could be heads."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16) for _ in range(50)), nn.Linear(16, K)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class EarlierExit(Body):
    """Features of the last head are computed from those of the first."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))
        self.deeper = nn.Sequential(nn.Linear(n, n), nn.Tanh())
        self.last = nn.Linear(n, K)

    def forward(self, x: Tensor) -> Tensor:
        g = self.features(x)
        return self.after(self.head(g) + self.last(self.deeper(g)))


class BesideTheBody(Body):
    """One head reads the images themselves."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))
        self.beside = nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.after(self.beside(x) + self.head(self.features(x)))


class SharedHead(Body):
    """One head that runs twice in a pass, on two views."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) + 0.5 * self.head(self.features(x * 0.1))


class Rewriting(Body):
    """Like Pang2020Boosting: the pass itself normalises the head's weight, and scales the logits."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        g = nn.functional.normalize(self.features(x))
        self.head.weight.data = nn.functional.normalize(self.head.weight.data)
        return self.head(g) * 15


class Normalised(nn.Module):
    """A wrapper that normalises images, around a nested model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"model": nn.Sequential(inner)})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["model"]((x - 0.5) / 0.25)


class SameSize(nn.Module):
    """Two layers could give (N, K) here: the one nearest the output is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, K), nn.Linear(K, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)).relu())


class FeaturesFirst(Body):
    """The features stand before the logits in the output."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        g = self.features(x)
        return g, self.head(g)


class BatchDependent(Body):
    """Logits depend on the batch, as those of an adaptive ODE solver do."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))

    def forward(self, x: Tensor) -> Tensor:
        g = self.features(x)
        return self.head(g * (1 + g.std()))


Output = namedtuple("Output", ["loss", "logits"])

HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: Body(nn.Linear(n, K)), "head"),
    "linear without bias": (lambda: Body(nn.Linear(n, K, bias=False)), "head"),
    "the model is the head": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, K)), "1"),
    "called by keyword": (lambda: ByKeyword(nn.Linear(n, K)), "head"),
    "1x1 convolution on features": (PooledConvolution, "head"),
    "1x1 convolution on a map, averaged": (Convolution, "head"),
    "custom, (n, K)": (lambda: Body(Transposed()), "head"),
    "custom, (n, K), no bias": (lambda: Body(Transposed(bias=False)), "head"),
    "custom, buffer (K, n)": (lambda: Body(Rows()), "head"),
    "custom, weight computed": (lambda: Body(Computed(n, K)), "F.linear"),
    "square custom, transposed": (lambda: Body(nn.Sequential(nn.Linear(n, K), nn.Tanh(), Transposed(K))), "head.2"),
    "weight_norm": (lambda: Body(weight_norm(nn.Linear(n, K))), "head"),
    "parametrised weight_norm": (lambda: Body(parametrizations.weight_norm(nn.Linear(n, K))), "head"),
    "spectral_norm": (lambda: Body(spectral_norm(nn.Linear(n, K))), "head"),
    "parametrised spectral_norm": (lambda: Body(parametrizations.spectral_norm(nn.Linear(n, K))), "head"),
    "orthogonal": (lambda: Body(parametrizations.orthogonal(nn.Linear(n, K))), "head"),
    "rewritten inside forward": (Rewriting, "head"),
    "two heads, averaged": (TwoHeads, "head + other"),
    "two heads, weighted": (lambda: TwoHeads(1.0, -0.3), "head + other"),
    "an ensemble's mean": (Ensemble, "members.0.51 + members.1.51 + members.2.51"),
    "an earlier exit": (EarlierExit, "head + last"),
    "one that reads the images": (BesideTheBody, "beside + head"),
    "one head twice": (SharedHead, "head + head"),
    "temperature": (lambda: Body(nn.Linear(n, K), lambda logits: logits / 0.07), "head"),
    "scaled in place": (lambda: Body(nn.Linear(n, K), lambda logits: logits.mul_(3.0)), "head"),
    "negative": (lambda: Body(nn.Linear(n, K), lambda logits: -logits), "head"),
    "a position picked": (lambda: Tokens(2), "head"),
    "positions averaged": (lambda: Tokens(None), "head"),
    "tuple": (lambda: Body(nn.Linear(n, K), lambda logits: (logits, None)), "head"),
    "tuple with features first": (FeaturesFirst, "head"),
    "dict": (lambda: Body(nn.Linear(n, K), lambda logits: {"loss": logits.sum(), "logits": logits}), "head"),
    "dict without that key": (lambda: Body(nn.Linear(n, K), lambda logits: {"out": logits}), "head"),
    ".logits": (lambda: Body(nn.Linear(n, K), lambda logits: SimpleNamespace(logits=logits)), "head"),
    "named tuple": (lambda: Body(nn.Linear(n, K), lambda logits: Output(logits.sum(), logits)), "head"),
    "normalised and nested": (lambda: Normalised(Body(nn.Linear(n, K))), "inner.model.0.head"),
    "lazy": (lambda: Body(nn.LazyLinear(K)), "head"),
    "two that would do": (SameSize, "second"),
    "depending on the batch": (BatchDependent, "head"),
}


def images(count: int = N) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("build", "name"), HEADS.values(), ids=HEADS)
def test_head_is_found_and_gives_the_logits(build: Callable[[], nn.Module], name: str, training: bool) -> None:
    torch.manual_seed(0)
    model = build().train(training)
    with CrossClassProbe(model) as probe:
        assert probe.head is None
        output = model(images())
        assert probe.head is not None
        assert probe.head.name == name
        assert probe.head.classes == K
        latest = probe._read(probe._take_record())
    logits = latest.logits
    assert logits.shape == (N, K)
    assert any(torch.equal(logits, entry.logits) for entry in output_entries(output))
    assert latest.features.shape == (N, probe.head.features)
    # g Wᵀ + b = logits: what is left is one bias for all samples
    rest = logits.double() - latest.features.double() @ latest.weight.double().T
    scale = logits.detach().abs().max()
    assert float((rest - rest[:1]).abs().max() / scale) < 1e-5


@pytest.mark.parametrize(("build", "name"), HEADS.values(), ids=HEADS)
def test_gradient_attribution_equals_the_linear_one(build: Callable[[], nn.Module], name: str) -> None:
    torch.manual_seed(0)
    model = build()
    labels = torch.arange(N) % K
    results = []
    for head in (None, "gradient"):
        torch.manual_seed(1)
        with CrossClassProbe(model, head=head, instances=True) as probe:
            model(images().requires_grad_())
            probe.update(labels)
            results.append(probe.compute())
    linear, gradient = results
    np.testing.assert_allclose(gradient.matrix, linear.matrix, atol=2e-5)
    np.testing.assert_allclose(gradient.instance_matrix, linear.instance_matrix, atol=2e-5)
    assert gradient.head.name == name


WAYS = ["linear", "custom, (n, K)", "two heads, weighted", "temperature", "positions averaged"]


@pytest.mark.parametrize("head", [None, "gradient"])
@pytest.mark.parametrize("name", [*WAYS, "an ensemble's mean", "a position picked", "dict", "two that would do"])
def test_the_hosts_default_device_and_dtype_change_nothing(name: str, head: Any) -> None:
    torch.manual_seed(0)
    model, labels, x = HEADS[name][0](), torch.arange(N) % K, images().requires_grad_()
    results = []
    for defaults in (contextlib.nullcontext, other_defaults):
        with defaults(), CrossClassProbe(model, head=head, instances=True) as probe:
            model(x)
            probe.update(labels)
            results.append(probe.compute())
    usual, other = results
    assert other.head.name == usual.head.name
    np.testing.assert_array_equal(other.matrix, usual.matrix)
    np.testing.assert_array_equal(other.instance_matrix, usual.instance_matrix)
    assert repr((other.cas, other.null, other.intervals())) == repr((usual.cas, usual.null, usual.intervals()))


def test_a_head_that_reads_images_without_a_gradient_is_told() -> None:
    class OfImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pixels = Body(nn.Linear(n, K)), nn.Linear(16, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + self.pixels(x.flatten(1))

    with CrossClassProbe(OfImages(), head="gradient") as probe:
        probe.model(images())
        with pytest.raises(InputError, match="expected what 'pixels' reads to have a gradient"):
            probe.update(torch.arange(N) % K)
        probe.model(images().requires_grad_())
        probe.update(torch.arange(N) % K)


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, spectral_norm])
def test_spectral_norm_in_train_mode_is_not_disturbed(norm: Callable[[nn.Module], nn.Module]) -> None:
    """Each read of a spectrally normalised weight takes a power-iteration step: the probe must not add one."""
    outcomes = []
    for probed in (False, True):
        torch.manual_seed(0)
        model = Body(norm(nn.Linear(n, K))).train()
        probe = CrossClassProbe(model) if probed else None
        outputs = []
        for _ in range(4):
            outputs.append(model(images()))
            if probe is not None:
                probe.update(torch.arange(N) % K)
        outcomes.append((torch.stack(outputs), {key: value.clone() for key, value in model.state_dict().items()}))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    for key, value in outcomes[0][1].items():
        assert torch.equal(value, outcomes[1][1][key])


def test_an_unparametrised_name_is_told() -> None:
    model = Body(parametrizations.spectral_norm(nn.Linear(n, K)))
    with CrossClassProbe(model) as probe:
        model(images())
        assert probe.head.kind == "Linear"


# what no linear head makes: (build, what the refusal says)
class Mixture(nn.Module):
    """Chen2020Adversarial's kind: the mean of its branches' softmaxes."""

    def __init__(self, log: bool = False) -> None:
        super().__init__()
        self.branch1, self.branch2 = Body(nn.Linear(n, K)), Body(nn.Linear(n, K))
        self.log = log

    def forward(self, x: Tensor) -> Tensor:
        mixed = (self.branch1(x).softmax(1) + self.branch2(x).softmax(1)) / 2
        return mixed.log() if self.log else mixed


class Loudest(Tokens):
    """volo's kind: the maximum over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.squeeze(1)).amax(1)


class Bare(nn.Module):
    """F.linear with a parameter of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(torch.randn(K, 16))])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.matrices[0])


class Auxiliary(Body):
    """Two outputs; the second head is not the model's answer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))
        self.auxiliary = nn.Linear(n, K)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        g = self.features(x)
        return self.head(g), self.auxiliary(g)


class Scaled(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits * 2


class Cosine(Body):
    def __init__(self) -> None:
        super().__init__(nn.Linear(n, K))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) * self.features(x).norm(dim=1, keepdim=True)


def zeroed() -> nn.Module:
    model = Body(nn.Linear(n, K))
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mean of softmaxes": (Mixture, r"'branch2\.head' \(off by .*'branch1\.head' \(off by .*probabilities, not logits"),
    "log of a mixture": (lambda: Mixture(log=True), "log-probabilities"),
    "softmax at the end": (lambda: Body(nn.Linear(n, K), lambda z: z.softmax(1)), "probabilities, not logits"),
    "maximum over tokens": (lambda: Loudest(0), "several positions"),
    "not finite": (lambda: Body(nn.Linear(n, K), lambda z: z / 0), "finite logits"),
    "two heads in a tuple": (Auxiliary, r"found 2: output\[0\] of shape \(12, 4\), .*output=0"),
    "scaled by sample": (Cosine, r"'head' \(off by"),
    "no tensor": (lambda: Body(nn.Linear(n, K), lambda z: z.tolist()), "output of type list"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_say_why_and_leave_the_pass_alone(build: Callable[[], nn.Module], message: str) -> None:
    torch.manual_seed(0)
    model = build().eval()
    with CrossClassProbe(model) as probe:
        model(images())  # the host's own pass does not fail
        assert probe.head is None
        with pytest.raises(InputError, match=message) as refusal:
            probe.update(torch.arange(N) % K)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("build", [lambda: Body(nn.Linear(n, K), lambda z: z.softmax(1)), Auxiliary])
def test_a_refusal_names_its_remedies_as_the_command_line_types_them_too(build: Callable[[], nn.Module]) -> None:
    model = build()
    with CrossClassProbe(model) as probe:
        model(images())
        with pytest.raises(InputError, match=r"with head='its\.name'") as refusal:
            probe.update(torch.arange(N) % K)
    (line,) = refusal.value.lines(lambda reference: f"--{reference.partition('=')[0]}")
    assert "with --head" in line
    assert "head='its.name'" not in line


def test_a_fault_of_the_probe_is_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr("ccf_plugin.probe.trace.detect_in_output", broken)
    model = Body(nn.Linear(n, K))
    with CrossClassProbe(model) as probe:
        assert model(images()).shape == (N, K)
        with pytest.raises(InputError, match=r"RuntimeError: out of luck"):
            probe.update(torch.arange(N) % K)


def test_mixtures_by_hand_and_by_gradients() -> None:
    torch.manual_seed(0)
    model = Mixture().eval().double()  # processors add float32 up in different orders
    batch, labels = images().double(), torch.arange(N) % K
    with CrossClassProbe(model) as probe:
        model(batch)
        with pytest.raises(InputError, match=r"head='its\.name'.*head='gradient'"):
            probe.update(labels)
    with CrossClassProbe(model, head="branch1.head") as probe:
        output = model(batch)
        probe.update(labels)
        by_hand = probe.compute()
    assert by_hand.head.name == "branch1.head"
    assert by_hand.accuracy == float((output.argmax(1) == labels).double().mean())  # of the whole model
    with CrossClassProbe(model.branch1) as probe:
        model.branch1(batch)
        probe.update(labels)
        np.testing.assert_allclose(by_hand.matrix, probe.compute().matrix, atol=1e-12)

    with CrossClassProbe(model, head="gradient") as probe:
        model(batch)
        probe.update(labels)
        found = probe.compute()
    assert found.head.name == "branch1.head + branch2.head"
    assert found.head.features == 2 * n
    np.testing.assert_allclose(found.class_attribution, expected_gradients(model, batch, labels), atol=1e-12)


def expected_gradients(model: Mixture, batch: Tensor, labels: Tensor) -> Tensor:
    """g ⊙ ∂p_y/∂g of the mixture p by the softmax's derivative: ½ p_y (W[y] − Σ_k p_k W[k]) per member."""
    columns = []
    for branch in (model.branch1, model.branch2):
        g, weight = branch.features(batch).detach(), branch.head.weight.detach()
        p = (g @ weight.T + branch.head.bias.detach()).softmax(1)
        own = p.gather(1, labels[:, None])
        columns.append(g * 0.5 * own * (weight[labels] - p @ weight))
    rows = torch.cat(columns, 1)
    return torch.stack([rows[labels == label].mean(0) for label in range(K)])


def test_a_member_that_reads_images_without_a_gradient_is_not_left_out() -> None:
    model = BesideTheBody()
    model.after = lambda logits: logits.softmax(1)  # type: ignore[method-assign]
    with CrossClassProbe(model, head="gradient") as probe:
        model(images())
        with pytest.raises(InputError, match="'beside' reads to have a gradient"):
            probe.update(torch.arange(N) % K)
        model(images().requires_grad_())
        probe.update(torch.arange(N) % K)
        assert probe.compute().head.name == "beside + head"


def test_layers_before_a_members_head_are_no_members() -> None:
    class Softened(SameSize):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    with CrossClassProbe(Softened(), head="gradient") as probe:
        probe.model(images().requires_grad_())
        assert probe.head.name == "second"


def test_activations_of_the_first_pass_are_kept_alive_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the head is known any layer may be it; of those that run at every token the oldest are let go."""
    row = N * 16 * 4 * 4  # bytes of one layer's tokens
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)), nn.Flatten(), nn.Linear(64, K))
    monkeypatch.setattr("ccf_plugin.probe.notes._FIRST_PASS_BYTES", 5 * row)
    kept = []
    with CrossClassProbe(model) as probe, torch.no_grad():
        watcher = probe._tracer.watcher
        model[-1].register_forward_hook(
            lambda *_: kept.append([call.inputs is not None for call in watcher._notes.calls])
        )
        model(torch.rand(N, 16, 4))
        assert probe.head.name == "21"
    assert kept[0] == [False] * 15 + [True] * 6  # the head itself runs once a sample


def test_a_head_that_was_let_go_is_found_in_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccf_plugin.probe.notes._FIRST_PASS_BYTES", 1)

    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.other = nn.Linear(4, K), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.head(x)
            self.other(x * 2)
            return logits.mean(1)

    model = Early()
    with CrossClassProbe(model) as probe:
        model(torch.rand(N, 16, 4))
        with pytest.raises(InputError, match=r"took too much memory.*run another"):
            probe.update(torch.arange(N) % K)
        model(torch.rand(N, 16, 4))
        probe.update(torch.arange(N) % K)
        assert probe.head.name == "head"


def test_gradients_need_the_graph_of_the_pass() -> None:
    model = Mixture()
    labels = torch.arange(N) % K
    with CrossClassProbe(model, head="gradient") as probe:
        with torch.no_grad():
            model(images())
        with pytest.raises(InputError, match="no_grad"):
            probe.update(labels)
        loss = model(images()).log().sum()
        loss.backward()
        with pytest.raises(InputError, match=r"before loss\.backward"):
            probe.update(labels)
        loss = model(images()).log().sum()
        probe.update(labels)
        loss.backward()  # the graph is still there
        assert probe.run([(images(), labels)]).clean_accuracy is not None


@pytest.mark.parametrize("part", ["weights", "features"])
def test_gradients_of_a_pass_whose_numbers_are_overwritten_behind_autograd(part: str) -> None:
    """No version counts what ``.data`` changes, as averaged weights are often swapped in."""

    class Keeping(Body):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.features(x)
            return self.head(self.kept)

    model, labels = Keeping(nn.Linear(n, K)), torch.arange(N) % K
    with CrossClassProbe(model, head="gradient") as probe:
        for _ in range(2):  # before and after the head is known
            model(images())
            (model.head.weight if part == "weights" else model.kept).data.mul_(-2)
            with pytest.raises(InputError, match=r"'head' as the pass left them.*call update before that"):
                probe.update(labels)
        model(images())
        probe.update(labels)
        found = probe.compute().matrix
    np.testing.assert_allclose(found, CrossClassProbe(model).run([(images(), labels)]).matrix, atol=2e-5)


def test_gradients_of_some_rows() -> None:
    torch.manual_seed(0)
    model = Mixture()
    labels = torch.arange(N) % K
    found = []
    for rows in (slice(0, 8), None):
        with CrossClassProbe(model, head="gradient", instances=True) as probe:
            model(images() if rows else images()[:8])
            probe.update(labels[:8], rows=rows)
            found.append(probe.compute())
    np.testing.assert_allclose(found[0].class_attribution, found[1].class_attribution, atol=rounding(TERMS))


def test_a_head_by_hand_scaled_in_place_afterwards_is_the_layer_itself() -> None:
    torch.manual_seed(0)
    model = Body(nn.Linear(n, K), lambda z: z.exp_())  # not linear any more, and written over the layer's output
    with CrossClassProbe(model, head="head") as probe:
        model(images())
        latest = probe._read(probe._take_record())
        assert probe.head.name == "head"
    assert torch.equal(latest.weight, model.head.weight)


def test_an_all_zero_head_is_known_by_its_output() -> None:
    """As torchvision's vit_b_16 is built: the values tell nothing, the tensor itself does."""
    model = zeroed()
    labels = torch.arange(N) % K
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(labels)
        with pytest.warns(UserWarning, match="attribution is zero for 0, 1, 2, 3"):
            assert probe.compute().cas == 0
        assert probe.head.name == "head"
        probe.reset()
        nn.init.normal_(model.head.weight)
        model(images())
        probe.update(labels)
        assert probe.compute().matrix.shape == (K, K)


def test_an_all_zero_head_that_is_scaled_is_found_once_it_is_trained() -> None:
    model = nn.Sequential(zeroed(), Scaled())
    labels = torch.arange(N) % K
    with CrossClassProbe(model) as probe:
        with torch.no_grad():
            model(images())
        with pytest.raises(InputError, match="zeros"):
            probe.update(labels)
        nn.init.normal_(model[0].head.weight)
        model(images())
        probe.update(labels)
        assert probe.head.name == "0.head"


def test_an_all_zero_head_that_is_scaled_is_known_by_the_graph() -> None:
    model = nn.Sequential(zeroed(), Scaled())
    with CrossClassProbe(model) as probe:
        model(images())
        assert probe.head.name == "0.head"


def test_a_bare_parameter_is_found_by_its_function() -> None:
    torch.manual_seed(0)
    model = Bare()
    labels = torch.arange(N) % K
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            model(images())
            probe.update(labels)
        found = probe.compute()
    assert found.head.name == "F.linear(matrices.0)"
    plain = nn.Linear(16, K)
    plain.weight = model.matrices[0]
    with CrossClassProbe(plain) as probe:
        plain(images().flatten(1))
        probe.update(labels)
        np.testing.assert_allclose(found.matrix, probe.compute().matrix, atol=rounding(TERMS))


def test_a_pass_around_the_head_is_told() -> None:
    class Skipping(Body):
        skip = False

        def forward(self, x: Tensor) -> Tensor:
            return self.features(x)[:, :K] if self.skip else super().forward(x)

    model = Skipping(nn.Linear(n, K))
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(torch.arange(N) % K)
        model.skip = True
        model(images())
        with pytest.raises(InputError, match="went around it"):
            probe.update(torch.arange(N) % K)


def test_a_layer_built_in_the_first_pass_is_found_by_its_function_and_then_as_a_layer() -> None:
    class Building(Body):
        def forward(self, x: Tensor) -> Tensor:
            g = self.features(x)
            if self.head is None:
                self.head = nn.Linear(n, K)
            return self.head(g)

    model = Building()
    with CrossClassProbe(model) as probe:
        for _ in range(2):
            model(images())
            probe.update(torch.arange(N) % K)
        found = probe.compute()
        assert probe.head.name == "head"
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(torch.arange(N) % K)
        np.testing.assert_allclose(found.matrix, probe.compute().matrix, atol=rounding(TERMS))


def test_a_head_replaced_after_attaching_is_found_again() -> None:
    model = Body(nn.Linear(n, K))
    with CrossClassProbe(model) as probe:
        model(images())
        probe.update(torch.arange(N) % K)
        model.head = nn.Linear(n, K + 1)
        model(images())
        with pytest.raises(InputError, match="'head' were built"):
            probe.update(torch.arange(N) % K)
        model(images())
        with pytest.raises(InputError, match=r"reset\(\)"):
            probe.update(torch.arange(N) % K)
        probe.reset()
        model(images())
        probe.update(torch.arange(N) % K)
        assert probe.head.classes == K + 1


def test_torchscript_is_refused_at_once() -> None:
    with pytest.warns(FutureWarning):
        traced = torch.jit.trace(Body(nn.Linear(n, K)), images())
    with pytest.raises(InputError, match="TorchScript"):
        CrossClassProbe(traced)
    with CrossClassProbe(nn.Sequential(traced)) as probe:
        probe.model(images())
        with pytest.raises(InputError, match="TorchScript"):
            probe.update(torch.arange(N) % K)


def test_exported_modules_say_that_they_show_nothing() -> None:
    exported = torch.export.export(Body(nn.Linear(n, K)).eval(), (images(),)).module()
    with CrossClassProbe(exported) as probe:
        exported(images())
        with pytest.raises(InputError, match="exported and quantised"):
            probe.update(torch.arange(N) % K)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_say_that_they_show_nothing() -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    if not torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no engine for quantised layers")
    quantised = quantization.quantize_dynamic(Body(nn.Linear(n, K)).eval(), {nn.Linear})
    with CrossClassProbe(quantised) as probe:
        quantised(images())
        with pytest.raises(InputError, match="quantised"):
            probe.update(torch.arange(N) % K)
