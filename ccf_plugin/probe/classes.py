"""Classes by their names, and pairs of them by what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import Fault, InputError, did_you_mean


def class_index(names: Sequence[str], name: str | int, *, key: str = "") -> int:
    """The index of a class that is named, or given by its index (as digits too, where no class has that name).

    Args:
        key: the parameter that wants it, which a message names.

    Raises:
        InputError: there is no such class; what is near is named.
    """
    if isinstance(name, int) and 0 <= name < len(names):
        return name
    for known in (list(names), [str(index) for index in range(len(names))]):
        if isinstance(name, str) and name in known:
            return known.index(name)
    problem = f"{name!r}{did_you_mean(str(name), names)}"
    raise InputError(Fault(key, f"a class's name or its index below {len(names)}", problem))


def top_pairs(values: NDArray[Any], count: int, *, above: float = -np.inf) -> list[tuple[int, int]]:
    """The pairs of classes i < j with the largest ``values[i, j]``, largest first; at most ``count``.

    Args:
        values: (K, K); NaN where there is no value. Only what stands above the diagonal counts.
        above: pairs with this value or less are left out.
    """
    rows, columns = np.triu_indices(len(values), 1)
    upper = np.nan_to_num(values[rows, columns], nan=-np.inf)
    order = np.argsort(-upper, kind="stable")[:count]
    return [(int(rows[place]), int(columns[place])) for place in order if upper[place] > above]
