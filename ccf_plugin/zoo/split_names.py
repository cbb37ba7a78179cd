"""What the splits of a data set are called, in folders, arrays and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

TRAIN = ("train", "training")
TEST = ("test", "testing")
VALIDATION = ("validation", "val", "valid", "dev")

T = TypeVar("T")


def find_splits(by_name: Mapping[str, T], splits: Sequence[str]) -> tuple[dict[str, T], list[str]]:
    """What stands under the names of the splits "train" and "test", in any case; and notes for the user.

    Where nothing is called test, the validation split stands for it, which a note says if ``splits`` has "test".
    """
    chosen, notes = {}, []
    for split, names in (("train", TRAIN), ("test", TEST + VALIDATION)):
        name = next((key for known in names for key in by_name if key.lower() == known), None)
        if name is not None:
            chosen[split] = by_name[name]
            if split in splits and name.lower() in VALIDATION:
                notes.append(f"no test split: {name} is taken for it")
    return chosen, notes
