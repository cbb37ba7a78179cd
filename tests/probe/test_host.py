"""The host is untouched: a model and a training run are the same, bit for bit, with a probe and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from support.float32 import CHOICES, chosen
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ccf_plugin import CrossClassProbe, InputError

from . import oracle
from .conftest import ROUNDING, small_batch, small_network

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
)


def hooks_on(model: nn.Module) -> int:
    return sum(len(getattr(module, kind, ())) for module in model.modules() for kind in HOOKS)


def train(steps: int, probe_of: Callable[[nn.Module], CrossClassProbe | None]) -> dict[str, object]:
    """A short PGD training run with dropout and BatchNorm; all that it leaves behind."""
    model = small_network()
    model[0][0].weight.requires_grad_(False)
    model[0][1].eval()
    probe = probe_of(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for step in range(steps):
        images, labels = small_batch(seed=step)
        adversarial = (images + torch.empty_like(images).uniform_(-0.1, 0.1)).requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(adversarial), labels), adversarial)
        adversarial = (adversarial + 0.05 * gradient.sign()).clamp(0, 1).detach()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(adversarial), labels).backward()
        if probe is not None:
            probe.update(labels)
        optimizer.step()
    if probe is not None:
        probe.compute()
        probe.run([small_batch()], lambda x, y: torch.rand_like(x), seed=1)
        probe.detach()
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "rng": torch.get_rng_state(),
        "hooks": hooks_on(model),
        "keys": list(model.__dict__),
    }


@pytest.mark.parametrize("instances", [False, True])
def test_training_is_bit_identical_with_a_probe(instances: bool) -> None:
    plain = train(8, lambda model: None)
    probed = train(8, lambda model: CrossClassProbe(model, instances=instances))
    assert list(plain["state"]) == list(probed["state"])
    for key, value in plain["state"].items():
        assert torch.equal(value, probed["state"][key]), key
    for before, after in zip(plain["gradients"], probed["gradients"], strict=True):
        assert (before is None and after is None) or torch.equal(before, after)
    assert torch.equal(plain["rng"], probed["rng"])
    assert {key: plain[key] for key in ("modes", "hooks", "keys")} == {
        key: probed[key] for key in ("modes", "hooks", "keys")
    }


def normal(model: nn.Module, probe: CrossClassProbe) -> None:
    images, labels = small_batch()
    model(images)
    probe.update(labels)
    probe.compute()


def never_run(model: nn.Module, probe: CrossClassProbe) -> None:
    pass


def wrong_labels(model: nn.Module, probe: CrossClassProbe) -> None:
    model(small_batch()[0])
    with pytest.raises(InputError):
        probe.update(torch.zeros(3))


def failing_model(model: nn.Module, probe: CrossClassProbe) -> None:
    model(torch.zeros(2, 3))


def failing_attack(model: nn.Module, probe: CrossClassProbe) -> None:
    def attack(x: Tensor, y: Tensor) -> Tensor:
        model.train()
        raise RuntimeError("out of luck")

    probe.run([small_batch()], attack, seed=5)


def failing_loader(model: nn.Module, probe: CrossClassProbe) -> None:
    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        yield small_batch()
        raise OSError("disk gone")

    probe.run(loader())


def interrupted(model: nn.Module, probe: CrossClassProbe) -> None:
    def attack(x: Tensor, y: Tensor) -> Tensor:
        raise KeyboardInterrupt

    probe.run([small_batch()], attack)


@pytest.mark.parametrize(
    "use", [normal, never_run, wrong_labels, failing_model, failing_attack, failing_loader, interrupted]
)
def test_no_hook_and_no_changed_mode_survives(use: Callable[[nn.Module, CrossClassProbe], None]) -> None:
    model = small_network()
    model[1].eval()
    others: list[str] = []
    model[2].register_forward_hook(lambda *_: others.append("kept"))
    before = hooks_on(model), [module.training for module in model.modules()], torch.get_rng_state()
    attributes = [set(vars(module)) for module in model.modules()]
    failing = use not in (normal, never_run, wrong_labels)
    outcome = pytest.raises(BaseException) if failing else contextlib.nullcontext()  # noqa: PT011
    with outcome, CrossClassProbe(model) as probe:
        use(model, probe)
    assert torch.equal(torch.get_rng_state(), before[2])
    assert (hooks_on(model), [module.training for module in model.modules()]) == before[:2]
    assert [set(vars(module)) for module in model.modules()] == attributes
    model(small_batch()[0])
    assert others[-1] == "kept"


def test_a_pass_leaves_no_gradient_and_no_graph_behind() -> None:
    model = small_network()
    images, labels = small_batch()
    with CrossClassProbe(model, instances=True) as probe:
        output = model(images)
        probe.update(labels)
        assert output.requires_grad
        assert all(p.grad is None for p in model.parameters())
        assert probe._passes.sums is not None
        assert not probe._passes.sums.attributions.requires_grad


class Synchronising(TorchDispatchMode):
    """Notes the operations whose result's value or shape the host must wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 else ()
        by_mask = isinstance(indices, (list, tuple)) and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices
        )
        if by_mask or any(name.startswith(waiting) for waiting in self.WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options", [{}, {"instances": True}, {"instances": True, "max_per_class": 2}, {"centre": True}], ids=str
)
def test_neither_a_pass_nor_update_waits_for_the_device(options: dict[str, object]) -> None:
    model = small_network()
    images, labels = small_batch()
    with CrossClassProbe(model, **options) as probe:
        model(images)
        probe.update(labels)  # finding the head does wait, once
        with Synchronising() as mode:
            for _ in range(2):
                model(images)
                probe.update(labels)
                with probe.capture():
                    model(images)
                probe.update(labels[:4], rows=slice(4))
        assert mode.found == []
        with Synchronising() as mode:
            probe.compute()
        assert mode.found != []  # the check itself sees what waits


@pytest.mark.parametrize("choose", CHOICES)
def test_a_host_may_let_torch_round_what_float32_products_read(choose: Callable[[], None]) -> None:
    model = small_network(seed=3).eval()
    images, labels = small_batch()
    with chosen(choose), CrossClassProbe(model) as probe, torch.no_grad():
        for _ in range(2):
            model(images)
            probe.update(labels)
        features = model[0](images)
        found = probe.compute().matrix
    expected = oracle.correlation_matrix(features.tolist(), model[2].weight.tolist(), labels.tolist())
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
