"""Names read in the files of timm and RobustBench against those that the libraries themselves have."""

from __future__ import annotations

import re
import sys

import pytest

from ccf_plugin.zoo import installed
from ccf_plugin.zoo.robustbench_models import import_robustbench


def test_no_model_of_timm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    registered = timm.models._registry._model_entrypoints.items()  # those of RobustBench too, where that was imported
    own = [name for name, factory in registered if factory.__module__.startswith("timm.")]
    tagged = [name for name in timm.list_pretrained() if name.split(".")[0] in own]
    assert len(own) > 1000
    assert {"resnet18", "tv_resnet34"} <= set(own)  # the second is a former name
    monkeypatch.delitem(sys.modules, "timm")
    words = set(re.findall(r"\w+", installed._text("timm", "models")))
    assert not set(own) - words
    assert not {word for name in tagged for word in re.findall(r"\w+", name)} - words
    installed.check_timm("resnet18.tv_in1k")


def test_no_model_of_robustbench_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import_robustbench()
    from robustbench.model_zoo import model_dicts

    monkeypatch.delitem(sys.modules, "robustbench")
    for dataset, threats in model_dicts.items():
        for threat, models in threats.items():
            for name in models:
                installed.check_robustbench(dataset.value.upper(), threat.value, name)


def test_an_imported_library_answers_for_itself() -> None:
    import timm  # noqa: F401

    installed.check_timm("a_model_that_a_plugin_registered")
