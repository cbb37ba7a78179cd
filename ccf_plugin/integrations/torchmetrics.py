"""CAS as a torchmetrics metric, for loops that log such; needs the optional extra ``metrics``."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torchmetrics import Metric  # type: ignore[import-not-found, unused-ignore]

from ccf_plugin.drawing import colour_scale, draw_heatmap
from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import class_attribution_similarity, class_means, correlation_matrix
from ccf_plugin.probe.calls import PassRecord
from ccf_plugin.probe.probe import CrossClassProbe
from ccf_plugin.probe.sums import Sums

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class ClassAttributionSimilarity(Metric):  # type: ignore[misc, unused-ignore]
    """CAS (eq. 7) of a classifier's passes, from 0 to K(K-1): a `CrossClassProbe` whose sums are metric states.

    As with the probe, the last pass of the model before ``update`` counts. It can be one of a `MetricCollection`, which
    hands (preds, target) to all its metrics: ``update(preds, target)`` is ``update(target)`` here, since the probe has
    seen the pass itself. A clone watches the same model; a pickle holds the model.

    Args:
        model: the classifier.
        num_classes: K, rows of the head's weight; states need their shape before the first pass.
        num_features: n, its columns.
        head: the head's name, where it cannot be found, or "gradient".
        options: torchmetrics' own, such as ``sync_on_compute``.

    Example:
        >>> import torch
        >>> from ccf_plugin.integrations.torchmetrics import ClassAttributionSimilarity
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> metric = ClassAttributionSimilarity(model, num_classes=3, num_features=4)
        >>> _ = model(torch.rand(6, 1, 2, 2))
        >>> metric.update(torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> 0 <= metric.compute() <= 6
        tensor(True)

        >>> from torchmetrics import MetricCollection
        >>> from torchmetrics.classification import MulticlassAccuracy
        >>> metrics = MetricCollection({"accuracy": MulticlassAccuracy(3), "cas": metric})
        >>> metrics.update(model(torch.rand(3, 1, 2, 2)), torch.tensor([0, 1, 2]))
        >>> sorted(metrics.compute())
        ['accuracy', 'cas']
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0

    attributions: Tensor
    counts: Tensor
    faults: Tensor
    identity_bits: Tensor

    def __init__(
        self, model: nn.Module, num_classes: int, num_features: int, *, head: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._arguments = (num_classes, num_features, head, options)
        self._probe = CrossClassProbe(model, head=head)  # clones that watch the same model share it
        self._latest: weakref.ref[PassRecord] | None = None  # the pass that was read last
        zeros = Sums.zeros((num_classes, num_features), torch.device("cpu"))
        self.add_state("attributions", zeros.attributions, dist_reduce_fx="sum")
        self.add_state("counts", zeros.counts, dist_reduce_fx="sum")
        self.add_state("faults", torch.zeros(3, dtype=torch.bool), dist_reduce_fx="max")
        # A collection updates one metric of those whose states were once equal, as they are of a model and its average
        # before they part; metrics of two models are never the same.
        bits = uuid4().int
        self.add_state("identity_bits", torch.tensor([bits >> place & 1 for place in range(128)]), dist_reduce_fx="max")

    def update(
        self, preds: Tensor | None = None, target: Tensor | None = None, *, labels: Tensor | None = None
    ) -> None:
        """Add the last pass; see `CrossClassProbe.update`. Called with labels (N,), or with (preds, target).

        Args:
            preds: ignored beside labels of any name; alone, the labels.
            target: the labels, as a `MetricCollection` names them.
            labels: the labels, by the name that the probe has for them.

        Raises:
            InputError: as there, and where the head is not of the K and n that were announced; no labels, or two.
        """
        candidates = [value for value in (labels, target) if value is not None]
        if not candidates and preds is not None:
            candidates = [preds]
        if len(candidates) != 1:
            problem = "none" if not candidates else "labels and target"
            raise InputError(f"expected labels once, as update(labels) or update(preds, target), found {problem}")
        sums, record = self._probe._sums_of_latest(candidates[0], None if self._latest is None else self._latest())
        self._latest = weakref.ref(record)
        if sums.attributions.shape != self.attributions.shape:
            raise InputError(
                f"expected a head of num_classes, num_features = {tuple(self.attributions.shape)}, "
                f"found {tuple(sums.attributions.shape)}"
            )
        sums = sums.to(self.attributions.device)
        self.attributions = self.attributions + sums.attributions
        self.counts = self.counts + sums.counts
        self.faults = self.faults | sums.has_faults().to(self.faults.device)

    def matrix(self) -> Tensor:
        """C (eq. 6), (K, K) float64.

        Raises:
            InputError: a label outside 0..K-1, NaN or infinite features, or logits that are not the head's.
        """
        bad_labels, not_finite, missed = self.faults.tolist()
        if bad_labels:
            raise InputError(f"expected labels in 0..{len(self.counts) - 1}, found others")
        if not_finite:
            raise InputError("expected finite features, found NaN or infinity; check the weights and the learning rate")
        if missed:
            raise InputError(
                "expected g Wᵀ and one constant row of the head to be the logits in every counted pass, found a pass "
                "where they are not; call reset() and measure again"
            )
        return correlation_matrix(class_means(self.attributions, self.counts))

    def compute(self) -> Tensor:
        """CAS, a float64 scalar; over all processes, as torchmetrics does it."""
        return class_attribution_similarity(self.matrix())

    def plot(self, val: Any = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw C as a heatmap with CAS in the title (``val`` is torchmetrics' and unused)."""
        matrix = self.matrix()
        title = f"CAS = {float(class_attribution_similarity(matrix)):.1f}"
        names = [str(index) for index in range(len(matrix))]
        vmin, vmax = colour_scale(len(matrix))
        ax = draw_heatmap(matrix.cpu().numpy(), names, ax=ax, vmin=vmin, vmax=vmax, cmap="Blues", title=title)
        return ax.figure, ax  # type: ignore[return-value]

    def detach(self) -> None:
        """Remove the probe's hooks from the model."""
        self._probe.detach()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_latest": None}

    def __deepcopy__(self, memo: Any) -> ClassAttributionSimilarity:
        classes, features, head, options = self._arguments
        model = memo.get(id(self._probe.model), self._probe.model)  # its copy, where the whole around both is copied
        copy = type(self)(model, classes, features, head=head, **options)
        if model is self._probe.model:
            copy._probe = self._probe
        copy._latest = self._latest
        for name in self._defaults.keys() - {"identity_bits"}:
            setattr(copy, name, getattr(self, name).clone())
        copy._update_count = self._update_count
        return copy
