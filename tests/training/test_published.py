"""The figures that recipes state as published are those of the paper, entry by entry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ccf_plugin.training.recipe_files import load_recipe, shipped_recipes

Figure = tuple[object, float | None, float | None, float | None]  # at, clean accuracy, RA in percent, CAS


@pytest.fixture(scope="session")
def reported(outside: Path) -> dict[str, Any]:
    file = outside / "paper" / "reported_numbers.json"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _best_and_last(entry: dict[str, Any], best: str = "best", last: str = "last") -> list[Figure]:
    return [(at, None, entry[key]["ra"], entry[key]["cas"]) for at, key in (("best", best), ("last", last))]


def _of_supplement(entry: dict[str, list[float]]) -> list[Figure]:
    return [(at, entry["clean"][place], entry["robust"][place], None) for place, at in enumerate(("best", "last"))]


def _expected(name: str, reported: dict[str, Any]) -> list[Figure]:
    main, supplement = reported["at_linf_8_cifar10_preact18"], reported["wake_supplement"]
    course, standard = main["trajectory"], reported["standard_training_clean_features"]
    fast = reported["fast_at_cifar10"]
    return {
        "preact_linf": [
            *((at, None, ra, cas) for at, ra, cas in zip(course["epoch"], course["ra"], course["cas"], strict=True)),
            *_best_and_last(main, "best_epoch_108", "last_epoch_200"),
        ],
        "preact_linf_kd": _best_and_last(reported["at_kd_cifar10"]),
        "preact_l2": _best_and_last(reported["at_l2_128_cifar10"]),
        "preact_standard": [(at, None, None, cas) for at, cas in zip(standard["epoch"], standard["cas"], strict=True)],
        "preact_fast": [
            (at, None, fast[key]["ra"], fast[key]["cas"]) for at, key in ((10, "epoch_10"), ("best", "best"))
        ],
        "cifar100_linf": _best_and_last(reported["cifar100_at_linf"]),
        "tinyimagenet_linf": _best_and_last(reported["tinyimagenet_at_linf"]),
        "deit_ti_linf": _best_and_last(reported["deit_ti_cifar10"]),
        "preact_linf_awp": [("best", 81.18, 55.39, None), ("last", 81.65, 54.30, None)],  # the authors' log
        "preact_l2_awp": [("best", 90.11, 72.69, None), ("last", 89.89, 71.59, None)],
        "preact_l2_kdswa": _of_supplement(supplement["l2_cifar10"]["AT+KDSWA"]),
        "deit_ti_kdswa": _of_supplement(supplement["deit_ti_cifar10"]["AT+KDSWA"]),
        "deit_ti_wake": _of_supplement(supplement["deit_ti_cifar10"]["AT+WAKE"]),
        "preact_l2_wake": _of_supplement(supplement["l2_cifar10"]["AT+WAKE"]),
        "preact_trades": _of_supplement(supplement["trades_cifar10"]["TRADES"]),
        "preact_trades_kdswa": _of_supplement(supplement["trades_cifar10"]["TRADES+KDSWA"]),
        "preact_trades_wake": _of_supplement(supplement["trades_cifar10"]["TRADES+WAKE"]),
    }.get(name, [])


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 9)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_recipe_states_what_was_published_of_it(name: str, reported: dict[str, Any]) -> None:
    published = load_recipe(name).published
    stated = [] if published is None else published.figures
    found = [(one.at, _percent(one.clean_accuracy), _percent(one.robust_accuracy), one.cas) for one in stated]
    expected = _expected(name, reported)
    assert found == expected
    told = re.search(r"# Published:(.*?)# Measured:", shipped_recipes()[name].read_text("utf-8"), re.DOTALL)
    assert told is not None
    numbers = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", told[1])}
    for _, *figures in expected if name != "preact_linf" else expected[-2:]:  # its course is in the table alone
        assert numbers.issuperset(figure for figure in figures if figure is not None)
    assert ("nothing" in told[1]) == (not expected)
