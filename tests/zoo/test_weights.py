"""Files as the field's code writes them: each family made here, its network's logits computed without the package."""

from __future__ import annotations

import copy
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.models import load_model
from ccf_plugin.zoo.sources import CustomWeights
from ccf_plugin.zoo.weight_files import conversion
from ccf_plugin.zoo.weights import load_weights, restored

MEAN, STD = (0.4, 0.5), (0.2, 0.3)


def network(seed: int = 0, num_classes: int = 3) -> nn.Module:
    """Two channels, 4×4 pixels; moved BatchNorm statistics."""
    torch.manual_seed(seed)
    layers = {
        "conv": nn.Conv2d(2, 5, 3),
        "bn": nn.BatchNorm2d(5),
        "flat": nn.Flatten(),
        "fc": nn.Linear(20, num_classes),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    model(torch.rand(8, 2, 4, 4))
    return model.eval()


class Normalized(nn.Module):
    """A wrapper as many repositories have one: constants of its own, the network as an attribute."""

    def __init__(self, model: nn.Module, mean: str = "mean", std: str = "std") -> None:
        super().__init__()
        self.names = mean, std
        self.register_buffer(mean, torch.tensor(MEAN).view(2, 1, 1))
        self.register_buffer(std, torch.tensor(STD).view(2, 1, 1))
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (getattr(self, name) for name in self.names)
        logits: Tensor = self.model((images - mean) / std)
        return logits


class Layer(nn.Module):
    """robustness' InputNormalize, and advertorch's: a module that normalises."""

    def __init__(self, mean: str, std: str) -> None:
        super().__init__()
        self.register_buffer(mean, torch.tensor(MEAN).view(2, 1, 1))
        self.register_buffer(std, torch.tensor(STD).view(2, 1, 1))


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()}


STATE = network().state_dict()
OTHER = network(1).state_dict()
SGD = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)
ROBUSTNESS = {
    **under("module.normalizer.", Layer("new_mean", "new_std").state_dict()),
    **under("module.model.", STATE),
    **under("module.attacker.model.", STATE),
    **under("module.attacker.normalize.", Layer("new_mean", "new_std").state_dict()),
}
MAIR = {
    "n_classes": torch.tensor(3),
    "mean": torch.tensor([0.4, 0.5]),
    "std": torch.tensor([0.2, 0.3]),
    **under("model.", STATE),
}
MAIR_LAYER = {
    "n_classes": torch.tensor(3),
    "model.0.mean": torch.tensor(MEAN),
    "model.0.std": torch.tensor(STD),
    **under("model.1.module.", STATE),
}
OLD = {key: value for key, value in STATE.items() if not key.endswith("num_batches_tracked")}


class Family(NamedTuple):
    """What a file holds, what the note says, whether (images − mean) / std stands before, and the file's name."""

    content: Any
    says: str = ""
    is_normalized: bool = False
    name: str = "weights.pth"


KEPT = [np.float32(3.0), np.zeros(3), np.array(["a"]), np.random.get_state(), 1j, Path("a"), datetime.now()]
KEPT += [timedelta(1), SimpleNamespace(a=1), {1, 2}, b"b", torch.Size([1]), Counter("a")]
FAMILIES = {
    "a state dict": Family(STATE),
    "of DataParallel": Family(under("module.", STATE), "prefix `module.` removed"),
    "of a compiled network": Family(under("_orig_mod.", STATE)),
    "of a compiled part": Family(under("model._orig_mod.", STATE), "prefix `model.` removed"),
    "net, acc, epoch": Family({"net": STATE, "acc": 93.5, "epoch": 3}, "`net` of the file"),
    "net of DataParallel": Family(
        {"net": under("module.", STATE), "acc": np.float64(93.5), "epoch": 3},
        "`net` of the file, prefix `module.` removed",
    ),
    "MAIR's": Family({"rmodel": MAIR, "curr_epoch": 1, "optimizer": SGD.state_dict()}, "`rmodel` of the file"),
    "MAIR's with a layer": Family({"rmodel": MAIR_LAYER}, "prefix `model.1.module.` removed", is_normalized=True),
    "an averaged model": Family(AveragedModel(network()).state_dict(), "prefix `module.` removed"),
    "Lightning's": Family(
        {"state_dict": under("model.", STATE), "epoch": 2, "pytorch-lightning_version": "2.6.6", "callbacks": {}},
        "`state_dict` of the file, prefix `model.` removed",
    ),
    "Lightning's net": Family({"state_dict": under("net.", STATE)}, "prefix `net.` removed"),
    "robustness'": Family(
        {"model": ROBUSTNESS, "optimizer": SGD.state_dict(), "epoch": 1, "adv_prec1": torch.tensor(50.0)},
        "`model` of the file, prefix `module.model.` removed, its normalisation by mean 0.4, 0.5 and std 0.2, 0.3",
        is_normalized=True,
        name="checkpoint.pt.best",
    ),
    "KDSWA's before it averages": Family(
        {"state_dict": {**STATE, **under("normalize.", Layer("mean", "std").state_dict())}, "best_ra": 0.5},
        "normalisation by mean 0.4, 0.5 and std 0.2, 0.3 applied",
        is_normalized=True,
    ),
    **{
        f"{outer} with a state dict": Family({outer: {"state_dict": STATE}}, f"`{outer}.state_dict` of the file")
        for outer in ("params", "weights", "network", "model")
    },
    "a wrapper's with constants": Family(
        Normalized(network()).state_dict(), "prefix `model.` removed, its normalisation", is_normalized=True
    ),
    "a wrapper's, of other names": Family(
        Normalized(network(), "mu", "sigma").state_dict(), "applied", is_normalized=True
    ),
    "a wrapper's, of images in 0..255": Family(
        {
            **under("model.", STATE),
            **{f"norm.{key}": 255 * torch.tensor(v) for key, v in (("mean", MEAN), ("std", STD))},
        },
        "prefix `model.` removed, its normalisation",
        is_normalized=True,
    ),
    "an average of the parameters alone": Family(
        {"net": STATE, "ema": dict(network(1).named_parameters())},
        "`net` of the file, other values of its parameters, without buffers, left out (`ema`: an average?)",
    ),
    "an average in a list": Family(
        {"net": STATE, "ema": {"decay": 0.9, "shadow_params": list(network(1).parameters())}},
        "left out (`ema.shadow_params`: an average?)",
    ),
    "before torch 0.4.1": Family(OLD),
    "timm's": Family({"state_dict": STATE, "arch": "x", "args": Namespace(lr=0.1), "metric": 3.0}, "`state_dict`"),
    "what scripts keep beside it": Family({"net": STATE, "kept": KEPT}, "`net`"),
    "an average that has not begun": Family(
        {"state_dict": STATE, "swa_state_dict": {key: value.clone() for key, value in STATE.items()}}, "`state_dict`"
    ),
    **{f"called {name}": Family(STATE, name=name) for name in ("a.th", "a.PTH", "a.Pth.Tar", "weights", "a.model")},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_loaded_and_said_in_one_line(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    torch.save(family.content, tmp_path / family.name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, is_normalized = restored(lambda _: network(7), CustomWeights(tmp_path / family.name))
    notes = [str(warning.message) for warning in caught]
    assert len(notes) == bool(family.says)
    assert family.says in "".join(notes)
    assert "\n" not in "".join(notes)
    images = torch.rand(4, 2, 4, 4)
    mean, std = (torch.tensor(values).view(2, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(model(images), network()((images - mean) / std if family.is_normalized else images))
    assert is_normalized == family.is_normalized
    assert not model.training


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "an attribute": (lambda model: nn.Sequential(model), "prefix `0.` added"),
    "constants of its own": (Normalized, "prefix `model.` added, the network's own mean, std kept"),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_wrapper_takes_the_file_of_what_it_wraps(name: str, prefix: str, tmp_path: Path) -> None:
    wrap, says = WRAPPERS[name]
    torch.save({"net": under(prefix, STATE)}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=says):
        model, is_normalized = restored(lambda _: wrap(network(7)), CustomWeights(tmp_path / "a.pth"))
    images = torch.rand(4, 2, 4, 4)
    torch.testing.assert_close(model(images), wrap(network()).eval()(images))
    assert is_normalized == (wrap is Normalized)


SEVERAL = {
    "state_dict or swa_state_dict": {"state_dict": STATE, "swa_state_dict": OTHER, "swa_n": 3},
    "state_dict or state_dict_ema": {"state_dict": under("module.", STATE), "state_dict_ema": OTHER},
    "model or model_ema": {"model": STATE, "model_ema": OTHER},
    "branch1 or branch2": {**under("branch1.", STATE), **under("branch2.", OTHER)},
    "state_dict.net or state_dict.ema_net": {"state_dict": {**under("net.", STATE), **under("ema_net.", OTHER)}},
    "models.0 or models.1": {"models": [STATE, OTHER]},
}


@pytest.mark.parametrize("labels", SEVERAL)
def test_of_several_sets_of_weights_none_is_guessed(labels: str, tmp_path: Path) -> None:
    torch.save(SEVERAL[labels], path := tmp_path / "a.pth.tar")
    with pytest.raises(InputError) as caught:
        load_weights(network(), path)
    first, second = labels.split(" or ")
    found = str(caught.value)
    assert found.startswith(f"checkpoint_key: expected one of the state dicts that fit in {path}, ")
    assert all(label in found.partition(", found")[0] for label in (first, second))
    with pytest.raises(InputError, match=r"checkpoint_key: expected one that fits .*did you mean"):
        load_weights(network(), path, key=f"{second}z")
    for key, state in ((first, STATE), (second, OTHER)):
        model = network(7)
        with pytest.warns(UserWarning, match=r"a\.pth\.tar: "):
            load_weights(model, path, key=key)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_part_of_a_network_is_taken_only_by_its_name(tmp_path: Path) -> None:
    content = {**under("backbone.", STATE), "projector.weight": torch.zeros(2, 2)}
    torch.save(content, tmp_path / "a.pt")
    message = r"1 unexpected \(projector\.weight\); name the factory that made it, or take backbone alone as"
    with pytest.raises(InputError, match=message):
        load_weights(network(), tmp_path / "a.pt")
    with pytest.warns(UserWarning, match=r"prefix `backbone\.` removed, 1 tensors left out \(projector\.weight\)"):
        load_weights(network(), tmp_path / "a.pt", key="backbone")
    torch.save({**STATE, "extra.weight": torch.zeros(1, 1)}, tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"1 unexpected \(extra\.weight\); name the factory that made it$"):
        load_weights(network(), tmp_path / "b.pt")


def test_what_is_learned_is_no_constant_whatever_its_name(tmp_path: Path) -> None:
    model = nn.Sequential(network())
    model.register_parameter("mu", nn.Parameter(torch.zeros(2)))
    torch.save(STATE, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"missing \(mu"):
        load_weights(model, tmp_path / "a.pt")


def test_two_normalisations_that_differ_are_not_guessed(tmp_path: Path) -> None:
    other = {"other.mean": torch.zeros(2), "other.std": torch.ones(2)}
    torch.save(
        {**under("model.", STATE), **under("normalize.", Layer("mean", "std").state_dict()), **other}, tmp_path / "a"
    )
    with pytest.raises(InputError, match="4 unexpected"):
        load_weights(network(), tmp_path / "a")


def test_the_user_s_normalisation_goes_before_the_file_s(tmp_path: Path) -> None:
    torch.save({"model": ROBUSTNESS}, tmp_path / "a.pt")
    own = CustomWeights(tmp_path / "a.pt", mean=(0.0, 0.1), std=(1.0, 2.0))
    with pytest.warns(UserWarning, match="its normalisation by .* left out"):
        model, is_normalized = restored(lambda _: network(7), own)
    images = torch.rand(4, 2, 4, 4)
    mean, std = torch.tensor([0.0, 0.1]).view(2, 1, 1), torch.tensor([1.0, 2.0]).view(2, 1, 1)
    torch.testing.assert_close(model(images), network()((images - mean) / std))
    assert is_normalized


def test_the_number_of_classes_is_the_file_s(tmp_path: Path) -> None:
    def build(num_classes: int | None) -> nn.Module:
        return network(7, num_classes or 10)

    torch.save({"net": STATE}, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="`net` of the file"):
        assert restored(build, CustomWeights(tmp_path / "a.pt")).model(torch.rand(1, 2, 4, 4)).shape == (1, 3)
    with pytest.raises(InputError, match=r"2 of another shape \(fc\.weight, fc\.bias\)"):
        restored(build, CustomWeights(tmp_path / "a.pt", num_classes=5))


def test_safetensors_of_any_name(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model", "weights.SafeTensors"):
        save_file(under("module.", STATE), tmp_path / name)
        model = network(7)
        with pytest.warns(UserWarning, match=r"prefix `module\.` removed"):
            load_weights(model, tmp_path / name)
        assert torch.equal(model.get_submodule("fc").weight, STATE["fc.weight"])


class Record:
    """MAIR's RecordManager: an object of a class of its own, beside the weights."""


@pytest.mark.parametrize(
    "content", [{"rmodel": MAIR, "recordmanager": Record()}, network(), {"net": network(), "acc": Record()}]
)
def test_the_remedy_for_python_objects_works_and_keeps_the_file(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="nothing is unpickled here") as caught:
        load_weights(network(), path)
    _, _, remedy = str(caught.value).partition("in Python: ")
    assert remedy == conversion(path)
    exec(remedy, {})
    assert path.read_bytes() == before
    model = network(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_weights(model, tmp_path / "best.pth.weights.pt")
    assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dataset", [10, 100])
def test_the_package_s_own_network_takes_the_paper_s_files(dataset: int, tmp_path: Path) -> None:
    """Keys and shapes as in Rice et al. 2020, which the paper's code keeps; RobustBench's twin computes the logits."""
    from ccf_plugin.zoo.robustbench_models import robustbench_resnets

    resnets = robustbench_resnets()
    torch.manual_seed(0)
    paper = resnets.PreActResNet(resnets.PreActBlock, [2, 2, 2, 2], dataset, bn_before_fc=True, out_shortcut=True)
    paper = paper.eval()
    torch.save({"state_dict": under("module.", paper.state_dict()), "test_acc": 0.8}, tmp_path / "model_best.pth")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    with pytest.warns(UserWarning, match=r"`state_dict` of the file, prefix `module\.` removed"):
        loaded = load_model("preact_resnet18", checkpoint=tmp_path / "model_best.pth", mean=mean, std=std)
    images = torch.rand(2, 3, 32, 32)
    shape = (3, 1, 1)
    expected = paper((images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))
    torch.testing.assert_close(loaded.model(images), expected)
    assert (loaded.name, loaded.is_normalized) == ("preact_resnet18", True)


def test_options_reach_the_network(tmp_path: Path) -> None:
    from ccf_plugin.zoo.preact import NarrowPreActResNet

    narrow = NarrowPreActResNet(num_classes=4, width=2, blocks=[1, 1, 1, 1]).eval()
    torch.save(narrow.state_dict(), tmp_path / "a.pt")
    options = {"width": 2, "blocks": [1, 1, 1, 1]}
    loaded = load_model("narrow_preact_resnet18", checkpoint=tmp_path / "a.pt", options=options)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.model(images), narrow(images))
    assert not loaded.is_normalized
    with pytest.raises(InputError, match="has no option 'widht'"):
        load_model("narrow_preact_resnet18", checkpoint=tmp_path / "a.pt", options={"widht": 2})
    with pytest.raises(InputError, match="checkpoint: expected the weights of narrow_preact_resnet18, found none"):
        load_model("narrow_preact_resnet18", options=options)


def test_timm_takes_a_checkpoint_of_one_s_own(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    trained = timm.create_model("test_vit", pretrained=False, num_classes=4, img_size=32).eval()
    torch.save({"state_dict": trained.state_dict(), "args": Namespace(model="test_vit")}, tmp_path / "a.pth.tar")
    images = torch.rand(2, 3, 32, 32)
    with pytest.warns(UserWarning, match=r"resized to 32×32 and normalised by mean 0\.5, 0\.5, 0\.5"):
        loaded = load_model("timm:test_vit", checkpoint=tmp_path / "a.pth.tar", options={"img_size": 32})
    torch.testing.assert_close(loaded.model(images), trained((images - 0.5) / 0.5))
    assert (loaded.input_size, loaded.data) == ((3, 32, 32), None)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    with pytest.warns(UserWarning, match="`state_dict` of the file"):
        loaded = load_model(
            "timm:test_vit",
            checkpoint=tmp_path / "a.pth.tar",
            options={"img_size": 32},
            num_classes=4,
            mean=mean,
            std=std,
        )
    expected = trained((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(loaded.model(images), expected)
    assert loaded.preprocess is not None
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(loaded.preprocess(Image.fromarray(pixels))), pixels), "images of that size stay"


@pytest.mark.parametrize("size", [None, 64])
def test_images_that_timm_resizes_and_crops_are_told_of(size: int | None, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet10t", pretrained=False, num_classes=4).state_dict(), tmp_path / "a.pt")
    options = {} if size is None else {"img_size": size}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_model(
            "timm:resnet10t", checkpoint=tmp_path / "a.pt", options=options, mean=[0.5] * 3, std=[0.5] * 3
        )
    told = [str(one.message) for one in caught if "resized and cropped to 176×176" in str(one.message)]
    assert len(told) == (size is None)
    assert loaded.input_size == ((3, 176, 176) if size is None else (3, 64, 64))


def test_data_parallel_on_no_device_is_what_it_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parallel_code.py").write_text(
        "import torch\n\ndef net():\n    model = torch.nn.DataParallel(torch.nn.Linear(3, 2))\n"
        "    model.device_ids = list(range(COUNT))\n    return model\n\nCOUNT = 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import parallel_code

    torch.save(nn.DataParallel(trained := nn.Linear(3, 2)).state_dict(), tmp_path / "a.pt")
    for count, expected in ((0, nn.Linear), (1, nn.Linear), (2, nn.DataParallel)):
        monkeypatch.setattr(parallel_code, "COUNT", count)
        assert type(load_model("python:parallel_code:net").model) is expected
    monkeypatch.setattr(parallel_code, "COUNT", 0)
    with pytest.warns(UserWarning, match=r"prefix `module\.` removed"):
        loaded = load_model("python:parallel_code:net", checkpoint=tmp_path / "a.pt")
    assert torch.equal(loaded.model.get_parameter("weight"), trained.weight)


def test_architectures_of_robustbench_are_had_by_their_name(tmp_path: Path) -> None:
    """TRADES' network without its repository; a narrow one, with the block that its code builds and never runs."""
    spec = "python:robustbench.model_zoo.architectures.wide_resnet:WideResNet"
    options = {"depth": 10, "widen_factor": 1, "sub_block1": True}
    built = load_model(spec, options=options).model
    torch.save(state := copy.deepcopy(built.state_dict()), tmp_path / "model-wideres-epoch76.pt")
    loaded = load_model(spec, options=options, checkpoint=tmp_path / "model-wideres-epoch76.pt")
    assert any(key.startswith("sub_block1.") for key in state)
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (
            "Identity",
            {"checkpoint_key": "net"},
            "checkpoint_key: expected a checkpoint that it is a key of, found none",
        ),
        (
            "Identity",
            {"mean": [123.7], "std": [58.4]},
            r"expected that of images in \[0, 1\], found 123.7, of images in 0..255; divide mean and std by 255",
        ),
        ("Identity", {"mean": [0.5]}, "std: expected 1 values, one per channel, found nothing"),
        ("Flatten", {"options": {"colour": 3}}, "calling it with {'colour': 3} failed"),
    ],
)
def test_arguments_that_do_not_go_together(code: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(f"python:torch.nn:{code}", **arguments)


@pytest.mark.parametrize("argument", [{"mean": [0.5]}, {"num_classes": 3}, {"options": {"a": 1}}, {"checkpoint": "x"}])
def test_models_that_know_their_weights_take_no_others(argument: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(argument))}: expected none, or a model with weights of your own"):
        load_model("robustbench:Wong2020Fast", **argument)


def test_a_network_that_normalises_images_in_0_to_255_is_noted() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1))
    network.register_buffer("mean", torch.tensor([123.7]))
    network.register_buffer("std", torch.tensor([58.4]))
    with pytest.warns(UserWarning, match=r"own mean is up to 123.7, as of images in 0..255"):
        restored(lambda _: network, CustomWeights())
