"""What a measurement found: the numbers, where they come from, their files and their picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccf_plugin.errors import InputError, some_of
from ccf_plugin.probe import presentation, result_files
from ccf_plugin.probe.attribution import cas_contributions, class_attribution_similarity
from ccf_plugin.probe.classes import class_index, top_pairs
from ccf_plugin.probe.confidence import WithIntervals
from ccf_plugin.probe.decomposition import MEAN_ROW_MATTERS, shared_part
from ccf_plugin.probe.head import Head
from ccf_plugin.probe.jackknife import WithoutParts

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ccf_plugin.drawing import Annotate


@dataclass(frozen=True, repr=False, eq=False)
class CrossClassResult(WithIntervals):
    """A measurement of K classes and n features.

    Attributes:
        matrix: C (eq. 6), (K, K) float64; NaN in the row and column of a class without samples.
        class_attribution: the mean of A(x) per class, (K, n) float64.
        counts: samples per class, (K,) int64.
        instance_matrix: C_I (Section 5.3), (K, K) float64, or None where it was not asked for.
        clean_accuracy, robust_accuracy: fractions, or None where not measured.
        accuracy: a fraction; set instead of these two where it is unknown whether the images were clean or adversarial.
        clean_loss, robust_loss: the mean cross-entropy of the logits, or None where not measured.
        confusion_clean, confusion_adversarial: samples by true class (rows) and predicted class, (K, K) int64;
            ``confusion_unnamed`` beside ``accuracy``. None where not measured, and above 2,000 classes.
        correct_clean, correct: whether each image was classified right, clean and under attack (without one: in the
            passes that counted), (N,) bool in the loader's order (with several processes: the first image of each,
            the second of each, …; None where they have other shares). None but from ``probe.run``
            with a loader that does not shuffle.
        logit_variance: of the logits over samples and classes, each sample's mean taken away, so that what the softmax
            does not see does not count; None where not measured.
        mean_row_share: of the head's W in the last pass that counted, from 0 to 1; see `decomposition.mean_row_share`.
            None for head="gradient".
        centred: whether A was measured with the rows of W less their mean, see ``CrossClassProbe(centre=True)``.
        class_names: K names, or None.
        model: the model's name, or None.
        head: the layer that was measured.
        data: name, split and count of the images, or None where the probe was fed by somebody else's loop.
        threat: attack, norm, eps and step_size (in [0, 1] pixel units), steps, options, seed, precision; None when
            clean. What the attack does not take is None.
        average_instance_cas: I-CAS with the mean over all pairs of samples in place of the largest cosine, which
            Section 5.3 dismisses; or None.
        model_mode: "eval" or "train" (or "mixed"): CAS in train mode is not the paper's CAS.
        precision: dtype of the measured features.
        versions: of the libraries that took part.
        repeats: where the attack was repeated with other seeds, every repeat's seed and figures.
        provenance: all that the figures depend on, as ``measuring.provenance`` describes it; {} where unknown.
        unknown: what the file of a newer version said beside all this, by name; saved again as it was.
        without_parts: C, CAS by chance and C_I without a part of one class's images, from which their intervals come;
            None where a class has fewer than 20 images, above 228 classes, and in files of older versions.
    """

    matrix: NDArray[np.float64]
    class_attribution: NDArray[np.float64]
    counts: NDArray[np.int64]
    instance_matrix: NDArray[np.float64] | None = None
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    accuracy: float | None = None
    clean_loss: float | None = None
    robust_loss: float | None = None
    confusion_clean: NDArray[np.int64] | None = None
    confusion_adversarial: NDArray[np.int64] | None = None
    confusion_unnamed: NDArray[np.int64] | None = None
    correct_clean: NDArray[np.bool_] | None = None
    correct: NDArray[np.bool_] | None = None
    average_instance_cas: float | None = None
    logit_variance: float | None = None
    mean_row_share: float | None = None
    centred: bool = False
    class_names: tuple[str, ...] | None = None
    model: str | None = None
    head: Head | None = None
    data: Mapping[str, Any] | None = None
    threat: Mapping[str, Any] | None = None
    model_mode: str | None = None
    precision: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    repeats: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    without_parts: WithoutParts | None = None

    @property
    def cas(self) -> float:
        """CAS, from 0 to K(K-1) (eq. 7)."""
        return _cas(self.matrix)

    @property
    def cas_normalised(self) -> float:
        """CAS / (K(K-1)), from 0 to 1, to compare data sets; K counts classes with a row in C; NaN below two."""
        return self.cas / self.most_cas if self.most_cas else float("nan")

    @property
    def most_cas(self) -> int:
        """K(K-1), the CAS of classes that share all; K counts those with a row in C."""
        classes = int((~self._undefined).sum())
        return classes * (classes - 1)

    @property
    def instance_cas(self) -> float | None:
        """I-CAS (Section 5.3), or None where instances were not measured."""
        return None if self.instance_matrix is None else _cas(self.instance_matrix)

    @property
    def cas_excess(self) -> float:
        """CAS less its mean by chance; NaN where fewer than two classes have an attribution."""
        return self.cas - self.null.cas_mean

    @property
    def lengths(self) -> NDArray[np.float64]:
        """|A_i|, the lengths of the class attributions, (K,) float64; in logits."""
        return np.asarray(np.linalg.norm(self.class_attribution, axis=1))

    @property
    def shared_part(self) -> float:
        """Σ_{i≠j} max(A_i · A_j, 0): CAS before the lengths are divided out; in squared logits."""
        return shared_part(self.matrix, self.lengths)

    @property
    def negative_part(self) -> float:
        """Σ_{i≠j} min(C[i, j], 0), which CAS leaves out; from -K(K-1) to 0."""
        return 0.0 - _cas(-self.matrix)

    @property
    def in_logit_units(self) -> dict[str, Any] | None:
        """Parts and lengths in units of the logits' variance, so that a head times a constant gives the same.

        ``shared_part`` and ``negative_part``, which is Σ_{i≠j} min(A_i · A_j, 0) here, are divided by the variance,
        ``lengths`` by its square root. None where the variance is not known, or 0.
        """
        if not self.logit_variance:
            return None
        return {
            "shared_part": self.shared_part / self.logit_variance,
            "negative_part": 0.0 - shared_part(-self.matrix, self.lengths) / self.logit_variance,
            "lengths": self.lengths / np.sqrt(self.logit_variance),
        }

    @property
    def gauge_note(self) -> str:
        """A note where CAS depends on something that the softmax does not see; "" elsewhere."""
        if self.centred or self.mean_row_share is None or self.mean_row_share < MEAN_ROW_MATTERS:
            return ""
        return (
            f"{self.mean_row_share:.2%} of |W|² lies in the mean of the head's rows, which changes no prediction but "
            "changes CAS; a centred measurement is without it"
        )

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """The confusion matrix of the passes that counted: adversarial, clean or unknown."""
        for confusion in (self.confusion_adversarial, self.confusion_clean, self.confusion_unnamed):
            if confusion is not None:
                return confusion
        return None

    @property
    def class_accuracy(self) -> NDArray[np.float64] | None:
        """The accuracy on each class in the passes that counted, (K,) float64, NaN without samples; or None."""
        return _class_accuracy(self.confusion)

    @property
    def class_accuracy_clean(self) -> NDArray[np.float64] | None:
        """The same on clean images, or None where not measured."""
        return _class_accuracy(self.confusion_clean)

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
        missing, has_samples = self._undefined, self.counts > 0
        kinds = {"no samples of": missing & ~has_samples, "attribution is zero for": missing & has_samples}
        named = {why: [self.names[index] for index in np.flatnonzero(mask)] for why, mask in kinds.items()}
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
            first: a class, by name or index.
            second: another.

        Raises:
            InputError: an unknown class, or one without samples.
        """
        units = []
        for name in (first, second):
            index = class_index(self.names, name)
            vector = self.class_attribution[index]
            length = float(np.linalg.norm(vector))
            if not np.isfinite(length) or length == 0:
                raise InputError(f"expected classes with an attribution, found that {self.names[index]!r} has none")
            units.append(vector / length)
        shares = units[0] * units[1]
        order = np.argsort(-shares, kind="stable")[:count]
        return [(int(index), float(shares[index])) for index in order]

    @property
    def robust_threat(self) -> Mapping[str, Any] | None:
        """``threat``; of clean images beside which stands a ``robust_accuracy``, the attack of that.

        {} where nothing says which it was; None without an attack.
        """
        if self.threat is not None or self.robust_accuracy is None:
            return self.threat
        known = self.provenance.get("attack")
        return known if isinstance(known, Mapping) else {}

    def figures(self) -> dict[str, Any]:
        """The figures that a repeated measurement spreads: seed, accuracies, CAS and I-CAS."""
        names = ("clean_accuracy", "robust_accuracy", "accuracy", "cas", "instance_cas", "average_instance_cas")
        seed = None if self.threat is None else self.threat.get("seed")
        return {"seed": seed, **{name: getattr(self, name) for name in names}}

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """Mean and (sample) standard deviation of every figure over the repeats; empty where nothing was repeated."""
        spread = {}
        for name in ("robust_accuracy", "cas", "instance_cas"):
            values = [repeat[name] for repeat in self.repeats if repeat[name] is not None]
            if len(values) > 1:
                spread[name] = (float(np.mean(values)), float(np.std(values, ddof=1)))
        return spread

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values; NaN becomes null, and so do matrices of more than 2,000 classes."""
        return result_files.describe(self)

    def contents(self) -> dict[str, bytes]:
        """What ``save`` writes, by the files' endings."""
        return result_files.result_bytes(self)

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write ``path``.npz (the arrays) and ``path``.json (the rest); return both paths.

        Of the null model's matrices the .npz of more than 100 classes has ``null_mean_root`` and ``null_sd_root``.

        Raises:
            OSError: the folder is missing or not writable; nothing half-written remains.
        """
        return result_files.write_result(path, self.contents())

    @classmethod
    def load(cls, path: str | Path) -> CrossClassResult:
        """Read what ``save`` wrote; nothing is unpickled.

        Raises:
            InputError: a file is missing, is not such a result, or is of a newer format.
        """
        fields = result_files.read_result(path)
        parts = {name: fields.pop(key) for key, name in result_files.PARTS.items() if key in fields}
        return cls(**fields, without_parts=WithoutParts(**parts) if parts else None)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        instances: bool = False,
        vmin: float | None = None,
        vmax: float | None = None,
        cmap: str = "Blues",
        title: str | None = None,
        annotate: Annotate = "auto",
        colorbar: bool = True,
        fontsize: float | None = None,
    ) -> Axes:
        """Draw C (or C_I with ``instances``) as the paper does: class names on both axes, CAS and RA in the title.

        Colours go from ``vmin`` to ``vmax``: 0 to 1, or -0.75 to 0.75 for 100 classes and more, as in its figures.

        Args:
            ax: the axes to draw into, of any size; a figure of 6.4 x 5.6 inches of its own where None.
            instances: draw C_I.
            vmin, vmax: of the colours.
            cmap: matplotlib's name of the colours.
            title: in place of RA and CAS.
            annotate: the values in their cells: True, False, or "auto", where they fit and can be read.
            colorbar: whether there is one.
            fontsize: of names, labels and title, in points; by default it follows the axes' width, from 6 to 9.

        Raises:
            InputError: ``instances`` where no instance matrix was measured; another ``annotate`` or ``fontsize``.
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
            title=self.title(instances) if title is None else title,
            label="C_I[i, j]" if instances else "C[i, j]",
            annotate=annotate,
            colorbar=colorbar,
            fontsize=fontsize,
        )

    def save_picture(self, path: str | Path, *, dpi: float | None = None, **options: Any) -> Path:
        """Save what ``plot`` draws, as .png, .pdf or .svg by the file's name; the options are ``plot``'s.

        Args:
            dpi: of a PNG, and of the cells in the others; 150 and 300 by default.

        Raises:
            InputError: another ending, and as ``plot``.
        """
        from ccf_plugin.drawing import drop_figure, figure_of, save_figure

        figure = figure_of(self.plot(**options))
        save_figure(figure, Path(path), dpi=dpi)
        if options.get("ax") is None:
            drop_figure(figure)
        return Path(path)

    def title(self, instances: bool = False) -> str:
        """The accuracy (RA with its attack where the images were adversarial) and CAS in one line."""
        return presentation.title(self, instances=instances)

    def to_pandas(self, what: str = "matrix") -> pd.DataFrame:
        """The result as a data frame; needs pandas.

        Args:
            what: "matrix", C with the class names on both sides; "classes", a row for each class: samples, accuracy
                under the passes that counted, clean accuracy, length of the attribution, its share of CAS; or "pairs",
                a row for each ordered pair of classes: C, C_I, its share of CAS, confusions. Columns of what was not
                measured are left out.

        Raises:
            InputError: another ``what``.
            UnavailableError: pandas is not installed.
        """
        return presentation.as_frame(self, what)

    def __repr__(self) -> str:
        return presentation.in_one_line(self)

    def _repr_html_(self) -> str:
        return presentation.as_html(self)

    def __eq__(self, other: object) -> bool:
        """Whether all that was measured and recorded is the same; NaN equals NaN."""
        return presentation.are_equal(self, other) if isinstance(other, CrossClassResult) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.model, self.class_names, self.matrix.shape, tuple(self.counts.tolist())))


def _cas(matrix: NDArray[np.float64]) -> float:
    return float(class_attribution_similarity(torch.from_numpy(matrix)))


def _class_accuracy(confusion: NDArray[np.int64] | None) -> NDArray[np.float64] | None:
    if confusion is None:
        return None
    totals = confusion.sum(1)
    return np.where(totals > 0, np.diagonal(confusion) / np.maximum(totals, 1), np.nan)
