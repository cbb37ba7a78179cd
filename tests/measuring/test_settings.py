"""What may be chosen: single settings by name, contradictions, and the threat model that a model's own leaves."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ccf_plugin.errors import InputError
from ccf_plugin.measuring.settings import AttackChoice, ImageChoice, Settings
from ccf_plugin.threat import threat_model


def test_single_settings_by_name() -> None:
    settings = Settings.of(data="digits", eps="4/255", head="fc", batch_size=9)
    assert (settings.images, settings.attack) == (ImageChoice(data="digits"), AttackChoice(eps="4/255"))
    assert (settings.probe.head, settings.batch_size, settings.weights) == ("fc", 9, Settings().weights)
    assert settings.with_values(eps=None, data=None, head=None, batch_size=250) == Settings()
    assert Settings.of(**settings.flat()) == settings
    with pytest.raises(TypeError, match="unknown settings: epz"):
        Settings.of(epz=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 0}, "^limit: expected at least 1, found 0$"),
        ({"seed": -1}, "^seed: expected 0 to 4294967295, found -1$"),
        ({"seed": 2**32}, "^seed: "),
        ({"clean": True, "eps": 0.0}, "^expected clean or an attack, found both; leave one out: clean, or eps$"),
        ({"clean": True, "attack": "PGD", "steps": 3}, "clean, or attack and steps$"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings.of(**values)


OWN = {"norm": "L2", "eps": 0.5, "step_size": 0.1, "steps": 7}


@pytest.mark.parametrize(
    ("chosen", "own", "expected"),
    [
        ({}, {}, threat_model()),
        ({}, OWN, threat_model(**OWN)),
        ({"steps": 3, "attack": "FGSM"}, OWN, threat_model(**(OWN | {"steps": 3}))),
        ({"eps": 1.0}, OWN, threat_model(norm="L2", eps=1.0, steps=7)),  # a step size belongs to its radius
        ({"eps": 1.0, "step_size": "eps/2"}, OWN, threat_model(norm="L2", eps=1.0, step_size=0.5, steps=7)),
        ({"norm": "Linf"}, OWN, threat_model()),  # and a radius to its norm
        ({"norm": "l2"}, OWN, threat_model(**OWN)),  # which may be written in any case
        ({"norm": "linf"}, {}, threat_model()),
        ({"clean": True}, OWN, None),
    ],
)
def test_what_is_open_is_the_models_own(chosen: dict[str, Any], own: dict[str, Any], expected: Any) -> None:
    assert AttackChoice(**chosen).threat_model(own) == expected


def test_settings_need_nothing_heavy() -> None:
    code = "import sys, ccf_plugin.measuring.settings; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
