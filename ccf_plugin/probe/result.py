"""What a measurement found: the numbers, where they come from, their files and their picture."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import cas_contributions, class_attribution_similarity
from ccf_plugin.probe.head import Head

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

FORMAT = 1
_ARRAYS = ("matrix", "class_attribution", "counts", "instance_matrix")


@dataclass(frozen=True)
class CrossClassResult:
    """A measurement of K classes and n features.

    Attributes:
        matrix: C (eq. 6), (K, K) float64; NaN in the row and column of a class without samples.
        class_attribution: the mean of A(x) per class, (K, n) float64.
        counts: samples per class, (K,) int64.
        instance_matrix: C_I (Section 5.3), (K, K) float64, or None where it was not asked for.
        clean_accuracy, robust_accuracy: fractions, or None where not measured.
        class_names: K names, or None.
        model: the model's name, or None.
        head: the layer that was measured.
        data: name, split and count of the images, or None where the probe was fed by somebody else's loop.
        threat: attack, norm, eps and step_size (in [0, 1] pixel units), steps, seed, precision; None when clean.
        model_mode: "eval" or "train" (or "mixed"): CAS in train mode is not the paper's CAS.
        precision: dtype of the measured features.
        versions: of the libraries that took part.
    """

    matrix: NDArray[np.float64]
    class_attribution: NDArray[np.float64]
    counts: NDArray[np.int64]
    instance_matrix: NDArray[np.float64] | None = None
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    class_names: tuple[str, ...] | None = None
    model: str | None = None
    head: Head | None = None
    data: Mapping[str, Any] | None = None
    threat: Mapping[str, Any] | None = None
    model_mode: str | None = None
    precision: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def cas(self) -> float:
        """CAS, from 0 to K(K-1) (eq. 7)."""
        return _cas(self.matrix)

    @property
    def cas_normalised(self) -> float:
        """CAS / (K(K-1)), from 0 to 1, to compare data sets."""
        classes = len(self.matrix)
        return self.cas / (classes * (classes - 1))

    @property
    def instance_cas(self) -> float | None:
        """I-CAS (Section 5.3), or None where instances were not measured."""
        return None if self.instance_matrix is None else _cas(self.instance_matrix)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, or their indices as text."""
        return self.class_names or tuple(str(index) for index in range(len(self.matrix)))

    @property
    def missing_classes(self) -> tuple[str, ...]:
        """The classes without a row in C: no samples, or an attribution of length zero. CAS leaves them out."""
        undefined = np.isnan(np.diagonal(self.matrix))
        return tuple(name for name, missing in zip(self.names, undefined, strict=True) if missing)

    def top_pairs(self, count: int = 5) -> list[tuple[str, str, float]]:
        """The pairs of classes that share most: (name, name, C[i, j]), largest first."""
        upper = np.triu(cas_contributions(torch.from_numpy(self.matrix)).numpy(), 1)
        flat = np.argsort(-upper, axis=None, kind="stable")[:count]
        pairs = [np.unravel_index(index, upper.shape) for index in flat]
        return [(self.names[i], self.names[j], float(self.matrix[i, j])) for i, j in pairs if upper[i, j] > 0]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values; NaN becomes null."""
        return {
            "model": self.model,
            "head": None if self.head is None else asdict(self.head),
            "data": None if self.data is None else dict(self.data),
            "threat": None if self.threat is None else dict(self.threat),
            "model_mode": self.model_mode,
            "precision": self.precision,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "cas": self.cas,
            "cas_normalised": self.cas_normalised,
            "instance_cas": self.instance_cas,
            "counts": self.counts.tolist(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "matrix": _nullable(self.matrix),
            "instance_matrix": None if self.instance_matrix is None else _nullable(self.instance_matrix),
            "versions": dict(self.versions),
            "format": FORMAT,
        }

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write ``path``.npz (the arrays) and ``path``.json (the rest); return both paths.

        Raises:
            OSError: the folder is missing or not writable; nothing half-written remains.
        """
        npz, description = _paths(path)
        buffer = BytesIO()
        np.savez_compressed(
            buffer, **{name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        )
        write_atomically(npz, buffer.getvalue())
        write_atomically(description, (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode())
        return npz, description

    @classmethod
    def load(cls, path: str | Path) -> CrossClassResult:
        """Read what ``save`` wrote; nothing is unpickled.

        Raises:
            InputError: a file is missing, is not such a result, or is of a newer format.
        """
        npz, description = _paths(path)
        for file in (npz, description):
            if not file.is_file():
                raise InputError(
                    f"expected the result file {file}, found none; a result is an .npz and a .json together"
                )
        try:
            fields = json.loads(description.read_text(encoding="utf-8"))
            version = int(fields["format"])
            with np.load(npz, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in _ARRAYS if name in archive.files}
            if version > FORMAT:
                raise InputError(
                    f"expected a result of format {FORMAT} or older, found {version} in {description}; "
                    "update ccf_plugin"
                )
            shape = arrays["matrix"].shape
            if len(shape) != 2 or shape[0] != shape[1] or arrays["counts"].shape != shape[:1]:
                raise ValueError(f"a matrix of shape {shape}")
            return cls(
                matrix=arrays["matrix"],
                class_attribution=arrays["class_attribution"],
                counts=arrays["counts"],
                instance_matrix=arrays.get("instance_matrix"),
                head=None if fields["head"] is None else Head(**fields["head"]),
                class_names=None if fields["class_names"] is None else tuple(fields["class_names"]),
                **{name: fields[name] for name in _PLAIN_FIELDS},
            )
        except InputError:
            raise
        except Exception as error:  # whatever a stranger's file can provoke in two parsers
            raise InputError(
                f"expected a result saved by CrossClassResult.save, found something else in {description}: {error}"
            ) from error

    def plot(
        self,
        ax: Axes | None = None,
        *,
        instances: bool = False,
        vmin: float = 0.0,
        vmax: float = 1.0,
        cmap: str = "Blues",
        title: str | None = None,
    ) -> Axes:
        """Draw C (or C_I with ``instances``) as the paper does: class names on both axes, CAS and RA in the title.

        Raises:
            InputError: ``instances`` where no instance matrix was measured.
        """
        from ccf_plugin.probe.heatmap import draw_heatmap

        matrix = self.instance_matrix if instances else self.matrix
        if matrix is None:
            raise InputError("expected a result with an instance matrix, found none; measure with instances=True")
        return draw_heatmap(
            matrix, self.names, ax=ax, vmin=vmin, vmax=vmax, cmap=cmap, title=title or self.title(instances)
        )

    def save_picture(self, path: str | Path, **options: Any) -> Path:
        """``plot`` into a PNG file; the options are ``plot``'s."""
        from ccf_plugin.probe.heatmap import save_figure

        return save_figure(self.plot(**options), Path(path))

    def title(self, instances: bool = False) -> str:
        """RA (or clean accuracy) and CAS in one line."""
        number = f"I-CAS = {self.instance_cas:.1f}" if instances else f"CAS = {self.cas:.1f}"
        if self.robust_accuracy is not None:
            return f"RA = {self.robust_accuracy:.1%}, {number}"
        if self.clean_accuracy is not None:
            return f"clean accuracy = {self.clean_accuracy:.1%}, {number}"
        return number


_PLAIN_FIELDS = ("model", "data", "threat", "model_mode", "precision", "clean_accuracy", "robust_accuracy", "versions")


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _cas(matrix: NDArray[np.float64]) -> float:
    return float(class_attribution_similarity(torch.from_numpy(matrix)))


def _nullable(matrix: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".npz", ".json", ".png") else path
    return stem.parent / f"{stem.name}.npz", stem.parent / f"{stem.name}.json"
