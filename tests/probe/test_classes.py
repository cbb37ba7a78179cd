"""Classes by name or index, and pairs of them by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ccf_plugin.errors import InputError
from ccf_plugin.probe.classes import class_index, top_pairs

NAMES = ("cat", "dog", "1")


@pytest.mark.parametrize(("wanted", "index"), [("cat", 0), ("1", 2), (1, 1), ("2", 2), ("0", 0), (0, 0)])
def test_a_class_has_a_name_and_an_index(wanted: str | int, index: int) -> None:
    assert class_index(NAMES, wanted) == index


@pytest.mark.parametrize("wanted", ["ship", "3", 3, -1, "-1", "²", "", " 0"])
def test_other_classes_are_refused(wanted: str | int) -> None:
    with pytest.raises(InputError, match=r"^pair: expected a class's name or its index below 3, found "):
        class_index(NAMES, wanted, key="pair")
    with pytest.raises(InputError, match="found 'catt'; did you mean 'cat'"):
        class_index(NAMES, "catt")


def test_top_pairs_by_hand() -> None:
    values = np.array([[9.0, 0.2, 0.8], [7.0, 9.0, -0.1], [7.0, 7.0, 9.0]])
    assert top_pairs(values, 2) == [(0, 2), (0, 1)]
    assert top_pairs(values, 9) == [(0, 2), (0, 1), (1, 2)]
    assert top_pairs(values, 9, above=0.0) == [(0, 2), (0, 1)]
    assert top_pairs(values, 9, above=0.2) == [(0, 2)]
    assert top_pairs(np.ones((1, 1)), 3) == []


def test_a_pair_without_a_value_is_none_and_equal_ones_stay_in_order() -> None:
    values = np.full((3, 3), 0.5)
    assert top_pairs(values, 3) == [(0, 1), (0, 2), (1, 2)]
    values[0, 1] = np.nan
    assert top_pairs(values, 3) == [(0, 2), (1, 2)]
