"""Which models timm and RobustBench have, read in their files: to import them, and torch, takes seconds.

So a mistyped name is answered at once. A name is refused only where no file of the library holds the word; what the
library itself says of the others is asked once it is imported.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Collection
from pathlib import Path

from ccf_plugin.errors import InputError, close_to, did_you_mean, or_these

_TIMM_MODEL = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
_ROBUSTBENCH_MODEL = re.compile(r"""\(\s*["']([\w.\-]+)["'],\s*(?:\{|get_)""")
_QUOTED = re.compile(r"""["']([\w.\-]+)["']""")
_ENUM = r"class {}\(Enum\):\n((?:[ \t]+\S.*\n?)+)"
_ROBUSTBENCH_DEFAULT = ("cifar10", "Linf")
_ROBUSTBENCH_FORM = "robustbench:[dataset/threat/]Name, e.g. robustbench:cifar10/Linf/Carmon2019Unlabeled"


def check_timm(name: str) -> None:
    """Raise InputError for a model, or a tag of weights behind it, that no file of timm names."""
    text = _text("timm", "models")
    words = set(re.findall(r"\w+", text))
    model, _, tag = name.partition(".")
    if text and model not in words:
        raise InputError(f"timm has no model {name!r}{did_you_mean(name, _TIMM_MODEL.findall(text))}")
    if text and not words.issuperset(re.findall(r"\w+", tag)):
        tagged = re.findall(rf"""["']({re.escape(model)}\.[\w.\-]+)["']""", text)
        raise InputError(f"timm has no weights {name!r}{did_you_mean(name, tagged)}")


def robustbench_coordinates(name: str) -> tuple[str, str, str]:
    """Data set, threat model and name of ``[dataset/threat/]Name``. Raises InputError for another form."""
    parts = name.split("/")
    if len(parts) not in (1, 3) or not all(parts):
        raise InputError(f"expected {_ROBUSTBENCH_FORM}, found 'robustbench:{name}'")
    dataset, threat, model = parts if len(parts) == 3 else (*_ROBUSTBENCH_DEFAULT, name)
    return dataset, threat, model


def check_robustbench(dataset: str, threat: str, name: str) -> None:
    """Raise InputError for a model, a data set or a threat model that no file of RobustBench names."""
    text = _text("robustbench", "model_zoo")
    for kind, enum, value in (("dataset", "BenchmarkDataset", dataset), ("threat model", "ThreatModel", threat)):
        block = re.search(_ENUM.format(enum), text)
        known = [] if block is None else _QUOTED.findall(block[1])
        if known and value.lower() not in map(str.lower, known):
            raise InputError(f"RobustBench has no {kind} {value!r}; it has {', '.join(known)}")
    if text and name not in _QUOTED.findall(text):
        raise InputError(f"RobustBench has no model {name!r}{did_you_mean(name, _ROBUSTBENCH_MODEL.findall(text))}")


def specs_near(name: str, others: Collection[str]) -> str:
    """``"; did you mean 'timm:resnet18'?"`` for a name without a kind, ``others`` being specs that have none either."""
    specs = {model: f"timm:{model}" for model in _TIMM_MODEL.findall(_text("timm", "models"))}
    specs |= {model: f"robustbench:{model}" for model in _ROBUSTBENCH_MODEL.findall(_text("robustbench", "model_zoo"))}
    specs |= {spec: spec for spec in others}
    return or_these([specs[model] for model in close_to(name, specs)])


def _text(package: str, folder: str) -> str:
    """All of a package's Python files in a folder; "" where it is imported already, so that it answers for itself, and
    where there is none."""
    if package in sys.modules:
        return ""
    found = importlib.util.find_spec(package)  # does not run the package
    if found is None or not found.submodule_search_locations:
        return ""
    try:
        files = sorted(Path(found.submodule_search_locations[0]).joinpath(folder).glob("*.py"))
        return "\n".join(file.read_text(encoding="utf-8") for file in files)
    except (OSError, UnicodeDecodeError):
        return ""
