from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from support.graphs import FakeGraphs
from support.reads import Reads
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe
from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.images import check_images
from ccf_plugin.engine.modes import seeded_by
from ccf_plugin.errors import InputError
from ccf_plugin.threat import threat_model
from ccf_plugin.zoo.attack_names import attack_names
from ccf_plugin.zoo.attacks import _PER_IMAGE, build_attack, is_replayed

# fmt: off
LINF = [
    "FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM",
    "UPGD", "APGD", "APGDT", "DIFGSM", "TIFGSM", "Jitter", "NIFGSM", "PGDRS",
    "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA", "PIFGSM", "PIFGSMPP", "FAB", "Square", "CWPGD",
]
# fmt: on
L2 = ["PGDL2", "PGDRSL2", "TPGDL2", "CWPGDL2", "APGD", "APGDT", "FAB", "Square"]
OPTIONS: dict[str, dict[str, Any]] = {
    "APGDT": {"n_classes": 5},
    "FAB": {"n_classes": 5},
    "Square": {"n_queries": 20},
    "SPSA": {"nb_sample": 4},
    "PGDRS": {"noise_batch_size": 2},
    "PGDRSL2": {"noise_batch_size": 2},
}
CASES = [(name, "Linf") for name in LINF] + [(name, "L2") for name in L2]
Batch = tuple[Tensor, Tensor]


# Those that may not attack in train mode, which the test below finds out anew.
ON_PARTS = {"APGD", "APGDT", "FAB", "Square"}


class Failing(nn.Module):
    """A classifier that fails once ``fail`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5), nn.Dropout(0.5))
        self.fail = False

    def forward(self, images: Tensor) -> Tensor:
        if self.fail:
            raise RuntimeError("no memory")
        logits: Tensor = self.layers(images)
        return logits


def state_of(model: nn.Module) -> list[Any]:
    """Modes, requires_grad and gradients of everything."""
    modes = [module.training for module in model.modules()]
    return [modes, [p.requires_grad for p in model.parameters()], [p.grad is None for p in model.parameters()]]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_attacks_that_break_batches_up_are_known(name: str, norm: str, network: nn.Module, batch: Batch) -> None:
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    images, labels = batch
    labels = network.eval()(images).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 5  # one image is fooled already
    sizes.clear()
    threat = threat_model(norm=norm, eps="8/255" if norm == "Linf" else 0.5, steps=3)
    build_attack(name, network, threat, options=OPTIONS.get(name))(images, labels)
    assert (min(sizes) < len(images)) == (name in ON_PARTS)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", ["Square", "PGD"])
def test_a_probes_seeds_are_an_attacks_own(name: str, seed: int | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    images, threat = torch.rand(20, 3, 16, 16), threat_model(eps="32/255", steps=2)
    with torch.no_grad():
        labels = model(images).argmax(1)  # Square changes none that is wrong already
    attack = build_attack(name, model, threat, options=OPTIONS.get(name), num_classes=5, seed=seed)
    with CrossClassProbe(model, head="3", instances=True) as probe:
        repeated = probe.run([(images, labels)], attack, seeds=3)
        single = probe.run([(images, labels)], attack, seed=1)
    assert len({repeat["instance_cas"] for repeat in repeated.repeats}) == 3
    assert repeated.repeats[1]["instance_cas"] == single.instance_cas
    assert attack.seed == (seed if name == "PGD" else None)


def test_an_attack_that_seeds_itself_draws_fresh_noise_for_training(network: nn.Module, batch: Batch) -> None:
    images, _ = batch
    threat = threat_model(eps="1/255", steps=1)

    def starts(**options: Any) -> list[Tensor]:
        torch.manual_seed(3)
        attack = build_attack("Square", network.eval(), threat, options={"n_queries": 1}, **options)
        return [attack(images, network(images).argmax(1)) for _ in range(2)]

    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    for fresh in (False, True):
        seen.clear()
        starts(fresh_noise=fresh)
        calls = [torch.cat([x.flatten() for x in half]) for half in (seen[: len(seen) // 2], seen[len(seen) // 2 :])]
        assert torch.equal(*calls) != fresh
    again = [torch.cat([x.flatten() for x in seen])]
    seen.clear()
    starts(fresh_noise=True)
    assert torch.equal(torch.cat([x.flatten() for x in seen]), again[0])  # the caller's seed decides


def test_autoattacks_own_attacks_get_the_fresh_seed(network: nn.Module) -> None:
    attack = build_attack("AutoAttack", network, threat_model(), fresh_noise=True)
    with seeded_by(attack._attack, 12345):
        seeds = [inner.seed for inner in attack._attack._autoattack.attacks]
    assert seeds == [12345] * len(seeds)
    assert len(seeds) >= 3


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if case[0] in ON_PARTS])
def test_what_runs_the_model_on_parts_of_a_batch_is_refused_in_train_mode(
    name: str, norm: str, network: nn.Module
) -> None:
    with pytest.raises(InputError, match="expected 'eval' with attack"):
        build_attack(name, network, threat_model(norm=norm), mode="train", options=OPTIONS.get(name))


@pytest.mark.parametrize(
    ("name", "norm", "mode"),
    [(*case, mode) for mode in ("eval", "train") for case in CASES if mode == "eval" or case[0] not in ON_PARTS],
)
def test_attacks_stay_in_the_ball_and_leave_the_model_alone(
    name: str, norm: str, mode: Any, network: nn.Module, batch: Batch
) -> None:
    network.train()
    frozen = network.get_submodule("layer2.0.bn1")
    frozen.eval()
    network.get_parameter("conv1.weight").requires_grad_(False)
    network.get_parameter("linear.weight").grad = torch.ones_like(network.get_parameter("linear.weight"))
    before, statistics = state_of(network), [buffer.clone() for buffer in network.buffers()]
    threat = threat_model(norm=norm, eps="8/255" if norm == "Linf" else 0.5, steps=3)
    images, labels = batch
    labels = network.eval()(images).argmax(dim=1)  # else attacks that stop at the first error have nothing to do
    network.train()
    frozen.eval()

    attack = build_attack(name.lower(), network, threat, mode=mode, options=OPTIONS.get(name))
    adversarial = attack(images, labels)

    assert attack.name == name
    assert adversarial.shape == images.shape
    assert adversarial.dtype == images.dtype
    assert not adversarial.requires_grad
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    difference = (adversarial - images).flatten(1)
    distance = difference.abs().max(dim=1).values if norm == "Linf" else difference.norm(dim=1)
    assert distance.max() <= threat.eps + 1e-6
    assert distance.max() > 0 or name in {"APGD", "APGDT", "FAB", "Square"}, (
        "these keep an image that they cannot break"
    )
    assert state_of(network) == before
    assert torch.equal(network.get_parameter("linear.weight").grad, torch.ones_like(network.linear.weight))
    same = all(torch.equal(a, b) for a, b in zip(network.buffers(), statistics, strict=True))
    assert same == (mode == "eval"), "BatchNorm statistics move in train mode only"


@pytest.mark.parametrize(("name", "norm"), [("PGD", "Linf"), ("PGDL2", "L2"), ("FFGSM", "Linf"), ("APGD", "Linf")])
def test_equals_plain_torchattacks_bit_for_bit(name: str, norm: str, network: nn.Module, batch: Batch) -> None:
    threat = threat_model(norm=norm, steps=4)
    parameters = {"PGD": "eps alpha steps", "PGDL2": "eps alpha steps", "FFGSM": "eps alpha", "APGD": "eps steps"}
    values = {"eps": threat.eps, "alpha": threat.step_size, "steps": threat.steps}
    plain = getattr(torchattacks, name)(network.eval(), **{key: values[key] for key in parameters[name].split()})
    torch.manual_seed(3)
    expected = plain(*batch)
    torch.manual_seed(3)
    assert torch.equal(build_attack(name, network.train(), threat)(*batch), expected)


class Tilted(nn.Module):
    """A small classifier in float64, where rounding decides nothing; it can draw in every pass, to no effect."""

    def __init__(self, *, draws: bool = False) -> None:
        super().__init__()
        self.draws = draws
        self.weight = nn.Parameter(torch.randn(5, 768, generator=torch.Generator().manual_seed(0)).double())

    def forward(self, images: Tensor) -> Tensor:
        if self.draws:
            torch.rand_like(images)
        return ((images.double().flatten(1) - 0.5).tanh() @ self.weight.T).tanh() * 5


EACH_ITS_OWN = [(name, norm) for name, norm in [*CASES, ("GN", "Linf"), ("VANILA", "Linf")] if name in _PER_IMAGE]


@pytest.mark.parametrize(("name", "norm"), EACH_ITS_OWN)
def test_with_a_seed_an_images_example_does_not_depend_on_its_batch(name: str, norm: str) -> None:
    threat = threat_model(norm=norm, eps="32/255" if norm == "Linf" else 1.0, steps=3)
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(1)).float() / 255
    model = Tilted().eval()
    labels = model(images).argmax(1)
    attack = build_attack(name, model, threat, options=OPTIONS.get(name), seed=3)
    assert attack.describe()["per_image_noise"]
    before = torch.get_rng_state()
    whole = attack(images, labels)
    assert torch.equal(torch.get_rng_state(), before)
    for size in (1, 2, 3, 5, 12):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(size))
        parts = [attack(images[rows], labels[rows]) for rows in order.split(size)]
        torch.testing.assert_close(torch.cat(parts), whole[order], rtol=0, atol=1e-6)
    other = build_attack(name, model, threat, options=OPTIONS.get(name), seed=4)(images, labels)
    assert torch.equal(other, whole) == (name in WITHOUT_NOISE)


def test_a_models_own_draws_are_torchs_and_shift_no_image() -> None:
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    threat = threat_model(norm="L2", steps=3)
    quiet, drawing = (build_attack("PGD", Tilted(draws=draws), threat, seed=3) for draws in (False, True))
    assert torch.equal(quiet(images, labels), drawing(images, labels))


# They draw nothing, or nothing unless asked.
WITHOUT_NOISE = {"FGSM", "BIM", "MIFGSM", "NIFGSM", "SINIFGSM", "PIFGSM", "PIFGSMPP", "UPGD", "VANILA"}


@pytest.mark.parametrize("name", ["APGD", "Square"])
def test_attacks_that_seed_themselves_do_so_by_the_seed(name: str) -> None:
    model, images = Tilted().eval(), torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1)  # what is wrong already is not attacked

    def crafted(**seeding: Any) -> Tensor:
        return build_attack(name, model, threat_model(eps=0.5, steps=2), **seeding)(images, labels)

    assert torch.equal(crafted(seed=3), crafted(options={"seed": 3}))
    assert torch.equal(crafted(seed=4, options={"seed": 3}), crafted(seed=3))
    assert torch.equal(crafted(), crafted(seed=0))
    assert not torch.equal(crafted(seed=3), crafted(seed=4))


@pytest.mark.parametrize("name", ["SPSA", "PGDRS", "python:zoo.own_attacks:random_signs"])
def test_other_attacks_draw_as_ever_and_say_so(name: str, network: nn.Module, batch: Batch) -> None:
    options, norm = OPTIONS.get(name), "L2" if name.startswith("python:") else "Linf"
    with_seed = build_attack(name, network.eval(), threat_model(norm=norm, steps=2), options=options, seed=3)
    without = build_attack(name, network, threat_model(norm=norm, steps=2), options=options)
    assert with_seed.describe() == {**without.describe(), "per_image_noise": False}
    results = []
    for attack in (with_seed, without):
        torch.manual_seed(8)
        results.append(attack(*batch))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["PGD", "APGD"])
def test_works_without_grad_and_in_inference_mode(name: str, network: nn.Module, batch: Batch) -> None:
    attack = build_attack(name, network, threat_model(steps=2))
    torch.manual_seed(0)
    expected = attack(*batch)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(attack(*batch), expected)
    torch.manual_seed(0)
    with torch.inference_mode():
        images, labels = batch[0].clone(), batch[1].clone()
        assert images.is_inference()
        assert torch.equal(attack(images, labels), expected)


def test_a_failing_model_is_restored(batch: Batch) -> None:
    model = Failing()
    model.layers[1].weight.requires_grad_(False)
    before = state_of(model)
    attack = build_attack("PGD", model, threat_model(steps=2))
    model.fail = True
    with pytest.raises(RuntimeError, match="no memory"):
        attack(*batch)
    assert state_of(model) == before


@pytest.mark.parametrize("name", ["APGD", "Square", "PGD"])
def test_the_global_rng_is_not_seeded(name: str, network: nn.Module, batch: Batch) -> None:
    attack = build_attack(name, network, threat_model(steps=1), options=OPTIONS.get(name))
    torch.manual_seed(5)
    attack(*batch)
    first = torch.rand(3)
    torch.manual_seed(6)
    attack(*batch)
    assert not torch.equal(torch.rand(3), first)


def test_autoattack_runs_and_repeats(batch: Batch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    attack = build_attack("autoattack", model, threat_model(eps=0.3), options={"n_classes": 5})
    images = batch[0]
    labels = model(images).argmax(dim=1)
    adversarial = attack(images, labels)
    assert (model(adversarial).argmax(dim=1) != labels).all()
    assert torch.equal(attack(images, labels), adversarial)
    taken = {"norm": "Linf", "eps": 0.3, "step_size": None, "steps": None}
    assert attack.describe() == {"attack": "AutoAttack", **taken, "options": {"n_classes": 5}}


def test_every_attack_of_the_library_is_built(network: nn.Module) -> None:
    for name in attack_names():
        norm = "L2" if name in {"CW", "DeepFool"} or name.endswith("L2") else "Linf"
        assert build_attack(name.upper(), network, threat_model(norm=norm)).name == name


def test_descriptions(network: nn.Module) -> None:
    threat = threat_model(steps=7)
    assert build_attack(None, network, threat).describe() == {"attack": "PGD", **threat.as_dict()}
    assert build_attack("fgsm", network, threat).describe()["steps"] is None
    assert build_attack("PIFGSM", network, threat).describe()["steps"] == 7
    l2 = threat_model(norm="L2", steps=7)
    assert build_attack(None, network, l2).describe() == {"attack": "PGDL2", **l2.as_dict()}
    assert build_attack("CW", network, l2).describe()["eps"] is None


@pytest.mark.parametrize(
    ("name", "norm", "options", "message"),
    [
        ("PDG", "Linf", {}, "did you mean 'PGD'"),
        ("FGSM", "L2", {}, "works in Linf, but the norm is L2; use PGDL2"),
        ("TPGDL2", "Linf", {}, "works in L2, but the norm is Linf; use PGD"),
        ("CW", "Linf", {}, "works in L2"),
        ("MultiAttack", "Linf", {}, "not an attack on its own"),
        ("lgv", "Linf", {}, "not an attack on its own"),
        ("PGD", "Linf", {"random_strat": True}, "its options: random_start; did you mean 'random_start'"),
        ("PGD", "Linf", {"eps": 1}, "threat model"),
        ("TIFGSM", "Linf", {"kernel_name": "round"}, "refuses its parameters"),
    ],
)
def test_what_cannot_be_built_is_refused(
    name: str, norm: str, options: dict[str, Any], message: str, network: nn.Module
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_attack(name, network, threat_model(norm=norm), options=options)
    assert "\n" not in str(caught.value)


def test_three_channel_attacks_say_so(network: nn.Module) -> None:
    attack = build_attack("TIFGSM", network, threat_model())
    with pytest.raises(InputError, match="3 channels only, found 1"):
        attack(torch.rand(2, 1, 16, 16), torch.zeros(2, dtype=torch.long))


def test_quiet(network: nn.Module, batch: Batch, capfd: pytest.CaptureFixture[str]) -> None:
    class Plain(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :5]

    build_attack("PGD", Plain(), threat_model(steps=1))(*batch)
    build_attack("FAB", network, threat_model(steps=1), options={"n_classes": 5})(*batch)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 2, 2), 200.0), "found 200 to 200; divide by 255"),
        (torch.randint(0, 255, (1, 3, 2, 2), dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 3, 2, 2), -2.0), "normalisation belongs inside the model"),
        (torch.full((1, 3, 2, 2), float("nan")), "found nan"),
    ],
)
def test_images_out_of_range_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_images(images, "test split")


def test_images_within_tolerance_pass() -> None:
    check_images(torch.tensor([-5e-7, 1 + 5e-7]), "test split")
    check_images(torch.empty(0, 3, 2, 2), "test split")


@pytest.mark.parametrize(("name", "norm"), [("PGD", "Linf"), ("PGDL2", "L2"), ("TPGD", "Linf"), ("FFGSM", "Linf")])
def test_attacks_run_through_the_channels_last_forward(name: str, norm: str, network: nn.Module, batch: Batch) -> None:
    threat = threat_model(norm=norm, eps=0.3 if norm == "L2" else 8 / 255, steps=2)
    channels_last = Forward(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    images, labels = batch
    for laid_out in (images, images.contiguous(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        adversarial = build_attack(name, channels_last, threat)(laid_out, labels)
        assert adversarial.shape == images.shape
        assert not torch.equal(adversarial, images)


OWN = "python:zoo.own_attacks:"


def test_an_own_class_is_built_like_one_of_the_librarys(network: nn.Module, batch: Batch) -> None:
    network.train()
    before = state_of(network)
    threat = threat_model(eps=0.1, steps=9)
    attack = build_attack(f"{OWN}OneStep", network, threat)
    assert torch.equal(attack(*batch), build_attack("FGSM", network, threat)(*batch))
    assert state_of(network) == before
    assert attack.describe() == {
        "attack": f"{OWN}OneStep",
        "norm": "Linf",
        "eps": 0.1,
        "step_size": None,
        "steps": None,
    }
    halved = build_attack(f"{OWN}OneStep", network, threat, options={"scale": 0.5})(*batch)
    torch.testing.assert_close(halved, build_attack("FGSM", network, threat_model(eps=0.05))(*batch))


def test_an_own_function_makes_an_attack(network: nn.Module, batch: Batch) -> None:
    threat = threat_model(norm="L2", eps=0.25)
    attack = build_attack(f"{OWN}random_signs", network, threat)
    moved = (attack(*batch) - batch[0]).abs()
    assert 0 < moved.max() <= 0.25 + 1e-6
    assert attack.describe() == {"attack": f"{OWN}random_signs", **threat.as_dict(), "steps": None}
    shifted = build_attack(f"{OWN}by_keywords", network, threat, options={"shift": 0.5})(*batch)
    assert torch.equal(shifted, (batch[0] + 0.5).clamp(0, 1))


def test_an_own_attack_that_writes_into_what_it_gets(network: nn.Module, batch: Batch) -> None:
    images, labels = (tensor.clone() for tensor in batch)
    assert torch.equal(build_attack(f"{OWN}overwriting", network, threat_model())(*batch), images * 0.5)
    assert torch.equal(batch[0], images)
    assert torch.equal(batch[1], labels)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("OneStpe", {}, "did you mean 'OneStep'"),
        ("OneStep", {"scael": 2}, "its options: scale; did you mean 'scale'"),
        ("OneStep", {"eps": 1}, "eps is set through the threat model"),
        ("NUMBER", {}, "expected a class or function, found int"),
        ("nothing", {}, "expected a callable from it, found NoneType"),
        ("without_a_model", {}, "expected a class or function of a model"),
        ("flat", {}, r"expected images of shape \(6, 3, 16, 16\) from it, found \(6, 768\)"),
        ("beyond", {}, r"what attack python:zoo.own_attacks:beyond returns"),
    ],
)
def test_an_own_attack_that_does_not_fit_is_refused(
    name: str, options: dict[str, Any], message: str, network: nn.Module, batch: Batch
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_attack(OWN + name, network, threat_model(), options=options)(*batch)
    assert "\n" not in str(caught.value)


REPLAYED = [
    "FGSM",
    "BIM",
    "RFGSM",
    "PGD",
    "EOTPGD",
    "FFGSM",
    "TPGD",
    "MIFGSM",
    "NIFGSM",
    "PGDL2",
    "TPGDL2",
    "CWPGD",
    "CWPGDL2",
]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", REPLAYED)
def test_a_replayed_attack_gives_what_it_gives_as_it_is(name: str, mode: Any, network: nn.Module, batch: Batch) -> None:
    norm = "L2" if name.endswith("L2") else "Linf"
    images, labels = batch
    calls = [(images, labels), (images.flip(3), labels), (images[:3], labels[:3]), (images[:3], labels[:3])] * 2
    results, states = [], []
    for graphs, recorded in ((FakeGraphs(), 2), (FakeGraphs(serves=False), 0)):
        model = copy.deepcopy(network).train()
        attack = build_attack(name, Forward(model), threat_model(norm=norm, steps=2), mode=mode, graphs=graphs)
        torch.manual_seed(5)
        found = []
        for one in calls:
            found.append(attack(*one))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.9)
        results.append(found)
        states.append([state_of(model), [value.clone() for value in model.state_dict().values()]])
        assert graphs.recorded == recorded
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert states[0][0] == states[1][0]
    assert all(torch.equal(one, other) for one, other in zip(states[0][1], states[1][1], strict=True))


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "TPGD"])
def test_a_replayed_attack_takes_each_batchs_own_noise(name: str, network: nn.Module, batch: Batch) -> None:
    threat = threat_model(norm="L2" if name.endswith("L2") else "Linf", steps=2)
    images, labels = batch
    graphs = FakeGraphs()
    attack, plain = (
        build_attack(name, Forward(network.eval()), threat, seed=1, graphs=use)
        for use in (graphs, FakeGraphs(serves=False))
    )
    for flipped in (images, images.flip(3), images, images.flip(2)):
        assert torch.equal(attack(flipped, labels), plain(flipped, labels))
    assert graphs.replayed


@pytest.mark.parametrize("name", [*sorted(set(LINF + L2) - set(REPLAYED)), "python:zoo.own_attacks:OneStep"])
def test_other_attacks_are_never_recorded(name: str, network: nn.Module, batch: Batch) -> None:
    graphs = FakeGraphs()
    norm = "L2" if name.endswith("L2") else "Linf"
    threat = threat_model(norm=norm, steps=1)
    attack = build_attack(name, network, threat, options=OPTIONS.get(name), graphs=graphs)
    for _ in range(3):
        attack(*batch)
    assert (graphs.watched, graphs.recorded) == (0, 0)
    assert not is_replayed(name, threat)


@pytest.mark.parametrize("name", REPLAYED)
def test_a_replayed_attack_asks_the_device_nothing_and_draws_nothing_on_the_host(
    name: str, network: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCF_CUDA_GRAPHS", "1")
    threat = threat_model(norm="L2" if name.endswith("L2") else "Linf", steps=2)
    assert is_replayed(name, threat)
    attack = build_attack(name, network, threat)
    attack(*batch)  # its first call checks the images
    host = random.getstate(), np.random.get_state()[1].tolist()
    with Reads() as reads:
        attack(*batch)
    assert reads.count == 0
    assert host == (random.getstate(), np.random.get_state()[1].tolist())


def test_l2_twins_are_replayed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CCF_CUDA_GRAPHS", raising=False)  # which the tests on a GPU set
    assert not is_replayed(None, threat_model())  # unless it is asked for
    monkeypatch.setenv("CCF_CUDA_GRAPHS", "1")
    assert is_replayed(None, threat_model())
    assert is_replayed("tpgd", threat_model(norm="L2"))
    assert not is_replayed("APGD", threat_model(norm="L2"))
