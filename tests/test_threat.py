"""Threat models: their values, their defaults, and what they are called."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccf_plugin.errors import InputError
from ccf_plugin.threat import (
    ThreatModel,
    parse_pixels,
    threat_file_part,
    threat_label,
    threat_model,
    threat_sentence,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("8/255", 8 / 255),
        (0.03, 0.03),
        (0, 0.0),
        ("0.03", 0.03),
        (".5", 0.5),
        ("1e-2", 0.01),
        ("eps/4", 0.02),
        ("1.25*eps", 0.1),
        ("5*eps/4", 0.1),
        (" 2 * 8 / 255 ", 16 / 255),
        ("eps", 0.08),
    ],
)
def test_pixels_are_parsed(value: Any, expected: float) -> None:
    assert parse_pixels(value, eps=0.08) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "8//255",
        "8 255",
        "eps+1",
        "-1/255",
        "2**3",
        "epsilon",
        "__import__('os')",
        "1/0",
        "*8",
        "8/",
        "8,5",
        "nan",
        float("nan"),
        float("inf"),
        True,
        None,
        [1],
    ],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^attack\.eps: ") as caught:
        parse_pixels(value, eps=0.1, key="attack.eps")
    assert "\n" not in str(caught.value)


def test_eps_must_be_known() -> None:
    with pytest.raises(InputError, match="not known here"):
        parse_pixels("eps/4")


def test_defaults_are_the_papers() -> None:
    assert threat_model() == ThreatModel("Linf", 8 / 255, 2 / 255, 20)
    assert threat_model(norm="l2") == ThreatModel("L2", 128 / 255, 16 / 255, 20)
    given = threat_model(eps="4/255", step_size="1.25*eps", steps=1)
    assert given.as_dict() == {"norm": "Linf", "eps": 4 / 255, "step_size": pytest.approx(5 / 255), "steps": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 8}, r"\[0, 1\], so write e.g. '8/255'"),
        ({"eps": -0.1}, "expected 0 to 1 for Linf"),
        ({"norm": "L2", "eps": 128}, "'128/255'"),
        ({"step_size": 2}, "step_size: .*'2/255'"),
        ({"step_size": -0.01}, "step_size"),
        ({"step_size": float("nan")}, "finite"),
        ({"steps": 0}, "steps: expected a whole number of at least 1"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"norm": "Lnf"}, "did you mean 'Linf'"),
    ],
)
def test_impossible_threats_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        threat_model(**arguments)


PGD = {"attack": "PGD", **threat_model().as_dict()}
PGDL2 = {"attack": "PGDL2", **threat_model(norm="L2", eps=1 / 3, step_size="2/255", steps=7).as_dict()}
NO_STEPS = {"step_size": None, "steps": None}


@pytest.mark.parametrize(
    ("threat", "sentence", "label", "file_part"),
    [
        (None, "clean images", "clean", "clean"),
        ({**PGD, "seed": 0}, "PGD-20, Linf, eps 8/255, step 2/255", "PGD-20", "PGD20-Linf-8of255"),
        ({**PGD, "eps": 0.05}, "PGD-20, Linf, eps 12.75/255, step 2/255", "PGD-20", "PGD20-Linf-0.05"),
        (PGDL2, "PGDL2-7, L2, eps 85/255, step 2/255", "PGDL2-7", "PGDL2-7-L2-85of255"),
        ({**PGD, "attack": "FGSM", **NO_STEPS}, "FGSM, Linf, eps 8/255", "FGSM", "FGSM-Linf-8of255"),
        ({"attack": "CW", "norm": "L2", "eps": None, **NO_STEPS}, "CW, L2", "CW", "CW-L2"),
        ({"attack": "GN", "norm": "none", "eps": None}, "GN", "GN", "GN"),
        (
            {**PGD, "attack": "python:a.b:Mine"},
            *("python:a.b:Mine-20, Linf, eps 8/255, step 2/255", "Mine-20", "Mine20-Linf-8of255"),
        ),
        ({"norm": "Linf", "eps": 8 / 255}, "Linf, eps 8/255", "attack", "Linf-8of255"),
        ({"attack": "attack", "seed": 3}, "attack", "attack", "attack"),
        ({"seed": 3}, "an attack", "attack", "attack"),
    ],
)
def test_an_attack_is_called_the_same_everywhere(
    threat: dict[str, Any] | None, sentence: str, label: str, file_part: str
) -> None:
    assert threat_sentence(threat) == sentence
    assert threat_label(threat) == label
    assert threat_file_part(threat) == file_part


@pytest.mark.parametrize(
    ("eps", "part"),
    [
        ("8/255", "8of255"),
        ("128/255", "128of255"),
        (0, "0of255"),
        (0.1, "0.1"),
        ("0.5/255", "0.001961"),
        (1, "255of255"),
    ],
)
def test_eps_in_a_file_name_is_in_levels_or_has_four_digits(eps: Any, part: str) -> None:
    assert threat_file_part({"norm": "Linf", "eps": threat_model(eps=eps).eps}) == f"Linf-{part}"


@given(st.integers(0, 255))
def test_every_level_is_written_as_one(level: int) -> None:
    for eps in (level / 255, threat_model(eps=f"{level}/255").eps, float(f"{level / 255:.12g}")):
        assert threat_file_part({"eps": eps}) == f"{level}of255"
