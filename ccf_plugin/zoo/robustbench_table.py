"""RobustBench's published table: which models it has for a threat, and their accuracies by its own measurement."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.folders import MODEL_FOLDER, folder_from
from ccf_plugin.zoo.robustbench_models import find_entry, zoo_rows

# The headings of the tables in the README that the package carries.
_DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet": "imagenet"}
_ROW = re.compile(r"^\|[^|]*\|[^|]*?\*\*(?P<name>[^*|]+)\*\*[^|]*\|[^|]*\|(?P<clean>[^|]*)\|(?P<robust>[^|]*)\|")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True)
class Published:
    """Fractions as RobustBench states them: clean accuracy, and accuracy under AutoAttack."""

    clean_accuracy: float
    autoattack_accuracy: float


def published_accuracies(dataset: str, threat: str) -> dict[str, Published]:
    """What RobustBench publishes of the models of a data set and threat model, by name.

    The package does not carry the repository's ``model_info``; its description, the README, has the same table. Empty
    where a release's README has none.
    """
    text = metadata.metadata("robustbench").json.get("description", "")
    return _read_tables(str(text)).get((dataset, threat), {})


def entries(dataset: str, threat: str) -> tuple[str, str, list[str]]:
    """RobustBench's names for a data set and a threat model (any case), and its models for them.

    Raises:
        InputError: it has no such data set or threat model, or one without a radius (corruptions).
    """
    dataset, threat, names = zoo_rows(dataset, threat)
    if threat not in ("Linf", "L2"):
        raise InputError(f"expected threat Linf or L2, found {threat}: RA and CAS need a norm and a radius")
    return dataset, threat, list(names)


def local_files(dataset: str, threat: str, name: str, model_dir: Path | None) -> list[Path]:
    """Where robustbench looks for a model's weights; none for those that it takes from timm or torchvision."""
    return find_entry(f"{dataset}/{threat}/{name}").files(folder_from(model_dir, MODEL_FOLDER))


def _read_tables(text: str) -> dict[tuple[str, str], dict[str, Published]]:
    published: dict[tuple[str, str], dict[str, Published]] = {}
    dataset = threat = ""
    for line in text.splitlines():
        heading = re.match(r"^(#{3,4}) +(.+)$", line.strip())
        if heading and len(heading[1]) == 3:
            dataset, threat = _DATASETS.get(heading[2].strip(), ""), ""
        elif heading:
            norm = re.match(r"(Linf|L2),", heading[2])
            threat = norm[1] if norm else ""
        row = _ROW.match(line.strip()) if dataset and threat else None
        if row is None:
            continue
        clean, robust = (_PERCENT.search(row[key]) for key in ("clean", "robust"))
        if clean and robust:
            figures = Published(round(float(clean[1]) / 100, 6), round(float(robust[1]) / 100, 6))
            published.setdefault((dataset, threat), {})[row["name"].strip()] = figures
    return published
