"""Which models of RobustBench, timm, torchvision and transformers the probe attaches to, on random weights: one row per
model.

``python -m probe.zoo_coverage robustbench|timm|torchvision|transformers`` (in ``tests``) tries them all and prints the
table, as it is committed in `coverage_tables`. The first two take a quarter of an hour each on one core, and up to 8 GB
of memory; the others a minute. Models in the table that a second argument names are not tried again.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from ccf_plugin import CrossClassProbe, InputError
from ccf_plugin.engine.outputs import output_entries

TABLES = Path(__file__).parent / "coverage_tables"
SECONDS = 600


@dataclass(frozen=True)
class Row:
    """One model: whether the probe attached, to what; otherwise why it refused, or why the model did not run."""

    model: str
    outcome: str  # attached | refused | not built | no pass
    kind: str = ""  # of the head: layer types, joined by +
    head: str = ""
    classes: str = ""
    features: str = ""
    error: str = ""  # of g Wᵀ + b, relative to the largest logit
    reason: str = ""
    stands_for: str = "1"  # how many names of the library are built of the same classes


def cover(name: str, model: nn.Module, size: tuple[int, int, int], stands_for: int = 1, as_it_is: bool = False) -> Row:
    """One random image pair through the model, with a probe attached.

    Args:
        name: of the row.
        model: the classifier.
        size: of an image.
        stands_for: see `Row`.
        as_it_is: in its own mode, with the weights that it was built with, also where a head starts as zeros.
    """
    if not as_it_is:
        model = model.eval()
        _wake(model)
    torch.manual_seed(0)
    number = str(stands_for)
    with CrossClassProbe(model) as probe, torch.no_grad():
        try:
            output = model(torch.rand(2, *size))
        except Exception as error:
            return Row(name, "no pass", reason=_line(error), stands_for=number)
        try:
            latest = probe._read(probe._take_record())
        except InputError as error:
            return Row(name, "refused", reason=_line(error), stands_for=number)
    head = probe.head
    assert head is not None
    assert latest.weight is not None
    assert any(torch.equal(latest.logits, entry.logits) for entry in output_entries(output))
    rest = latest.logits.double() - latest.features.double() @ latest.weight.double().T
    error = float((rest - rest[:1]).abs().max() / latest.logits.abs().max().clamp(min=1e-30))
    return Row(
        name, "attached", head.kind, head.name, str(head.classes), str(head.features), f"{error:.0e}", "", number
    )


def by_gradients(model: nn.Module, size: tuple[int, int, int]) -> tuple[str, float]:
    """The members that head="gradient" finds in a model without a linear head, and CAS of four random images."""
    model = model.eval()
    _wake(model)
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1])
    with CrossClassProbe(model, head="gradient") as probe, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two classes have samples
        model(torch.rand(4, *size).requires_grad_())
        probe.update(labels)
        result = probe.compute()
    assert probe.head is not None
    return probe.head.name, result.cas


def robustbench_names() -> list[str]:
    """All entries, as dataset/threat/Name."""
    from ccf_plugin.zoo.robustbench_models import import_robustbench

    import_robustbench()
    from robustbench.model_zoo import model_dicts

    return [
        f"{dataset.value}/{threat.value}/{name}"
        for dataset, threats in model_dicts.items()
        for threat, rows in threats.items()
        for name in rows
    ]


def robustbench_row(name: str) -> Row:
    try:
        model, size = robustbench_model(name)
    except Exception as error:
        return Row(name, "not built", reason=_line(error))
    return cover(name, model, size)


def robustbench_model(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The architecture with random weights, and its input size."""
    import torchvision

    from ccf_plugin.zoo.robustbench_models import load_robustbench

    with contextlib.ExitStack() as without:  # some factories move their parts to a GPU, or download weights
        for target, attribute, stand_in in (
            (nn.Module, "cuda", lambda module, *_: module),
            (torch.Tensor, "cuda", lambda tensor, *_: tensor),
            (nn.Module, "load_state_dict", lambda *_, **__: None),
            (torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: {}),
        ):
            without.enter_context(mock.patch.object(target, attribute, stand_in))
        loaded = load_robustbench(name, pretrained=False, model_dir=Path("absent"))
    return loaded.model, loaded.input_size or (3, 32, 32)


SMALL_TIMM = [  # the 30 groups that take least time
    "convit_tiny", "convnext_atto", "cs3darknet_focus_s", "deit_tiny_distilled_patch16_224", "dla46x_c", "dpn48b",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0",
    "eva02_tiny_patch14_224", "fastvit_t8", "ghostnet_050", "hgnetv2_b0", "legacy_seresnet18", "levit_128s",
    "mobilenetv3_small_050", "nf_regnet_b0", "pit_ti_224", "pit_ti_distilled_224", "pvt_v2_b0", "regnetx_002",
    "repghostnet_050", "resnet10t", "rexnet_100", "test_byobnet", "test_efficientnet", "test_vit", "visformer_tiny",
]  # fmt: skip


def timm_groups() -> dict[tuple[str, str, str], list[str]]:
    """Names by module, class and type of classifier, the smallest model of each group first."""
    import timm

    sizes: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for name in timm.list_models():
        model = _skeleton(lambda name=name: timm_model(name))
        try:
            classifier = model.get_classifier()
        except AttributeError:  # attention pools that hold their own
            classifier = None
        parts = classifier if isinstance(classifier, (tuple, list)) else [classifier]
        module = type(model).__module__.removeprefix("timm.models.")
        group = module, type(model).__name__, "+".join(type(part).__name__ for part in parts)
        sizes.setdefault(group, []).append((sum(p.numel() for p in model.parameters()), name))
    return {group: [name for _, name in sorted(found)] for group, found in sorted(sizes.items())}


def _skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """A timm model without the memory and time of its weights, where it can be built so."""
    on_host = functools.partial(torch.linspace, device="cpu")  # timm reads drop path's rates from it
    try:
        with torch.device("meta"), mock.patch("torch.linspace", on_host):
            return build()
    except Exception:  # its constructor looks at values
        return build()


def timm_model(name: str) -> nn.Module:
    """A classifier with random weights; names that stand for feature extractors get a head of 1,000 classes."""
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, pretrained=False)
        if not model.num_classes:
            model = timm.create_model(name, pretrained=False, num_classes=1000)
    return model


def timm_row(name: str, stands_for: int = 1) -> Row:
    try:
        model = timm_model(name)
    except Exception as error:
        return Row(name, "not built", reason=_line(error), stands_for=str(stands_for))
    return cover(name, model, model.pretrained_cfg["input_size"], stands_for)


TORCHVISION = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d",
    "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "vgg16", "vit_b_16", "wide_resnet50_2",
]  # fmt: skip
LARGE_TORCHVISION = ["convnext_tiny", "resnext50_32x4d", "swin_t", "vgg16", "wide_resnet50_2"]  # slow to build and run
AUXILIARY = ["googlenet", "inception_v3"]  # give a tuple in train mode
TRAINING = ", train mode"


def torchvision_row(name: str) -> Row:
    import torchvision

    short = name.removesuffix(TRAINING)
    torch.manual_seed(0)
    options = {"init_weights": False} if short in AUXILIARY else {}  # their truncated normal takes half a minute
    model = torchvision.models.get_model(short, **options)
    size = 299 if short == "inception_v3" else 224
    # vit_b_16's head starts as zeros: it is found all the same
    as_it_is = short == "vit_b_16" or short != name
    return cover(name, model.train(short != name), (3, size, size), as_it_is=as_it_is)


_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_VIT |= {"image_size": 32, "patch_size": 8}
_DINO = {key: value for key, value in _VIT.items() if key != "intermediate_size"}
_SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 4}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_PYRAMID = {**_STAGES, "num_attention_heads": [1, 1, 2, 2], "image_size": 64}
_BLOCKS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
_PARTS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {  # class, and its small configuration
    "BeitForImageClassification": ("BeitConfig", _VIT),
    "CLIPForImageClassification": ("CLIPConfig", {"vision_config": _VIT, "text_config": _PARTS}),
    "ConvNextForImageClassification": ("ConvNextConfig", _STAGES),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", _STAGES),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", _VIT),
    "DeiTForImageClassification": ("DeiTConfig", _VIT),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", _VIT),
    "Dinov2ForImageClassification": ("Dinov2Config", _DINO),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", _DINO),
    "EfficientNetForImageClassification": (
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "image_size": 64},
    ),
    "FocalNetForImageClassification": (
        "FocalNetConfig",
        {"embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3]},
    ),
    "LevitForImageClassification": ("LevitConfig", {"image_size": 64}),
    "LevitForImageClassificationWithTeacher": ("LevitConfig", {"image_size": 64}),
    "MobileNetV1ForImageClassification": ("MobileNetV1Config", {"depth_multiplier": 0.25}),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.25}),
    "MobileViTForImageClassification": ("MobileViTConfig", {"image_size": 64}),
    "MobileViTV2ForImageClassification": ("MobileViTV2Config", {"width_multiplier": 0.25, "image_size": 64}),
    "PoolFormerForImageClassification": ("PoolFormerConfig", _STAGES),
    "PvtForImageClassification": ("PvtConfig", _PYRAMID),
    "PvtV2ForImageClassification": ("PvtV2Config", _PYRAMID),
    "RegNetForImageClassification": ("RegNetConfig", {**_BLOCKS, "groups_width": 8}),
    "ResNetForImageClassification": ("ResNetConfig", {**_BLOCKS, "layer_type": "basic"}),
    "SegformerForImageClassification": ("SegformerConfig", _PYRAMID),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": _VIT, "text_config": _PARTS}),
    "SwiftFormerForImageClassification": (
        "SwiftFormerConfig",
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "image_size": 64},
    ),
    "SwinForImageClassification": ("SwinConfig", _SWIN),
    "Swinv2ForImageClassification": ("Swinv2Config", _SWIN),
    "ViTForImageClassification": ("ViTConfig", _VIT),
    "ViTMSNForImageClassification": ("ViTMSNConfig", _VIT),
}


def transformers_row(name: str) -> Row:
    import transformers

    config_name, options = TRANSFORMERS[name]
    config = getattr(transformers, config_name)(num_labels=10, **options)
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name)(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # some start near zero, which leaves nothing of an image at the end
            nn.init.ones_(module.weight)
    size = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", 64)
    return cover(name, model, (3, size, size) if isinstance(size, int) else (3, *size))


def read_table(library: str) -> list[Row]:
    """The committed rows."""
    with (TABLES / f"{library}.csv").open(encoding="utf-8", newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError inside after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _wake(model: nn.Module) -> None:
    """Give matrices that start as zeros (some heads do) random values: zeros tell nothing apart."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(std=0.02)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:600]


NAMES: dict[str, Callable[[], list[str]]] = {
    "robustbench": robustbench_names,
    "torchvision": lambda: [*TORCHVISION, *(name + TRAINING for name in AUXILIARY)],
    "transformers": lambda: list(TRANSFORMERS),
}
ROWS: dict[str, Callable[[str], Row]] = {
    "robustbench": robustbench_row,
    "timm": timm_row,
    "torchvision": torchvision_row,
    "transformers": transformers_row,
}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    library = sys.argv[1]
    known = set()
    if len(sys.argv) > 2:
        with Path(sys.argv[2]).open(encoding="utf-8", newline="") as file:
            known = {row["model"] for row in csv.DictReader(file)}
    writer = csv.DictWriter(sys.stdout, [field.name for field in fields(Row)], lineterminator="\n")
    if not known:
        writer.writeheader()
    if library == "timm":
        work = {names[0]: len(names) for names in timm_groups().values()}
    else:
        work = dict.fromkeys(NAMES[library](), 1)
    for name, number in work.items():
        if name in known:
            continue
        with time_limit(SECONDS), contextlib.redirect_stdout(sys.stderr):
            try:
                row = timm_row(name, number) if library == "timm" else ROWS[library](name)
            except TimeoutError as error:
                row = Row(name, "no pass", reason=_line(error), stands_for=str(number))
        writer.writerow(asdict(row))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
