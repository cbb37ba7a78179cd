"""What a measurement found: the numbers, where they come from, their files and their picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ccf_plugin.errors import InputError, some_of
from ccf_plugin.files import json_bytes, write_together
from ccf_plugin.probe.attribution import cas_contributions, class_attribution_similarity
from ccf_plugin.probe.classes import class_index, top_pairs
from ccf_plugin.probe.confidence import Confidence, Samples
from ccf_plugin.probe.head import Head
from ccf_plugin.probe.result_checks import ARRAYS, PLAIN_FIELDS, check_fields, checked_arrays, with_later_fields
from ccf_plugin.threat import threat_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

FORMAT = 1
_LISTED_CLASSES = 2_000  # as text a matrix takes 25 bytes a number: 100 MB here, 12 GB for ImageNet-21k


@dataclass(frozen=True)
class CrossClassResult:
    """A measurement of K classes and n features.

    Attributes:
        matrix: C (eq. 6), (K, K) float64; NaN in the row and column of a class without samples.
        class_attribution: the mean of A(x) per class, (K, n) float64.
        counts: samples per class, (K,) int64.
        instance_matrix: C_I (Section 5.3), (K, K) float64, or None where it was not asked for.
        clean_accuracy, robust_accuracy: fractions, or None where not measured.
        accuracy: a fraction; set instead of these two where nobody said whether the images were clean or adversarial.
        class_names: K names, or None.
        model: the model's name, or None.
        head: the layer that was measured.
        data: name, split and count of the images, or None where the probe was fed by somebody else's loop.
        threat: attack, norm, eps and step_size (in [0, 1] pixel units), steps, seed, precision; None when clean. What
            the attack does not take is None.
        model_mode: "eval" or "train" (or "mixed"): CAS in train mode is not the paper's CAS.
        precision: dtype of the measured features.
        versions: of the libraries that took part.
        repeats: where the attack was repeated with other seeds, every repeat's seed and figures.
        samples: single samples' attributions where instances were measured; kept in memory, never saved.
    """

    matrix: NDArray[np.float64]
    class_attribution: NDArray[np.float64]
    counts: NDArray[np.int64]
    instance_matrix: NDArray[np.float64] | None = None
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    accuracy: float | None = None
    class_names: tuple[str, ...] | None = None
    model: str | None = None
    head: Head | None = None
    data: Mapping[str, Any] | None = None
    threat: Mapping[str, Any] | None = None
    model_mode: str | None = None
    precision: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    repeats: tuple[Mapping[str, Any], ...] = ()
    samples: Samples | None = field(default=None, repr=False, compare=False)

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
        return tuple(self.names[index] for index in np.flatnonzero(self._undefined))

    @property
    def _undefined(self) -> NDArray[np.bool_]:
        return np.asarray(np.isnan(np.diagonal(self.matrix)))

    @property
    def left_out(self) -> str:
        """Why which classes are without a row in C, in words (ten names of each kind at most); "" where none is."""
        missing, seen = self._undefined, self.counts > 0
        kinds = {"no samples of": missing & ~seen, "attribution is zero for": missing & seen}
        named = {why: [self.names[index] for index in np.flatnonzero(which)] for why, which in kinds.items()}
        return "; ".join(f"{why} {some_of(names, 10)}" for why, names in named.items() if names)

    def top_pairs(self, count: int = 5) -> list[tuple[str, str, float]]:
        """The pairs of classes that share most: (name, name, C[i, j]), largest first."""
        pairs = top_pairs(self.pair_contributions(), count, above=0.0)
        return [(self.names[i], self.names[j], float(self.matrix[i, j])) for i, j in pairs]

    def pair_contributions(self) -> NDArray[np.float64]:
        """What each ordered pair of classes adds to CAS, (K, K) float64; the sum is CAS (eq. 7)."""
        return np.asarray(cas_contributions(torch.from_numpy(self.matrix)).numpy())

    def shared_features(self, first: str | int, second: str | int, count: int = 10) -> list[tuple[int, float]]:
        """The features that carry most of C[i, j]: (feature's index, its share of C[i, j]), largest first.

        The shares of all features add up to C[i, j].

        Args:
            first, second: two classes, by name or index.

        Raises:
            InputError: an unknown class, or one without samples.
        """
        units = []
        for wanted in (first, second):
            index = class_index(self.names, wanted)
            vector = self.class_attribution[index]
            length = float(np.linalg.norm(vector))
            if not np.isfinite(length) or length == 0:
                raise InputError(f"expected classes with an attribution, found that {self.names[index]!r} has none")
            units.append(vector / length)
        shares = units[0] * units[1]
        order = np.argsort(-shares, kind="stable")[:count]
        return [(int(index), float(shares[index])) for index in order]

    def figures(self) -> dict[str, Any]:
        """The figures that a repeated measurement spreads: seed, accuracies, CAS and I-CAS."""
        return {
            "seed": None if self.threat is None else self.threat.get("seed"),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "accuracy": self.accuracy,
            "cas": self.cas,
            "instance_cas": self.instance_cas,
        }

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """Mean and (sample) standard deviation of every figure over the repeats; empty where nothing was repeated."""
        found = {}
        for name in ("robust_accuracy", "cas", "instance_cas"):
            values = [repeat[name] for repeat in self.repeats if repeat[name] is not None]
            if len(values) > 1:
                found[name] = (float(np.mean(values)), float(np.std(values, ddof=1)))
        return found

    def confidence(
        self, *, bootstrap: int = 200, level: float = 0.95, seed: int = 0, instances: bool = True
    ) -> Confidence:
        """Intervals of CAS and I-CAS over resampled images: no attack is run again.

        They hold at this number of images a class; CAS of 10 images a class and of 1,000 are not comparable.

        Args:
            bootstrap: how often to resample.
            level: the interval's probability.
            seed: of the resampling.
            instances: also I-CAS, which computes the instance matrix once per resample.

        Raises:
            InputError: single samples were not kept (measured without ``instances=True``, or loaded from a file).
        """
        if self.samples is None:
            raise InputError(
                "expected a result that still has its single samples, found none; measure with instances=True "
                "and ask before saving (files hold no samples)"
            )
        return self.samples.confidence(
            len(self.matrix), bootstrap=bootstrap, level=level, seed=seed, instances=instances
        )

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values; NaN becomes null, and so do matrices of more than 2,000 classes."""
        return {
            "model": self.model,
            "head": None if self.head is None else {**asdict(self.head), "history": list(self.head.history)},
            "data": None if self.data is None else dict(self.data),
            "threat": None if self.threat is None else dict(self.threat),
            "model_mode": self.model_mode,
            "precision": self.precision,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "accuracy": self.accuracy,
            "cas": self.cas,
            "cas_normalised": self.cas_normalised,
            "instance_cas": self.instance_cas,
            "counts": self.counts.tolist(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "matrix": _listed(self.matrix),
            "instance_matrix": _listed(self.instance_matrix),
            "versions": dict(self.versions),
            "repeats": [dict(repeat) for repeat in self.repeats],
            "format": FORMAT,
        }

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write ``path``.npz (the arrays) and ``path``.json (the rest); return both paths.

        Raises:
            OSError: the folder is missing or not writable; nothing half-written remains.
        """
        npz, description = _paths(path)
        buffer = BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None})
        write_together({npz: buffer.getvalue(), description: json_bytes(self.to_json())})
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
            described = with_later_fields(json.loads(description.read_text(encoding="utf-8")))
            version = int(described["format"])
            with np.load(npz, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in ARRAYS if name in archive.files}
            if version > FORMAT:
                raise InputError(
                    f"expected a result of format {FORMAT} or older, found {version} in {description}; "
                    "update ccf_plugin"
                )
            arrays = checked_arrays(arrays)
            check_fields(described, len(arrays["counts"]))
            return cls(
                matrix=arrays["matrix"],
                class_attribution=arrays["class_attribution"],
                counts=arrays["counts"],
                instance_matrix=arrays.get("instance_matrix"),
                head=None if described["head"] is None else _head(described["head"]),
                class_names=None if described["class_names"] is None else tuple(described["class_names"]),
                repeats=tuple(described["repeats"]),
                **{name: described[name] for name in PLAIN_FIELDS},
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
        vmin: float | None = None,
        vmax: float | None = None,
        cmap: str = "Blues",
        title: str | None = None,
    ) -> Axes:
        """Draw C (or C_I with ``instances``) as the paper does: class names on both axes, CAS and RA in the title.

        Colours go from ``vmin`` to ``vmax``: 0 to 1, or -0.75 to 0.75 for 100 classes and more, as in its figures.

        Raises:
            InputError: ``instances`` where no instance matrix was measured.
        """
        from ccf_plugin.drawing import colour_scale, draw_heatmap

        matrix = self.instance_matrix if instances else self.matrix
        if matrix is None:
            raise InputError("expected a result with an instance matrix, found none; measure with instances=True")
        low, high = colour_scale(len(matrix), vmin, vmax)
        return draw_heatmap(
            matrix,
            self.names,
            ax=ax,
            vmin=low,
            vmax=high,
            cmap=cmap,
            title=title or self.title(instances),
        )

    def save_picture(self, path: str | Path, **options: Any) -> Path:
        """``plot`` into a PNG file; the options are ``plot``'s."""
        from ccf_plugin.drawing import drop_figure, figure_of, save_figure

        figure = figure_of(self.plot(**options))
        save_figure(figure, Path(path))
        if options.get("ax") is None:
            drop_figure(figure)
        return Path(path)

    def title(self, instances: bool = False) -> str:
        """The accuracy (RA with its attack where the images were adversarial) and CAS in one line."""
        number = f"I-CAS = {self.instance_cas:.1f}" if instances else f"CAS = {self.cas:.1f}"
        robust = "RA" if self.threat is None else f"RA ({threat_label(self.threat)})"
        accuracies = {robust: self.robust_accuracy, "clean accuracy": self.clean_accuracy, "accuracy": self.accuracy}
        measured = [f"{label} = {value:.1%}" for label, value in accuracies.items() if value is not None]
        return ", ".join([*measured[:1], number])


def _cas(matrix: NDArray[np.float64]) -> float:
    return float(class_attribution_similarity(torch.from_numpy(matrix)))


def _head(described: Mapping[str, Any]) -> Head:
    """What ``to_json`` says of a head; what newer versions add is left out."""
    known = {one.name: described[one.name] for one in fields(Head) if one.name in described}
    return Head(**{**known, "history": tuple(known.get("history", ()))})


def _listed(matrix: NDArray[np.float64] | None) -> list[list[float | None]] | None:
    if matrix is None or len(matrix) > _LISTED_CLASSES:
        return None
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".npz", ".json", ".png") else path
    return stem.parent / f"{stem.name}.npz", stem.parent / f"{stem.name}.json"
