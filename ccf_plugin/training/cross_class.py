"""CAS as a term of the loss: training that keeps features which classes share, as the paper's Section 5.5 suggests."""

from __future__ import annotations

import torch
from torch import Tensor

from ccf_plugin.probe.attribution import (
    class_attribution_similarity,
    class_means,
    class_sums,
    correlation_matrix,
)
from ccf_plugin.probe.null import expected_cas
from ccf_plugin.training.processes import Processes
from ccf_plugin.training.recipe import CrossClassSection


class CrossClassTerm:
    """CAS of a step's images over K(K - 1), or CAS less its mean by chance; the loss falls by a weight times it.

    The class attributions are those of the whole step, over all processes. A class without an image in it, or without
    an attribution, adds nothing, as in CAS itself.
    """

    def __init__(self, section: CrossClassSection, processes: Processes) -> None:
        self._section, self._processes = section, processes

    def weight(self, epoch: int) -> float:
        """The weight in an epoch (counted from 1)."""
        return self._section.weight_at(epoch)

    def value(self, features: Tensor, weight: Tensor, labels: Tensor, *, counts: bool = True) -> Tensor:
        """The term before its weight, a float32 scalar (float64 of such features) with its graph.

        Args:
            features: g(x) of this process's images, (N, n) float.
            weight: W, (K, n) float.
            labels: (N,) int64.
            counts: whether these images count: a process with no part in a step has a row that does not.
        """
        sums, numbers = class_sums(features.to(torch.promote_types(features.dtype, torch.float32)), weight, labels)
        sums = self._processes.sum_with_gradient(sums * counts)
        vectors = class_means(sums, self._processes.sum(numbers * counts))
        cas = class_attribution_similarity(correlation_matrix(vectors))
        if self._section.term == "excess":
            cas = cas - expected_cas(vectors)
        classes = len(weight)
        return cas / (classes * (classes - 1))
