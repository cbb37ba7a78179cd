from __future__ import annotations

from typing import Any

import pytest

from ccf_plugin.errors import InputError
from ccf_plugin.zoo.threat import ThreatModel, parse_pixels, threat_model


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
        parse_pixels(value, eps=0.1, what="attack.eps")
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
