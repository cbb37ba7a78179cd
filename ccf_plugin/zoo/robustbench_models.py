"""RobustBench's model zoo by name: ``robustbench:[dataset/threat/]Name``, and the repairs it needs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import Tensor, nn

from ccf_plugin.errors import CCFError, InputError, UnavailableError, did_you_mean, one_line
from ccf_plugin.files import nothing_left_on_failure
from ccf_plugin.zoo.checkpoints import check_finite
from ccf_plugin.zoo.class_lists import CIFAR10_CLASSES
from ccf_plugin.zoo.containment import quiet, weights_only
from ccf_plugin.zoo.folders import is_web_page
from ccf_plugin.zoo.image_files import Preprocess
from ccf_plugin.zoo.installed import robustbench_coordinates
from ccf_plugin.zoo.sources import LoadedModel
from ccf_plugin.zoo.weight_files import refusal

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_RESNETS = "robustbench.model_zoo.architectures.resnet"


@dataclass(frozen=True)
class Entry:
    """One model of the zoo: its coordinates and its row in RobustBench's table."""

    dataset: str
    threat: str
    name: str
    row: dict[str, Any]

    @property
    def spec(self) -> str:
        return f"robustbench:{self.dataset}/{self.threat}/{self.name}"

    @property
    def timm_name(self) -> str | None:
        """The name under which robustbench registers it in timm, for those that it loads from there."""
        import timm

        name = f"{self.name.lower().replace('-', '_')}_{self.dataset}_{self.threat.lower()}"
        return name if timm.is_model(name) else None

    def files(self, model_dir: Path) -> list[Path]:
        """Where robustbench keeps its weights; none for those that timm or torchvision keep."""
        if self.timm_name or not self.row["gdrive_id"]:
            return []
        path = model_dir / self.dataset / self.threat / f"{self.name}.pt"
        if isinstance(self.row["gdrive_id"], list):  # an ensemble, one file per member
            return [path.with_name(f"{path.name}_m{i}.pt") for i in range(len(self.row["gdrive_id"]))]
        return [path]


def import_robustbench() -> ModuleType:
    """``robustbench``, imported with the repairs that version 1.1.1 needs. Raises UnavailableError where it cannot be.

    It does ``from autoattack import AutoAttack``, but its dependency pyautoattack installs the module ``pyautoattack``:
    the name is aliased, with the submodule that robustbench uses, where no ``autoattack`` is installed. Its
    ``benchmark`` calls it with arguments that pyautoattack 0.2 lacks. It imports pkg_resources, which warns of its own
    removal.
    """
    try:
        if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
            sys.modules["autoattack"] = importlib.import_module("pyautoattack")
            sys.modules["autoattack.state"] = importlib.import_module("pyautoattack.state")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"pkg_resources is deprecated", category=UserWarning)
            importlib.import_module("robustbench.data")
            evaluation: Any = importlib.import_module("robustbench.eval")
            if "log_path" not in inspect.signature(evaluation.AutoAttack).parameters:
                evaluation.AutoAttack = _with_benchmark_interface(evaluation.AutoAttack)
            return importlib.import_module("robustbench")
    except Exception as error:
        raise UnavailableError(f"robustbench cannot be imported ({one_line(error)}); reinstall it") from error


def _with_benchmark_interface(attack: Any) -> Any:
    """pyautoattack's AutoAttack with the arguments and the result that robustbench's ``benchmark`` expects."""

    class AutoAttack(attack):  # type: ignore[misc]
        def __init__(self, model: nn.Module, *, log_path: object = None, **options: Any) -> None:
            super().__init__(model, **options)

        def run_standard_evaluation(
            self, images: Tensor, labels: Tensor, *, bs: int, state_path: Path | None
        ) -> Tensor:
            adversarial, _ = super().run_standard_evaluation(images, labels, batch_size=bs, state_path=state_path)
            return cast(Tensor, adversarial)

    return AutoAttack


def robustbench_resnets() -> ModuleType:
    """The module with RobustBench's ``PreActResNet`` and ``PreActBlock``, without the rest of robustbench.

    Importing robustbench takes seconds (timm, torchvision, AutoAttack), which no training run on them needs; the file
    itself needs torch alone. It is registered under its own name, so a later import of robustbench finds these classes.
    """
    if _RESNETS in sys.modules:
        return sys.modules[_RESNETS]
    package = importlib.util.find_spec("robustbench")  # finds the package without running it
    if package is None or not package.submodule_search_locations:
        raise UnavailableError("robustbench is not installed; its PreActResNet is needed: pip install robustbench")
    file = Path(package.submodule_search_locations[0]).joinpath("model_zoo", "architectures", "resnet.py")
    spec = importlib.util.spec_from_file_location(_RESNETS, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise UnavailableError(f"this robustbench has no {file}; install robustbench 1.1.1")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_RESNETS] = module
    return module


def load_robustbench(name: str, *, pretrained: bool, model_dir: Path) -> LoadedModel:
    """The zoo's model ``[dataset/threat/]Name``; ``pretrained=False`` builds its architecture alone.

    Raises InputError for an unknown name and a damaged file, UnavailableError where the weights cannot be downloaded.
    """
    entry = find_entry(name)
    model = _load(entry, model_dir) if pretrained else _build(entry)
    preprocess, input_size = _preprocessing(entry)
    return LoadedModel(
        model=model.float().eval(),
        spec=entry.spec,
        name=entry.name,
        num_classes=_CLASSES[entry.dataset],
        class_names=CIFAR10_CLASSES if entry.dataset == "cifar10" else None,
        data=entry.dataset,
        threat=benchmark_threat(entry.dataset, entry.threat),
        preprocess=preprocess,
        input_size=input_size,
    )


def find_entry(name: str) -> Entry:
    """The model ``[dataset/threat/]Name``. Raises InputError for one that RobustBench does not have."""
    dataset, threat, name = robustbench_coordinates(name)
    dataset, threat, rows = zoo_rows(dataset, threat)
    if name not in rows:
        zoo = _zoo()
        elsewhere = [f"{d}/{t}/{name}" for d, threats in zoo.items() for t, others in threats.items() if name in others]
        hint = f"; it exists as robustbench:{elsewhere[0]}" if elsewhere else did_you_mean(name, rows)
        raise InputError(f"RobustBench has no model {name!r} for {dataset}/{threat}{hint}")
    return Entry(dataset, threat, name, rows[name])


def benchmark_threat(dataset: str, threat: str) -> dict[str, Any]:
    """RobustBench's own norm and eps for a data set and threat model."""
    if threat == "L2":
        return {"norm": "L2", "eps": 0.5}
    return {"norm": "Linf", "eps": 4 / 255 if dataset == "imagenet" else 8 / 255}


def zoo_rows(dataset: str, threat: str) -> tuple[str, str, dict[str, dict[str, Any]]]:
    """A data set and threat model in RobustBench's spelling, and its models' rows by name; InputError for another."""
    zoo = _zoo()
    dataset = _exact("dataset", dataset, zoo)
    threat = _exact(f"threat model for {dataset}", threat, zoo[dataset])
    return dataset, threat, zoo[dataset][threat]


def _zoo() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    import_robustbench()
    from robustbench.model_zoo import model_dicts

    return {dataset.value: {threat.value: rows for threat, rows in by.items()} for dataset, by in model_dicts.items()}


def _exact(kind: str, name: str, known: Sequence[str] | dict[str, Any]) -> str:
    for option in known:
        if option.lower() == name.lower():
            return option
    raise InputError(f"RobustBench has no {kind} {name!r}; it has {', '.join(known)}")


def _build(entry: Entry) -> nn.Module:
    """The bare architecture."""
    try:
        with quiet(), weights_only():
            if entry.timm_name:  # the constructors in robustbench's table misspell these names
                import timm

                built = timm.create_model(entry.timm_name, pretrained=False, num_classes=_CLASSES[entry.dataset])
            else:
                built = entry.row["model"]()
    except Exception as error:
        raise UnavailableError(f"robustbench cannot build {entry.spec} here: {one_line(error)}") from error
    model: nn.Module = built
    return model


def _load(entry: Entry, model_dir: Path) -> nn.Module:
    from robustbench.utils import load_model

    files = entry.files(model_dir)
    by_hand = {file for file in files if file.exists()}
    _refuse_web_pages(entry, files, by_hand)
    with nothing_left_on_failure(*files):
        try:
            with quiet(), weights_only():
                model: nn.Module = load_model(
                    entry.name, model_dir=model_dir, dataset=entry.dataset, threat_model=entry.threat
                )
        except Exception as error:
            _refuse_web_pages(entry, files, by_hand)
            raise _explain(entry, files, by_hand, error) from error
        check_finite(model, ", ".join(map(str, files)) or entry.spec)
    return model


def _explain(entry: Entry, files: list[Path], by_hand: set[Path], error: Exception) -> CCFError:
    """The error to raise when robustbench fails: no download, a damaged file, or one of another model."""
    missing = [file for file in files if not file.exists()]
    if (missing or not files) and not isinstance(error, pickle.UnpicklingError):
        return UnavailableError(f"could not download {entry.spec} ({one_line(error, 120)}){_placing(entry, files)}")
    names = ", ".join(str(file) for file in files)
    if isinstance(error, RuntimeError) and "state_dict" in str(error):
        return InputError(f"{names}: a checkpoint of another architecture than {entry.spec}: {one_line(error, 400)}")
    if by_hand:
        place = "; then put it in its place" if "nothing is unpickled" in (why := refusal(error, files[0])) else ""
        return InputError(f"{names}: not loaded as {entry.spec}: {why}{place}")
    return UnavailableError(f"the download of {entry.spec} cannot be used: {refusal(error)}{_placing(entry, files)}")


def _placing(entry: Entry, files: list[Path]) -> str:
    """How to place the files by hand."""
    if not files:
        return "; robustbench takes its weights from the network, so run again when there is one"
    ids = entry.row["gdrive_id"]
    pairs = zip(files, ids if isinstance(ids, list) else [ids], strict=True)
    steps = " and ".join(f"https://drive.google.com/uc?id={drive_id} as {file}" for file, drive_id in pairs)
    return f"; to place it by hand, save {steps}"


def _refuse_web_pages(entry: Entry, files: list[Path], by_hand: set[Path]) -> None:
    """Say so where HTML, which Google Drive's quota sends, lies under the name of weights; remove it if new."""
    pages = [file for file in files if file.is_file() and is_web_page(file)]
    for page in set(pages) - by_hand:
        page.unlink()
    if pages:
        remedy = "remove it and run again" if pages[0] in by_hand else "it was removed; run again later"
        raise UnavailableError(
            f"{entry.spec}: {pages[0]} held a web page instead of weights (a download quota?); "
            f"{remedy}{_placing(entry, files)}"
        )


def _preprocessing(entry: Entry) -> tuple[Preprocess | None, tuple[int, int, int]]:
    """RobustBench's own resizing and cropping, and the size (C, H, W) that it leads to."""
    if entry.dataset != "imagenet":
        return None, (3, 32, 32)
    from PIL import Image
    from robustbench.data import get_preprocessing
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from torchvision import transforms

    with quiet():
        full = get_preprocessing(BenchmarkDataset(entry.dataset), ThreatModel(entry.threat), entry.name, None)
    preprocess: Preprocess = transforms.Compose([t for t in full.transforms if not isinstance(t, transforms.ToTensor)])
    width, height = preprocess(Image.new("RGB", (640, 480))).size
    return preprocess, (3, height, width)
