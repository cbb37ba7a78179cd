"""Which models of RobustBench and timm the probe attaches to, on random weights: one row per model.

``python -m probe.zoo_coverage robustbench|timm`` (in ``tests``) tries them all and prints the table, as it is committed
in `coverage_tables`. Each takes a quarter of an hour on one core, and up to 8 GB of memory. Models in the table that a
second argument names are not tried again.
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
from unittest import mock

import torch
from torch import nn

from ccf_plugin import CrossClassProbe, InputError
from ccf_plugin.probe.head import logit_candidates

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


def cover(name: str, model: nn.Module, size: tuple[int, int, int], stands_for: int = 1) -> Row:
    """One random image pair through the model, with a probe attached."""
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
            latest = probe._take_pass()
        except InputError as error:
            return Row(name, "refused", reason=_line(error), stands_for=number)
    head = probe.head
    assert head is not None
    assert latest.weight is not None
    assert any(torch.equal(latest.logits, logits) for logits in logit_candidates(output))
    rest = latest.logits.double() - latest.features.double() @ latest.weight.double().T
    error = float((rest - rest[:1]).abs().max() / latest.logits.abs().max())
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
    work = dict.fromkeys(robustbench_names(), 1) if library == "robustbench" else {}
    if library == "timm":
        work = {names[0]: len(names) for names in timm_groups().values()}
    for name, number in work.items():
        if name in known:
            continue
        with time_limit(SECONDS), contextlib.redirect_stdout(sys.stderr):
            try:
                row = robustbench_row(name) if library == "robustbench" else timm_row(name, number)
            except TimeoutError as error:
                row = Row(name, "no pass", reason=_line(error), stands_for=str(number))
        writer.writerow(asdict(row))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
