"""What a reader of data is, what it gives, and the table of all readers. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ccf_plugin.zoo.specs import Entry, register

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ccf_plugin.zoo.image_files import ClassFiles, ImageFile


@dataclass(frozen=True)
class Arrays:
    """Images in memory, each with its label; ``zoo.arrays`` checks all of it.

    Attributes:
        splits: by "train" and "test" where they exist: images uint8 (N, H, W, 1 or 3) or (N, H, W), or encoded
            ones in a sequence, which are decoded as they are needed; and their labels, integers (N,) or (N, 1), or one
            row of zeros and a one for each (one-hot). May hold splits that were not asked for: labels without
            ``classes`` are counted over all of them.
        classes: one name per class; None: "0", "1", … up to the highest label.
        names: what messages call the images and the labels of a split, where not "train images" and "train labels".
        notes: what the user is to know of how the data were taken, a line each.
    """

    splits: Mapping[str, tuple[NDArray[Any] | Sequence[ImageFile], NDArray[Any]]]
    classes: Sequence[str] | None = None
    names: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, decoded as they are needed.

    Attributes:
        splits: by "train" and "test" where they exist: the classes in their order, and the files of each. May
            hold splits that were not asked for. Files that are no images are left out, which a note says.
        colour: RGB even where every image is grey.
        readable: gives the classes' names for those of ``splits``.
        order_in_doubt: why the classes' order may not be the one that was meant; None where it is plain.
        notes: what the user is to know of how the data were taken, a line each.
    """

    splits: Mapping[str, ClassFiles]
    colour: bool = False
    readable: Callable[[Sequence[str]], tuple[str, ...]] = tuple
    order_in_doubt: str | None = None
    notes: Sequence[str] = ()


class Read(Protocol):
    """The data by the name behind the prefix."""

    def __call__(self, name: str, /, *, splits: Sequence[str], root: Path, download: bool) -> Arrays | ImageFiles:
        """``splits`` are those asked for, ``root`` is where data sets lie. Raises InputError and UnavailableError."""


@dataclass(frozen=True)
class Reader(Entry):
    """A data set or a form of data: all that is known of the specs "prefix:name". Limits and resizing are not its work.

    Attributes:
        prefix: what stands before the colon; of a single data set its whole spec.
        form: how help and messages show it: "npz:PATH", or ``prefix`` again for a single data set.
        read: gives the data; a single data set gets its own spec as the name.
        check: raises InputError for a name that cannot be right; looks at no file and imports nothing heavy.
        is_path: whether the name is a path, to be shown where it leads.
    """

    read: Read
    check: Callable[[str], object] = lambda _: None
    is_path: bool = False


READERS: dict[str, Reader] = {}


def register_reader(reader: Reader) -> None:
    """Add a reader to ``READERS``. Raises InputError for a prefix that is taken."""
    register(READERS, reader)
