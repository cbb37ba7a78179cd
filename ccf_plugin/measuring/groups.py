"""Whether classes of one group share more than classes of different groups, and whether what is shared is confused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccf_plugin.errors import Fault, InputError, some_of
from ccf_plugin.files import expanded_path
from ccf_plugin.probe.classes import class_index
from ccf_plugin.probe.groups import Association, mantel, within_minus_between
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.zoo.class_lists import CIFAR100_SUPERCLASSES

CLUSTER = "cluster"
_KEY = "groups"  # the parameter that faults name
_ENTRIES = 2**28  # that all permutations together look at: seconds
_FEWEST, _MOST = 199, 9_999  # permutations

_CIFAR10 = {
    "vehicles": "airplane, automobile, ship, truck",
    "animals": "bird, cat, deer, dog, frog, horse",
}
NAMED: Mapping[str, Mapping[str, str]] = {"cifar10": _CIFAR10, "cifar100": CIFAR100_SUPERCLASSES}


@dataclass(frozen=True)
class Grouping:
    """Groups of classes: ``group_of`` has the group of each of K classes, by name.

    ``is_from_matrix``: they were found from C itself, so that a test of C by them means nothing.
    """

    name: str
    group_of: tuple[str, ...]
    is_from_matrix: bool = False

    def members(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The classes of each group."""
        members: dict[str, list[str]] = {}
        for group, name in zip(self.group_of, names, strict=True):
            members.setdefault(group, []).append(name)
        return members


@dataclass(frozen=True)
class GroupEvidence:
    """What a grouping says of a result.

    Attributes:
        grouping: the groups.
        names: the K classes.
        difference: C within groups minus between; its p is not to be read where the groups come from C.
        confusion: Mantel's test of C against the confusion matrix, or None with the reason in ``why_not``.
    """

    grouping: Grouping
    names: tuple[str, ...]
    difference: Association
    confusion: Association | None
    why_not: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; p is null where it means nothing."""
        difference = asdict(self.difference)
        if self.grouping.is_from_matrix:
            difference["p"] = None
        return {
            "name": self.grouping.name,
            "members": self.grouping.members(self.names),
            "from_matrix": self.grouping.is_from_matrix,
            "within_minus_between": difference,
            "mantel_with_confusion": None if self.confusion is None else asdict(self.confusion),
            "note": self.why_not,
        }

    def rows(self) -> list[tuple[str, str]]:
        """What a table shows: a heading and a text each."""
        groups = f"{self.difference.statistic:+.3f} in {len(set(self.grouping.group_of))} groups ({self.grouping.name})"
        if self.grouping.is_from_matrix:
            parts = (some_of(members) for members in self.grouping.members(self.names).values())
            meaning = f"found from C itself, so no p: {'; '.join(parts)}"
        else:
            meaning = in_words(self.difference)
        rows = [("C within minus between", f"{groups}, {meaning}")]
        if self.confusion is not None:
            text = f"Spearman's ρ = {self.confusion.statistic:.2f} (Mantel), {in_words(self.confusion)}"
            rows.append(("C against confusions", text))
        else:
            rows.append(("C against confusions", f"not tested: {self.why_not}"))
        return rows


def in_words(association: Association) -> str:
    """p and what it comes from."""
    kind = "all" if association.exact else "random"
    return f"p = {association.p:.2g} ({kind} {association.arrangements} arrangements)"


def group_evidence(result: CrossClassResult, groups: str) -> GroupEvidence:
    """C within groups minus between, with its permutation p, and Mantel's test of C against the confusion matrix.

    p is exact where there are at most 20,000 groupings of the same sizes; random ones are 9,999, and fewer for more
    than 160 classes. The confusion matrix is that of the passes that C is of.

    Args:
        groups: as ``read_groups``.

    Raises:
        InputError: as ``read_groups`` and ``probe.groups.within_minus_between``.
    """
    grouping = read_groups(groups, result.names, result.matrix)
    permutations = min(max(_ENTRIES // len(result.matrix) ** 2, _FEWEST), _MOST)
    _check_group_sizes(grouping)
    difference = within_minus_between(result.matrix, grouping.group_of, permutations=permutations)
    confusion, why_not = None, "the result has no confusion matrix"
    if result.confusion is not None:
        try:
            confusion, why_not = mantel(result.matrix, result.confusion, permutations=permutations), ""
        except InputError as error:
            why_not = str(error)
    return GroupEvidence(grouping, result.names, difference, confusion, why_not)


def check_groups(text: str, names: Sequence[str]) -> None:
    """Raise InputError, as ``group_evidence`` will, before C is measured."""
    if _is_cluster(text):
        _number_of_clusters(text, len(names))
    else:
        _check_group_sizes(read_groups(text, names))


def _check_group_sizes(grouping: Grouping) -> None:
    sizes = Counter(grouping.group_of).values()
    if max(sizes) < 2 or len(sizes) < 2:
        problem = f"groups of {', '.join(map(str, sizes))}"
        raise InputError(Fault(_KEY, "groups of which some have two classes, and two groups or more", problem))


def _is_cluster(text: str) -> bool:
    return text == CLUSTER or text.startswith(f"{CLUSTER}:")


def read_groups(text: str, names: Sequence[str], matrix: NDArray[np.float64] | None = None) -> Grouping:
    """A grouping of the classes.

    Args:
        text: classes with a comma between, groups with a semicolon or on lines of their own: "cat,dog;ship,truck",
            each perhaps with a name and a colon before ("animals: cat, dog"); or a file of such lines; or "cifar10"
            (vehicles, animals), "cifar100" (its 20 superclasses), or "cluster", found from C; "cluster:4" finds four.
        names: the K classes.
        matrix: C, which "cluster" needs; (K, K).

    Raises:
        InputError: a file that cannot be read; an unknown class, one in two groups or in none; no such clusters.
    """
    if _is_cluster(text):
        if matrix is None:
            raise InputError(Fault(_KEY, "groups that are known before C is measured", repr(text)))
        return Grouping(text, _clusters(matrix, text), is_from_matrix=True)
    if text in NAMED:
        lines, name = [f"{group}: {members}" for group, members in NAMED[text].items()], text
    else:
        lines, name = _lines(text)
    group_of: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        label, _, members = line.rpartition(":") if line.count(":") == 1 else ("", "", line)
        for member in filter(None, map(str.strip, members.split(","))):
            index = class_index(names, member, key=_KEY)
            if index in group_of:
                raise InputError(Fault(_KEY, "each class in one group", f"{names[index]!r} twice"))
            group_of[index] = label.strip() or str(number)
    missing = [name for index, name in enumerate(names) if index not in group_of]
    if missing:
        raise InputError(Fault(_KEY, f"a group for each of {len(names)} classes", f"none for {some_of(missing)}"))
    return Grouping(name, tuple(group_of[index] for index in range(len(names))))


def _lines(text: str) -> tuple[list[str], str]:
    """The groups as they are written, and what the grouping is called."""
    name = "given"
    if not {",", ";"} & set(text):
        file = expanded_path(Path(text))
        try:
            text, name = file.read_text(encoding="utf-8"), file.name
        except (OSError, UnicodeDecodeError):
            expected = "cifar10, cifar100, cluster, cluster:N, a file, or classes as in cat,dog;ship,truck"
            raise InputError(Fault(_KEY, expected, repr(text))) from None
    return [line for part in text.splitlines() for line in part.split(";") if line.strip()], name


def _number_of_clusters(text: str, classes: int) -> int | None:
    """The number in "cluster:4"; None for "cluster"."""
    if classes < 3:
        raise InputError(Fault(_KEY, "three classes or more with a row in C, for clusters", str(classes)))
    number = text.partition(":")[2]
    if text != CLUSTER and not (number.isdecimal() and 2 <= int(number) < classes):
        raise InputError(Fault(_KEY, f"a number of clusters from 2 to {classes - 1}", repr(text)))
    return int(number) if number else None


def _clusters(matrix: NDArray[np.float64], text: str) -> tuple[str, ...]:
    """Groups by average linkage of the distances 1 - C, cut where the next merge is the largest step (or into N).

    A class without a row is in a group of its own.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    classes = np.flatnonzero(~np.isnan(np.diagonal(matrix)))
    number = _number_of_clusters(text, len(classes))
    distances = 1 - (matrix[np.ix_(classes, classes)] + matrix[np.ix_(classes, classes)].T) / 2
    np.fill_diagonal(distances, 0.0)
    merges = linkage(squareform(distances, checks=False), "average")
    steps = np.diff(merges[:, 2])  # before the last merge there are two groups, before the one before three, …
    cluster_of = fcluster(merges, number or len(classes) - 1 - int(steps.argmax()), "maxclust")
    labels = [f"without a row {index}" for index in range(len(matrix))]
    for index, label in zip(classes, cluster_of, strict=True):
        labels[index] = str(label)
    return tuple(labels)
